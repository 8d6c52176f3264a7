"""Known data sets are found where they were unpacked, and what is not as published is one line."""

from __future__ import annotations

import json
from dataclasses import replace

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from datadream.data.known import KNOWN, KnownSet, list_known
from datadream.data.known.sets import Counts
from datadream.data.listing import Listing
from tests.data.known.unpacked import (
    COOP,
    TENCH,
    UNPACK,
    add_coop_split,
    few_classes,
    imagenet_val_in_one_folder,
    text,
)

PETS = few_classes("pets", (2, 3, 0, 2), (2, 2, 1, 2))


def listed(root, known: KnownSet = PETS) -> Listing:
    return list_known(LocalFileSystem(), str(root), known)


@pytest.mark.parametrize("folder", ["oxford_pets", "oxford-iiit-pet"])
def test_a_folder_of_the_usual_name_below_the_source(tmp_path, folder):
    UNPACK["pets"](tmp_path / folder)
    assert listed(tmp_path).keys["test"][0] == (f"{folder}/images/Abyssinian_201.jpg", 0)


def test_any_file_system(tmp_path):
    UNPACK["pets"](tmp_path)
    add_coop_split("pets", tmp_path)
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path), "/sets/pets", recursive=True)
    try:
        assert list_known(fs, "/sets/pets", PETS).keys == listed(tmp_path).keys
    finally:
        fs.rm("/sets", recursive=True)


def test_photos_in_no_part_are_counted(tmp_path):
    UNPACK["pets"](tmp_path)
    (tmp_path / "images" / "Abyssinian_34.jpg").write_bytes(b"")
    assert dict(listed(tmp_path).left_out) == {"photos that no part has": 1}


@pytest.mark.parametrize(("name", "said"), [("pets", "official split is taken"), ("eurosat", "is no official split")])
def test_without_the_papers_split_it_is_said(tmp_path, caplog, name, said):
    UNPACK[name](tmp_path)
    listed(tmp_path, PETS if name == "pets" else few_classes("eurosat", (2, 6, 0, 0)))
    assert said in caplog.text
    assert str(KNOWN[name].coop.file) in caplog.text


