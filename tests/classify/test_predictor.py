"""A run's classifiers, used from Python and from the command line, without Ray."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import datadream
from datadream.classify.setting import SettingTrainer
from datadream.cli import main
from datadream.data.datasets import open_source
from datadream.run.layout import classifier_marker
from datadream.run.store import RunStore
from datadream.runtime.collectives import ALONE


@pytest.fixture(scope="module")
def run(tmp_path_factory, few_shot, config) -> str:
    """A run of three settings, of which `real` is the best one."""
    store = RunStore(str(tmp_path_factory.mktemp("run")))
    trainer = SettingTrainer(config, few_shot, torch.device("cpu"), ALONE)
    for setting in ("zero-shot", "gda-real", "real"):
        outcome = trainer.run(setting, None, lambda step, reading: None)
        for name, data in outcome.files.items():
            store.write_bytes(f"classifier/{setting}/{name}", data)
        store.write_json(classifier_marker(setting), outcome.metrics)
    return store.root


def photos(few_shot, photo_folder) -> list[Image.Image]:
    source = open_source(str(photo_folder))
    return [source.read(photo.key) for photo in few_shot.test]


def test_one_line_classifies_photos_as_the_run_measured_it(run, few_shot, photo_folder):
    predicted = datadream.load_classifier(run).predict(photos(few_shot, photo_folder))
    best = [next(iter(named)) for named in predicted]
    hits = [few_shot.class_names[photo.label] == name for photo, name in zip(few_shot.test, best, strict=True)]
    top1 = RunStore(run).read_json(classifier_marker("real"))["top1"]
    assert top1 > 80
    assert 100 * sum(hits) / len(hits) == pytest.approx(top1)
    for named in predicted:
        assert sum(named.values()) == pytest.approx(1)
        assert list(named.values()) == sorted(named.values(), reverse=True)


def test_several_classifiers_vote_by_their_mean_probabilities(run, few_shot, photo_folder, tmp_path):
    pictures = photos(few_shot, photo_folder)
    zero_shot, real = (datadream.load_classifier(run, name).predict(pictures) for name in ("zero-shot", "real"))
    vote = datadream.load_classifier(run, ["zero-shot", "real"])
    for voted, one, other in zip(vote.predict(pictures), zero_shot, real, strict=True):
        assert voted == pytest.approx({name: (one[name] + other[name]) / 2 for name in one})
        assert list(voted.values()) == sorted(voted.values(), reverse=True)
    with pytest.raises(ValueError, match="vote are no one checkpoint"):
        vote.save_checkpoint(tmp_path / "clip")


def test_a_photo_may_be_a_picture_a_path_or_pixels(run, photo_folder):
    path = next((photo_folder / "test" / "red").iterdir())
    classifier = datadream.load_classifier(run)
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
        forms = [picture, str(path), path, pixels, path.as_uri()]
        several = classifier.predict(forms)
        (alone,) = classifier.predict(path)
        assert all(classifier.predict(form) == [alone] for form in forms)
    assert all(named == pytest.approx(alone) for named in several), "a batch is rounded otherwise than one photo"


def test_transparent_photos_are_classified_over_the_background_that_the_run_had(config, few_shot, tmp_path):
    black, store = config.updated({"data.background": "black"}), RunStore(str(tmp_path))
    outcome = SettingTrainer(black, few_shot, torch.device("cpu"), ALONE).run("zero-shot", None, lambda *_: None)
    for name, data in outcome.files.items():
        store.write_bytes(f"classifier/zero-shot/{name}", data)
    store.write_json(classifier_marker("zero-shot"), outcome.metrics)
    transparent = Image.new("RGBA", (20, 24), (0, 255, 0, 0))
    black_photo = Image.new("RGB", (20, 24), "black")
    asked = [transparent, black_photo, Image.new("RGB", (20, 24), "white")]
    over_black, same, over_white = datadream.load_classifier(store.root).predict(asked)
    assert over_black == pytest.approx(same)
    assert over_black != pytest.approx(over_white)


def test_the_exported_checkpoint_is_the_classifier(run, few_shot, photo_folder, tmp_path, capsys):
    assert main(["export", run, "--to", str(tmp_path / "clip")]) == 0
    name = capsys.readouterr().out.strip()
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(list(few_shot.prompts))
    pictures = photos(few_shot, photo_folder)[::7]
    with torch.no_grad():
        image_logits, _ = model.eval().get_logits(torch.stack([preprocess(picture) for picture in pictures]), tokens)
    for named, row in zip(
        datadream.load_classifier(run).predict(pictures), image_logits.softmax(dim=1).tolist(), strict=True
    ):
        assert named == pytest.approx(dict(zip(few_shot.class_names, row, strict=True)), abs=1e-5)


def test_zero_shot_is_plain_open_clip(run, clip_id, few_shot, photo_folder):
    pictures = photos(few_shot, photo_folder)[::7]
    model, _, preprocess = open_clip.create_model_and_transforms(clip_id)
    tokens = open_clip.get_tokenizer(clip_id)(list(few_shot.prompts))
    with torch.no_grad():
        image_logits, _ = model.eval().get_logits(torch.stack([preprocess(picture) for picture in pictures]), tokens)
    predicted = datadream.load_classifier(run, "zero-shot").predict(pictures)
    for named, row in zip(predicted, image_logits.softmax(dim=1).tolist(), strict=True):
        assert named == pytest.approx(dict(zip(few_shot.class_names, row, strict=True)), abs=1e-5)


def test_a_gaussian_head_predicts_what_was_measured_and_is_no_checkpoint(run, few_shot, photo_folder, tmp_path):
    classifier = datadream.load_classifier(run, "gda-real")
    table = pq.read_table(f"{run}/classifier/gda-real/logits.parquet").to_pydict()
    expected = torch.tensor(table["logits"]).softmax(dim=1).tolist()
    for named, row in zip(classifier.predict(photos(few_shot, photo_folder)), expected, strict=True):
        assert named == pytest.approx(dict(zip(few_shot.class_names, row, strict=True)), abs=1e-5)
    with pytest.raises(ValueError, match="a gda- classifier is no CLIP checkpoint"):
        classifier.save_checkpoint(tmp_path / "clip")


def test_the_command_prints_a_line_per_photo(run, photo_folder, capsys):
    paths = [str(photo_folder / "test" / name / "0.png") for name in ("red", "blue")]
    assert main(["predict", run, *paths, "--top", "2"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == paths
    assert [line[1].split()[0] for line in lines] == ["red", "blue"]
    assert all(len(line) == 3 and line[1].endswith("%") for line in lines)


def test_folders_and_patterns_are_predicted_for_people_and_programs(run, tmp_path, capsys):
    for name, colour in (("a, 1.png", "red"), ("inside/b.JPG", "blue")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), colour).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    for litter in ("._b.jpg", "__MACOSX/c.jpg", "@eaDir/a.jpg/THUMB.jpg"):
        (tmp_path / litter).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / litter).touch()
    assert main(["predict", run, str(tmp_path), "--csv", "--top", "1"]) == 0
    rows = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert rows[0] == ["photo", "class", "probability"]
    assert [row[0] for row in rows[1:]] == [str(tmp_path / "a, 1.png"), str(tmp_path / "inside" / "b.JPG")]
    assert main(["predict", run, f"{tmp_path}/*.png", "--json"]) == 0
    (told,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert told["photo"] == str(tmp_path / "a, 1.png")
    assert set(told["classes"]) == {"red", "green", "blue"}
    assert sum(told["classes"].values()) == pytest.approx(1, abs=1e-4)


def test_a_photo_that_cannot_be_read_hides_no_other(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datadream.classify.predictor.BATCH", 2)
    for name in ("a", "c", "e"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
    for name in ("b.png", "d.png"):
        (tmp_path / name).write_text("no photo")
    assert main(["predict", run, str(tmp_path), "--top=1"]) == 1
    printed = capsys.readouterr()
    assert [Path(line.split("\t")[0]).name for line in printed.out.splitlines()] == ["a.png", "c.png", "e.png"]
    first, *others = printed.err.strip().splitlines()
    assert first == "datadream: 2 of 5 photos could not be read:"
    assert ["b.png' cannot be decoded" in others[0], "d.png' cannot be decoded" in others[1]] == [True, True]


def test_names_of_files_need_be_no_text(run, tmp_path, capfdbinary):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", name)
    for form in ([], ["--csv"], ["--json"]):
        assert main(["predict", run, str(tmp_path), *form]) == 0
        assert b"caf\xe9.png" in capfdbinary.readouterr().out


def test_a_pattern_names_photos_alone(run, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "sub.png").mkdir()
    for name in ("Thumbs.db", "._a.png", "notes.txt"):
        (tmp_path / name).write_text("no photo")
    assert main(["predict", run, str(tmp_path / "*"), "--csv"]) == 0
    assert {line.split(",")[0] for line in capsys.readouterr().out.splitlines()[1:]} == {str(tmp_path / "a.png")}


def test_a_checkpoint_is_a_local_folder(run, tmp_path, capsys, monkeypatch):
    assert main(["export", run, "--to", "s3://bucket/clip", "--setting", "zero-shot"]) == 2
    assert "--to is 's3://bucket/clip': a checkpoint needs a local folder" in capsys.readouterr().err
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["export", run, "--to=~/clip", "--setting", "zero-shot"]) == 0
    assert (tmp_path / "clip" / "open_clip_config.json").is_file()


def test_what_cannot_be_one_checkpoint_is_refused_before_work(run, tmp_path, capsys):
    for setting, why in (("zero-shot,real", "Export one by --setting real"), ("gda-real", "is no CLIP checkpoint")):
        assert main(["export", run, "--to", str(tmp_path / "clip"), "--setting", setting]) == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "clip").exists()


def test_bad_input_is_one_clear_error(run, tmp_path, capsys):
    def error(*arguments: str) -> str:
        assert main(["predict", *arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        return lines[0]

    (tmp_path / "notes.jpg").write_text("no photo")
    (tmp_path / "empty").mkdir()
    assert "--top is 0: expected 1 or more" in error(run, str(tmp_path / "notes.jpg"), "--top", "0")
    assert "empty' has no photo. Expected" in error(run, str(tmp_path / "empty"))
    assert "*.png' has no photo" in error(run, str(tmp_path / "*.png"))
    assert "holds no classifier. Train one" in error(str(tmp_path), "photo.jpg")
    assert "no classifier 'reel'. It holds: zero-shot, gda-real, real." in error(run, "photo.jpg", "--setting", "reel")
    assert "photo 'nowhere.jpg' does not exist" in error(run, "nowhere.jpg")
    assert "notes.jpg' cannot be decoded" in error(run, str(tmp_path / "notes.jpg"))
    assert "unexpected '--rank=3'" in error(run, "photo.jpg", "--rank=3")
    store, name = RunStore(run), "classifier/zero-shot/labels.json"
    labels = store.read_json(name)
    older = RunStore(str(tmp_path / "older"))
    head = "classifier/zero-shot/head.safetensors"
    older.write_bytes(head, store.read_bytes(head))
    older.write_json(classifier_marker("zero-shot"), {"setting": "zero-shot", "top1": 70.0, "val_top1": 80.0})
    older.write_json(name, {key: value for key, value in labels.items() if key != "trained"} | {"lora": None})
    assert "labels.json has no 'trained'. Train it again: delete" in error(older.root, "photo.jpg")
    with pytest.raises(ValueError, match=r"photo of float64 \[4, 4\]: expected uint8"):
        datadream.load_classifier(run).predict(np.zeros((4, 4)))
