"""What is compared with what, by a small CLIP."""

import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from datadream import recipes
from datadream.data.datasets import open_source
from datadream.data.shards import ImageRecord, encode_image, to_parquet, to_webdataset
from datadream.images import analysis
from datadream.images.analysis import Comparison, Judge, analyse, check_analysis, distances, reference_photos
from datadream.images.metrics import frechet_distance
from datadream.run.cell import cells_of
from datadream.run.layout import DATASET, FEW_SHOT, IMAGES, DatasetMarker, ImagesRecord, shard_file
from datadream.run.store import RunStore
from tests.tiny_clip import save_tiny_clip

SHARDS = {"parquet": ("data/0.parquet", to_parquet), "webdataset": ("data/0.tar", to_webdataset)}


def publish(cell, images: list[tuple[int, Image.Image]], form: str = "parquet") -> None:
    """A dataset of these labelled images."""
    cell.store.write_json(FEW_SHOT, cell.few_shot.to_json())
    records = [
        ImageRecord(f"{row:06d}", encode_image(np.asarray(image), "png"), label, {})
        for row, (label, image) in enumerate(images)
    ]
    name, pack = SHARDS[form]
    cell.store.write_bytes(shard_file(name), pack(records, "png", cell.few_shot.class_names))
    names = cell.few_shot.class_names
    marker = DatasetMarker(plan="plan", format=form, n_images=len(images), class_names=names, shards=[name])
    cell.store.write_json(DATASET, marker.to_json())


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return f"local-dir:{save_tiny_clip(tmp_path_factory.mktemp('clip'))}"


def no_judge(cell) -> None:
    """A run without a classifier of photos alone."""


def run_of(folder, **changes):
    return cells_of(recipes.digits(**changes), RunStore(str(folder)))


def test_photos_are_neither_shots_nor_test_photos(tmp_path):
    (cell,) = run_of(tmp_path)
    few_shot = cell.few_shot
    shots, test = ({photo.key for photo in photos} for photos in (few_shot.photos, few_shot.test))
    held_out, train, tested = (
        {photo.key for photo in reference_photos(cell, [cell], against)} for against in ("held-out", "train", "test")
    )
    assert len(held_out) == 10 * (36 + 39)
    assert not held_out & (shots | test)
    assert train == held_out | shots
    assert tested == test


def test_runs_of_a_seed_share_photos_that_none_was_made_from(tmp_path):
    few, many = (cell for cell in run_of(tmp_path, **{"grid.n_shots": [1, 16]}) if cell.config.method != "none")
    assert reference_photos(few, [few, many], "held-out") == reference_photos(many, [few, many], "held-out")
    assert len(reference_photos(few, [few], "held-out")) == len(reference_photos(many, [many], "held-out")) + 150


def test_photos_of_a_folder_that_has_changed_keep_the_runs_labels(tmp_path, photo_folder):
    """A class that came before all others, and one that a run added behind them."""
    (before,) = run_of(tmp_path / "run", **{"data.source": str(photo_folder), "data.n_shots": 2})
    before.store.write_json(FEW_SHOT, before.few_shot.to_json())
    shutil.copytree(photo_folder / "cat", photo_folder / "ant")
    (cell,) = run_of(tmp_path / "run", **{"data.source": str(photo_folder), "data.n_shots": 2})
    assert cell.few_shot.class_names == before.few_shot.class_names
    photos = reference_photos(cell, [cell], "held-out")
    assert {(photo.key.split("/")[0], photo.label) for photo in photos} == {
        (name, label) for label, name in enumerate(before.few_shot.class_names)
    }


@pytest.mark.parametrize("form", SHARDS)
def test_features_are_plain_open_clips(tmp_path, clip, form):
    (cell,) = run_of(tmp_path, **{"classify.model": clip})
    source = open_source("digits")
    images = [(photo.label, source.read(photo.key)) for photo in cell.few_shot.test[::40]]
    publish(cell, images, form)
    how = Comparison(clip, None)
    analyse([cell], how, no_judge)
    found = ImagesRecord.from_json(cell.store.read_json(IMAGES))

    model, _, preprocess = open_clip.create_model_and_transforms(clip)
    model.eval()

    def plain(pictures):
        with torch.no_grad():
            return model.encode_image(torch.stack([preprocess(each) for each in pictures])).numpy()

    photos = reference_photos(cell, [cell], "held-out")
    expected = frechet_distance(plain([image for _, image in images]), plain([source.read(p.key) for p in photos]))
    assert found.all["fid"] == pytest.approx(expected, rel=1e-3)
    assert (found.all["n_images"], found.all["n_photos"]) == (len(images), 750)
    assert [entry["n_photos"] for entry in found.classes] == [75] * 10


def test_a_copy_of_a_shot_comes_first(tmp_path, clip):
    (cell,) = run_of(tmp_path, **{"classify.model": clip})
    source = open_source("digits")
    copied = cell.few_shot.shots[3][2]
    publish(cell, [(0, source.read(cell.few_shot.test[0].key)), (3, source.read(copied))])
    analyse([cell], Comparison(clip, None), no_judge)
    found = ImagesRecord.from_json(cell.store.read_json(IMAGES))
    first = found.closest[0]
    assert (first["photo"], first["image"], first["label"]) == (copied, "000001", 3)
    assert first["similarity"] == pytest.approx(1, abs=1e-4)
    assert found.shot_similarity["images"][-1] == pytest.approx(1, abs=1e-4)
    assert found.shot_similarity["photos"][-1] < 1
    assert found.all["precision"] is None, "two images have no five neighbours"
    assert found.classes[5]["fid"] is None, "a class without images"


