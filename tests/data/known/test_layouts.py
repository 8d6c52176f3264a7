"""Every data set is read from the files that are downloaded with it: photos, classes, parts and names."""

from __future__ import annotations

from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from datadream.data.known import KNOWN, list_known
from datadream.data.listing import Listing
from tests.data.known.unpacked import (
    COOP,
    GOLDFISH,
    SHARK,
    TENCH,
    UNPACK,
    add_coop_split,
    devkit,
    few_classes,
    imagenet_val_in_one_folder,
    kaggle_labels,
)

FISH = (TENCH, GOLDFISH, SHARK)
OFFICIAL = {
    "imagenet": (FISH, (6, 0, 3), f"train/{GOLDFISH}/{GOLDFISH}_1.JPEG", 1),
    "imagenet100": (FISH, (6, 0, 3), f"val/{SHARK}/ILSVRC2012_val_00000001.JPEG", 2),
    "caltech101": (("face", "airplane", "car_side"), (9, 0, 0), "101_ObjectCategories/airplanes/image_0002.jpg", 1),
    "pets": (("abyssinian", "american_bulldog"), (3, 0, 2), "images/american_bulldog_8.jpg", 1),
    "cars": (("2012 Acura RL Sedan", "2000 AM General Hummer SUV"), (3, 0, 2), "cars_train/00001.jpg", 1),
    "food101": (("apple_pie", "waffles"), (3, 0, 2), "images/waffles/4.jpg", 1),
    "aircraft": (("707-320", "Cessna 172"), (2, 1, 1), "images/0000001.jpg", 1),
    "sun397": (("abbey", "indoor apse", "indoor_seats theater"), (3, 0, 1), "SUN397/a/apse/indoor/sun_d.jpg", 1),
    "dtd": (("banded", "woven"), (2, 1, 1), "images/woven/woven_0003.jpg", 1),
    "eurosat": (("Annual Crop Land", "Sea or Lake"), (6, 0, 0), "2750/SeaLake/SeaLake_3.jpg", 1),
}
"""Names of classes, numbers of photos by part, and a photo with its label."""


def sizes(listing: Listing) -> tuple[int, ...]:
    return tuple(len(listing.keys.get(part, ())) for part in ("pool", "val", "test"))


def unpacked(name: str, root: Path, official: tuple[int, int, int, int]) -> Listing:
    UNPACK[name](root)
    return list_known(LocalFileSystem(), str(root), few_classes(name, official))


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_split(tmp_path, name):
    names, parts, photo, label = OFFICIAL[name]
    listing = unpacked(name, tmp_path, (len(names), *parts))
    assert listing.class_names == names
    assert sizes(listing) == parts
    assert (photo, label) in [each for photos in listing.keys.values() for each in photos]


def test_flowers_are_numbered_and_have_the_names_of_torchvision(tmp_path):
    listing = unpacked("flowers102", tmp_path, (102, 2, 2, 2))
    assert (listing.class_names[0], listing.class_names[59]) == ("pink primrose", "pink-yellow dahlia")
    assert listing.keys == {
        "pool": [("jpg/image_00001.jpg", 76), ("jpg/image_00004.jpg", 0)],
        "val": [("jpg/image_00002.jpg", 76), ("jpg/image_00003.jpg", 59)],
        "test": [("jpg/image_00005.jpg", 0), ("jpg/image_00006.jpg", 59)],
    }


@pytest.mark.parametrize("name", COOP)
def test_the_split_of_coop_comes_first(tmp_path, name):
    split = COOP[name]
    UNPACK[name](tmp_path)
    add_coop_split(name, tmp_path)
    sizes_there = tuple(map(len, split.values()))
    listing = list_known(LocalFileSystem(), str(tmp_path), few_classes(name, (0, 0, 0, 0), (2, *sizes_there)))
    assert sizes(listing) == sizes_there
    assert listing.class_names == tuple(name for _, name in sorted({row[1:] for row in split["train"]}))
    folder = {"cars": "", "caltech101": "101_ObjectCategories/", "eurosat": "2750/", "sun397": "SUN397/"}
    prefix = folder.get(name, f"{KNOWN[name].photos[0]}/")
    assert listing.keys["pool"] == [(f"{prefix}{path}", label) for path, label, _ in split["train"]]


@pytest.mark.parametrize("labels", [devkit, kaggle_labels])
def test_imagenets_validation_photos_as_downloaded(tmp_path, labels):
    in_folders = unpacked("imagenet", tmp_path, (3, 6, 0, 3))
    imagenet_val_in_one_folder(tmp_path)
    labels(tmp_path)
    listing = list_known(LocalFileSystem(), str(tmp_path), few_classes("imagenet", (3, 6, 0, 3)))
    assert listing.keys["test"] == [(f"val/ILSVRC2012_val_0000000{n}.JPEG", (2, 0, 1)[n - 1]) for n in (1, 2, 3)]
    assert {label for _, label in listing.keys["test"]} == {label for _, label in in_folders.keys["test"]}


def test_a_part_of_imagenet_leaves_its_other_classes_out(tmp_path):
    UNPACK["imagenet100"](tmp_path)
    for part in ("train", "val"):
        (tmp_path / part / "n01491361").mkdir()
        (tmp_path / part / "n01491361" / "a.JPEG").write_bytes(b"")
    listing = list_known(LocalFileSystem(), str(tmp_path), few_classes("imagenet100", (3, 6, 0, 3)))
    assert dict(listing.left_out) == {"folders of other classes": 1}
    assert listing.class_names == FISH


def test_partitions_of_sun_in_a_folder_of_their_own(tmp_path):
    UNPACK["sun397"](tmp_path)
    for file in tmp_path.glob("*_01.txt"):
        (tmp_path / "Partitions").mkdir(exist_ok=True)
        file.rename(tmp_path / "Partitions" / file.name)
    (tmp_path / "ClassName.txt").rename(tmp_path / "SUN397" / "ClassName.txt")
    assert sizes(list_known(LocalFileSystem(), str(tmp_path), few_classes("sun397", (3, 3, 0, 1)))) == (3, 0, 1)
