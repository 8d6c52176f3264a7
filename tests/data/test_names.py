"""Classes are called as people say them."""

import json

import pytest

from datadream.config import DataConfig
from datadream.data.datasets import open_dataset
from datadream.data.names import readable_names


def test_folders_are_read_with_blanks():
    assert readable_names(["car_side", "001_cat", " big__dog"], None) == ("car side", "001 cat", "big dog")


def test_imagenets_ids_are_known_and_told_apart():
    ids = ["n01440764", "n03773504", "n04008634", "n04355933", "n04356056", "other_class"]
    assert readable_names(ids, None) == ("tench", "missile", "projectile", "sunglass", "sunglasses", "other class")


@pytest.mark.parametrize("text", [json.dumps({"001": "caf\u00e9"}), "'001': caf\u00e9\n", "\ufeff001: caf\u00e9\n"])
def test_a_file_names_some_or_all(tmp_path, text):
    (tmp_path / "names").write_text(text, encoding="utf-8")
    assert readable_names(["001", "a_b"], str(tmp_path / "names")) == ("caf\u00e9", "a b")


def test_what_a_file_says_is_text_as_it_was_written(tmp_path):
    """Numbers, yes and no, an accented letter as Macs write it, an emoji as JSON escapes it."""
    (tmp_path / "names.yaml").write_text("no: healthy\nyes: 007\ncafe\u0301: 1e3\n00000: stop")
    folders = ["00000", "caf\u00e9", "no", "yes"]
    assert readable_names(folders, str(tmp_path / "names.yaml")) == ("stop", "1e3", "healthy", "007")
    assert readable_names(["cafe\u0301", "no", "yes", "00000"], str(tmp_path / "names.yaml"))[0] == "1e3"
    (tmp_path / "names.json").write_text(json.dumps({"yes": "\N{FOX FACE}"}))
    assert readable_names(["no", "yes"], str(tmp_path / "names.json")) == ("no", "\N{FOX FACE}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", "is no mapping: write lines such as 'name: text'"),
        ("a: [1]", "holds no names"),
        ("a: null", "holds no names"),
        ("a:", "holds no names"),
        ("{", "cannot be read"),
        ("c: dog", "names 'c', which no class folder is called"),
        ("a: dog\nb: dog", "'a' and 'b' are both called 'dog'. Rename one, or name them in a file"),
    ],
)
def test_a_file_that_does_not_fit_is_explained(tmp_path, text, message):
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        readable_names(["a", "b"], str(tmp_path / "names.yaml"))
    with pytest.raises(ValueError, match="nowhere.yaml' cannot be read"):
        readable_names(["a", "b"], "nowhere.yaml")


def test_a_runs_classes_have_these_names(photo_folder, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps({"cat": "house cat"}))
    dataset = open_dataset(DataConfig(source=str(photo_folder), names=str(tmp_path / "names.json")))
    assert dataset.class_names == ("house cat", "dog-2 legs", "plain & <bold>")
    assert dataset.pool[0].key == "cat/0.png"