def test_a_set_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="Pet is not in .*no folder images.*oxford_pets.*; get it at https"):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("pets", "annotations/test.txt", "annotations/test.txt is not in .*needs annotations/; get it at https"),
        ("cars", "devkit/cars_meta.mat", "devkit/cars_meta.mat is not in .*needs cars_test/, devkit/"),
        (
            "sun397",
            "Testing_01.txt",
            "Testing_01.txt or Partitions/Testing_01.txt or .* of Partitions.zip; get",
        ),
    ],
)
def test_a_file_of_annotations_that_is_missing(tmp_path, name, file, message):
    UNPACK[name](tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        listed(tmp_path, KNOWN[name])


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("food101", "meta/train.json", b"{", r"meta/train.json is no JSON"),
        ("food101", "meta/train.json", b'["apple_pie/1"]', "is not as it is published: AttributeError"),
        ("cars", "devkit/cars_meta.mat", b"MATLAB 5.0", "devkit/cars_meta.mat is no MATLAB file"),
        ("aircraft", "variants.txt", b"\xff\xfe7", "variants.txt is not in UTF-8"),
        ("aircraft", "variants.txt", b"707-320\n", "KeyError 'Cessna 172'"),
        ("pets", "split_zhou_OxfordPets.json", b'{"train": []}', "is not as it is published: KeyError 'val'"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, name, file, content, message):
    UNPACK[name](tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message) as told:
        listed(tmp_path, KNOWN[name])
    assert KNOWN[name].url in str(told.value)
    assert "\n" not in str(told.value)


def test_numbers_that_are_not_those_published(tmp_path):
    UNPACK["pets"](tmp_path)
    with pytest.raises(
        ValueError,
        match="found 2 classes with 3 train, 0 val and 2 test photos, but 37 classes with 3,680 train, 0 val and",
    ):
        listed(tmp_path, KNOWN["pets"])
    add_coop_split("pets", tmp_path)
    with pytest.raises(ValueError, match="found 2 classes with 2 train, 1 val and 2 test .* 2,944 train, 736 val"):
        listed(tmp_path, KNOWN["pets"])


def test_photos_of_a_split_that_are_absent(tmp_path):
    UNPACK["pets"](tmp_path)
    add_coop_split("pets", tmp_path)
    for name in ("Abyssinian_201", "american_bulldog_8"):
        (tmp_path / "images" / f"{name}.jpg").unlink()
    with pytest.raises(ValueError, match="2 of 5 photos are not in .*, the first is 'images/Abyssinian_201.jpg'"):
        listed(tmp_path)


def test_a_photo_in_two_parts_or_outside(tmp_path):
    UNPACK["pets"](tmp_path)
    for path, message in (
        ("./Abyssinian_201.jpg", "'images/Abyssinian_201.jpg' of test is in val already"),
        ("../../secret.jpg", "'../secret.jpg' of val is outside of it"),
    ):
        add_coop_split("pets", tmp_path, COOP["pets"] | {"val": [(path, 0, "abyssinian")]})
        with pytest.raises(ValueError, match=message):
            listed(tmp_path)


def test_a_split_whose_labels_do_not_fit_its_names(tmp_path):
    UNPACK["pets"](tmp_path)
    for val, message in (
        ([("Abyssinian_2.jpg", 0, "birman")], "calls class 0 both 'abyssinian' and 'birman'"),
        ([("Abyssinian_2.jpg", 7, "birman")], "numbers its 3 classes 0 to 7, with gaps"),
    ):
        add_coop_split("pets", tmp_path, COOP["pets"] | {"val": val})
        with pytest.raises(ValueError, match=message):
            listed(tmp_path)


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("caltech101", "101_ObjectCategories/frog", "3 classes, but folders of no class: 1 .the first 'frog'"),
        ("eurosat", "2750/Lake", "2 classes, but folders of no class: 1 .the first 'Lake'"),
        ("imagenet", "train/cats", "3 classes, but folders of no class: 1 .the first 'cats'"),
    ],
)
def test_a_folder_that_is_no_class(tmp_path, name, extra, message):
    UNPACK[name](tmp_path)
    (tmp_path / extra).mkdir()
    with pytest.raises(ValueError, match=message):
        listed(tmp_path, few_classes(name, (0, 0, 0, 0)))


def test_a_class_without_its_folder(tmp_path):
    UNPACK["eurosat"](tmp_path)
    with pytest.raises(ValueError, match="should have a folder for each of 10 .* without one: 8 .the first 'Forest'"):
        listed(tmp_path, KNOWN["eurosat"])


def test_validation_photos_of_imagenet_without_labels(tmp_path):
    UNPACK["imagenet"](tmp_path)
    imagenet_val_in_one_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="ILSVRC2012_devkit_t12/data/.* or LOC_val_solution.csv .*is not in"):
        listed(tmp_path, few_classes("imagenet", (3, 6, 0, 3)))
    text(tmp_path / "LOC_val_solution.csv", ["ImageId,PredictionString", f"ILSVRC2012_val_00000001,{TENCH} 1 1 2 2"])
    with pytest.raises(ValueError, match="KeyError 'ILSVRC2012_val_00000002.JPEG'"):
        listed(tmp_path, few_classes("imagenet", (3, 6, 0, 3)))


def test_counts_are_those_of_the_split_that_is_read(tmp_path):
    UNPACK["pets"](tmp_path)
    swapped = replace(PETS, official_counts=Counts(2, 2, 1, 2), coop=PETS.coop._replace(counts=Counts(2, 3, 0, 2)))
    with pytest.raises(ValueError, match="found 2 classes with 3 train"):
        listed(tmp_path, swapped)
    (tmp_path / str(PETS.coop.file)).write_text(json.dumps(COOP["pets"]))
    with pytest.raises(ValueError, match="found 2 classes with 2 train"):
        listed(tmp_path, swapped)
