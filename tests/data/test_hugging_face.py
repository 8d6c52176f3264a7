"""Data sets of the library `datasets` as a source of photos."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from datadream.data import hugging_face
from datadream.data.datasets import HuggingFace, ImageFolder, open_source
from datadream.data.few_shot import check_photos, sample_shots
from datadream.data.intake import intake, intake_lines

NAMES = ["dog", "cat"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def rows(seed: int, labels: list[int], mode: str = "RGB") -> datasets.Dataset:
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).convert(mode) for _ in labels]
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict({"img": images, "fine": labels}, features=features)


def save_to_disk(folder: Path, splits: dict[str, datasets.Dataset]) -> None:
    datasets.DatasetDict(splits).save_to_disk(folder)


def save_parquet(folder: Path, splits: dict[str, datasets.Dataset]) -> None:
    (folder / "data").mkdir(parents=True)
    for name, own in splits.items():
        own.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")


def save_metadata(folder: Path, splits: dict[str, datasets.Dataset]) -> None:
    for split, own in splits.items():
        (folder / split).mkdir(parents=True)
        lines = []
        for number, row in enumerate(own):
            row["img"].save(folder / split / f"{number}.png")
            lines.append(json.dumps({"file_name": f"{number}.png", "label": NAMES[row["fine"]]}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("save", [save_to_disk, save_parquet, save_metadata])
def test_a_data_set_is_read_however_it_was_saved(tmp_path, save):
    splits = {"train": rows(0, [0, 1, 0, 1]), "validation": rows(1, [1, 0]), "test": rows(2, [1])}
    save(tmp_path / "saved", splits)
    source = open_source(str(tmp_path / "saved"))
    dataset = source.dataset()
    assert dataset.class_names == ("cat", "dog")
    found = [[photo.label for photo in part] for part in (dataset.pool, dataset.val, dataset.test)]
    assert found == [[1, 0, 1, 0], [0, 1], [0]]
    for photo, row in zip(dataset.pool, splits["train"], strict=True):
        assert np.array_equal(np.asarray(source.read(photo.key)), np.asarray(row["img"]))
    few_shot = sample_shots(dataset, 2, 0, "a {name}")
    check_photos(source, [few_shot], dataset.pool)
    assert intake_lines(intake(dataset, few_shot))[0] == "photos: 2 classes, 2 shots each, 2 to validate and 1 to test"


def test_one_split_goes_the_way_of_a_folder_of_classes(tmp_path):
    rows(0, [0, 1] * 4).save_to_disk(tmp_path)
    few_shot = sample_shots(open_source(str(tmp_path)).dataset(), 2, 0, "a {name}")
    assert (len(few_shot.val), len(few_shot.test)) == (2, 2)


def test_other_splits_and_photos_without_labels_are_accounted_for(tmp_path):
    save_to_disk(tmp_path, {"train": rows(0, [0, 1]), "unsupervised": rows(1, [0] * 3), "test": rows(2, [-1, -1])})
    dataset = open_source(str(tmp_path)).dataset()
    assert dataset.left_out == ("3 photos of split unsupervised", "2 photos without a label in split test")
    assert dataset.test == ()


def test_a_row_without_a_photo_is_named(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    photo = Image.new("RGB", (4, 4))
    datasets.Dataset.from_dict({"image": [photo, None], "label": ["a", "b"]}, features=features).save_to_disk(tmp_path)
    source = open_source(str(tmp_path))
    with pytest.raises(ValueError, match=r"train/000001 has no photo\. Remove that row"):
        source.read(source.dataset().pool[1].key)


def test_transparent_photos_are_shown_over_the_background(tmp_path):
    clear = datasets.Dataset.from_dict(
        {"image": [Image.new("RGBA", (4, 4), (0, 255, 0, 0))] * 2, "label": ["a", "b"]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")}),
    )
    clear.save_to_disk(tmp_path)
    source = open_source(str(tmp_path), "black")
    assert source.read(source.dataset().pool[0].key).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": rows(0, [0, 0])}, r"has 1 classes in its training split: need at least 2 \(splits: train\)"),
        ({"validation": rows(0, [0, 1]), "test": rows(1, [0, 1])}, r"has 0 classes.*\(splits: validation, test\)"),
        ({"train": rows(0, [0, 1]).remove_columns("fine")}, r"has no column of labels \(it has: img\)"),
        ({"train": rows(0, [0, 1]).remove_columns("img")}, r"has no column of photos \(it has: fine\)"),
    ],
)
def test_what_a_data_set_lacks_is_one_line(tmp_path, splits, message):
    save_to_disk(tmp_path, splits)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path)).dataset()


def test_the_library_is_named_where_it_is_missing_and_its_errors_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"cannot be loaded by the library datasets: ") as told:
        open_source(str(tmp_path)).dataset()
    assert "\n" not in str(told.value)
    monkeypatch.setattr(hugging_face, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"'hf-hub:a/b' needs the library datasets: pip install 'datasets>=5,<6'"):
        open_source("hf-hub:a/b").dataset()


def test_folders_of_classes_are_read_without_the_library(photo_folder):
    (photo_folder / "notes.parquet").touch()
    (photo_folder / "cat" / "metadata.csv").touch()
    assert isinstance(open_source(str(photo_folder)), ImageFolder)
    assert isinstance(open_source("hf-hub:owner/name@main"), HuggingFace)