def test_what_was_measured_is_not_measured_again(tmp_path, clip, monkeypatch):
    (cell,) = run_of(tmp_path, **{"classify.model": clip})
    publish(cell, [(0, Image.new("RGB", (32, 32))), (1, Image.new("RGB", (32, 32), "white"))])
    analyse([cell], Comparison(clip, None), no_judge)
    cell.store.write_json(IMAGES, cell.store.read_json(IMAGES) | {"mark": "of the first"})
    analyse([cell], Comparison(clip, None), no_judge)
    assert "mark" in cell.store.read_json(IMAGES)
    analyse([cell], Comparison(clip, None, "test"), no_judge)
    assert "mark" not in cell.store.read_json(IMAGES)
    # As many other photos are others.
    cell.store.write_json(IMAGES, cell.store.read_json(IMAGES) | {"mark": "of the first"})
    held_out = reference_photos(cell, [cell], "test")
    monkeypatch.setattr(analysis, "reference_photos", lambda *_: [*held_out[1:], cell.few_shot.photos[0]])
    analyse([cell], Comparison(clip, None, "test"), no_judge)
    assert "mark" not in cell.store.read_json(IMAGES)


@pytest.mark.parametrize("form", SHARDS)
def test_images_are_shown_to_the_classifier_of_photos_alone(tmp_path, clip, form, monkeypatch):
    """One that calls everything bright a `1`."""
    monkeypatch.setattr(analysis, "JUDGED_AT_ONCE", 2)
    (cell,) = run_of(tmp_path, **{"classify.model": clip})
    dark, bright = Image.new("RGB", (32, 32)), Image.new("RGB", (32, 32), "white")
    publish(cell, [(0, dark), (1, dark), (0, bright), (1, bright), (1, bright)], form)
    names, asked = cell.few_shot.class_names, []

    def recognise(images):
        asked.append(len(images))
        return [names[int(image.getpixel((0, 0)) == (255, 255, 255))] for image in images]

    judge = Judge("first", lambda: recognise)
    analyse([cell], Comparison(clip, None), lambda of: judge)
    found = ImagesRecord.from_json(cell.store.read_json(IMAGES))
    assert found.all["recognised"] == 0.6
    assert [entry.get("recognised") for entry in found.classes[:3]] == [0.5, pytest.approx(2 / 3, abs=1e-6), None]
    assert asked == [2, 2, 1]
    analyse([cell], Comparison(clip, None), lambda of: judge)
    assert asked == [2, 2, 1], "nothing has changed"
    analyse([cell], Comparison(clip, None), no_judge)
    assert cell.store.read_json(IMAGES)["all"]["recognised"] == 0.6, "a cell that is looked at without its table"
    analyse([cell], Comparison(clip, None), lambda of: Judge("of other knobs", lambda: recognise))
    assert asked == [2, 2, 1, 2, 2, 1]


def test_a_classifier_that_cannot_be_loaded_costs_what_is_recognised_alone(tmp_path, clip, caplog, monkeypatch):
    (cell,) = run_of(tmp_path, **{"classify.model": clip})
    publish(cell, [(0, Image.new("RGB", (32, 32))), (1, Image.new("RGB", (32, 32), "white"))])

    def load():
        raise FileNotFoundError("classify.model is gone.")

    analyse([cell], Comparison(clip, None), lambda of: Judge("any", load))
    found = ImagesRecord.from_json(cell.store.read_json(IMAGES))
    assert found.all["fid"] is not None
    assert (found.all.get("recognised"), found.judge) == (None, None)
    assert "what is recognised is not measured: classify.model is gone." in caplog.text
    monkeypatch.setattr(analysis, "compared", None)
    analyse([cell], Comparison(clip, None), lambda of: Judge("any", load))  # encodes nothing again


def test_without_other_photos_images_are_only_compared_with_the_shots(tmp_path, clip, photo_folder, caplog):
    """Two photos of a class: one is the shot, and the other is for tests."""
    for path in photo_folder.glob("*/[2-9].png"):
        path.unlink()
    (cell,) = run_of(tmp_path / "run", **{"classify.model": clip, "data.source": str(photo_folder), "data.n_shots": 1})
    publish(cell, [(label, Image.new("RGB", (32, 32))) for label in (0, 1, 2)])
    analyse([cell], Comparison(clip, None), no_judge)
    found = ImagesRecord.from_json(cell.store.read_json(IMAGES))
    assert found.all["n_photos"] == 0
    assert found.all["fid"] is None
    assert list(found.shot_similarity) == ["images"]
    assert "no photos but shots and test photos" in caplog.text


def test_too_few_for_a_measure_leave_it_out():
    features = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    assert distances("cat", features[:1], features).fid is None
    two = distances("cat", features[:2], features)
    assert two.fid is not None
    assert two.coverage is None
    assert distances("cat", features, features).coverage == 1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Comparison("ViT-B-33", None), "no architecture of open_clip"),
        (Comparison("local-dir:/nowhere", None), "does not exist"),
        (Comparison("ViT-B-32", "openai", "val"), "--against is 'val'. Known: held-out, train, test."),
    ],
)
def test_what_cannot_be_compared_is_named(tmp_path, how, message):
    (cell,) = run_of(tmp_path)
    publish(cell, [(0, Image.new("RGB", (32, 32)))])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_analysis([cell], how)


def test_a_run_without_images_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no images to look at: dataset/dataset.json is missing. Run generate"):
        check_analysis(run_of(tmp_path), Comparison("ViT-B-32", "openai"))
