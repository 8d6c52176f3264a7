"""Small data sets in the files and folders in which the real ones are unpacked: a few classes, and empty photos."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy.io import savemat

from datadream.data.known import KNOWN, KnownSet, layouts
from datadream.data.known.sets import Counts

TENCH, GOLDFISH, SHARK = "n01440764", "n01443537", "n01484850"
Split = dict[str, list[tuple[str, int, str]]]


def photos(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def text(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def structs(**columns: list) -> np.ndarray:
    """A MATLAB struct array, 1 x n."""
    rows = list(zip(*columns.values(), strict=True))
    return np.array([rows], dtype=[(name, object) for name in columns])


def cells(*values: str) -> np.ndarray:
    return np.array([values], dtype=object)


def pets(root: Path) -> None:
    text(root / "annotations/trainval.txt", ["Abyssinian_100 1 1 1", "Abyssinian_2 1 1 1", "american_bulldog_7 2 2 1"])
    text(root / "annotations/test.txt", ["Abyssinian_201 1 1 1", "american_bulldog_8 2 2 1"])
    names = ["Abyssinian_100", "Abyssinian_2", "american_bulldog_7", "Abyssinian_201", "american_bulldog_8"]
    photos(root, *(f"images/{name}.jpg" for name in names), "images/Abyssinian_100.mat")


def cars(root: Path) -> None:
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit/cars_meta.mat", {"class_names": cells("Acura RL Sedan 2012", "AM General Hummer SUV 2000")})
    for file, columns in (
        ("devkit/cars_train_annos.mat", {"class": [2, 1, 1], "fname": ["00001.jpg", "00002.jpg", "00003.jpg"]}),
        ("cars_test_annos_withlabels.mat", {"class": [1, 2], "fname": ["00001.jpg", "00002.jpg"]}),
    ):
        savemat(root / file, {"annotations": structs(bbox_x1=[7] * len(columns["class"]), **columns)})
    photos(root, *(f"cars_train/0000{n}.jpg" for n in (1, 2, 3)), *(f"cars_test/0000{n}.jpg" for n in (1, 2)))


def flowers102(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    savemat(root / "imagelabels.mat", {"labels": np.array([[77, 77, 60, 1, 1, 60]], np.uint8)})
    numbers = {"trnid": [1, 4], "valid": [2, 3], "tstid": [5, 6]}
    savemat(root / "setid.mat", {name: np.array([found], np.uint16) for name, found in numbers.items()})
    photos(root, *(f"jpg/image_{n:05d}.jpg" for n in range(1, 7)))


def food101(root: Path) -> None:
    parts = {
        "train": {"apple_pie": ["apple_pie/1", "apple_pie/2"], "waffles": ["waffles/1"]},
        "test": {"apple_pie": ["apple_pie/3"], "waffles": ["waffles/4"]},
    }
    for part, found in parts.items():
        text(root / f"meta/{part}.json", [json.dumps(found)])
        photos(root, *(f"images/{path}.jpg" for paths in found.values() for path in paths))


def aircraft(root: Path) -> None:
    text(root / "variants.txt", ["707-320", "Cessna 172"])
    parts = {"train": ["1025794 707-320", "0000001 Cessna 172"], "val": ["2 Cessna 172"], "test": ["3 707-320"]}
    for part, lines in parts.items():
        text(root / f"images_variant_{part}.txt", lines)
        photos(root, *(f"images/{line.split()[0]}.jpg" for line in lines))


def sun397(root: Path) -> None:
    text(root / "ClassName.txt", ["/a/abbey", "/a/apse/indoor", "/t/theater/indoor_seats"])
    train = ["/a/abbey/sun_a.jpg", "/a/apse/indoor/sun_b.jpg", "/t/theater/indoor_seats/sun_c.jpg"]
    test = ["/a/apse/indoor/sun_d.jpg"]
    text(root / "Training_01.txt", train)
    text(root / "Testing_01.txt", test)
    photos(root, *(f"SUN397{path}" for path in train + test))


def dtd(root: Path) -> None:
    parts = {"train": ["banded/banded_0002.jpg", "woven/woven_0001.jpg"], "val": ["woven/woven_0003.jpg"]}
    for part, paths in (parts | {"test": ["banded/banded_0004.jpg"]}).items():
        text(root / f"labels/{part}1.txt", paths)
        photos(root, *(f"images/{path}" for path in paths))


def caltech101(root: Path) -> None:
    folders = ("Faces", "airplanes", "car_side", "BACKGROUND_Google", "Faces_easy")
    photos(root / "101_ObjectCategories", *(f"{name}/image_000{n}.jpg" for name in folders for n in (1, 2, 3)))


def eurosat(root: Path) -> None:
    photos(root / "2750", *(f"{name}/{name}_{n}.jpg" for name in ("AnnualCrop", "SeaLake") for n in (1, 2, 3)))


def imagenet(root: Path) -> None:
    photos(root, *(f"train/{name}/{name}_{n}.JPEG" for name in (TENCH, GOLDFISH, SHARK) for n in (1, 2)))
    classes = {1: SHARK, 2: TENCH, 3: GOLDFISH}
    photos(root, *(f"val/{name}/ILSVRC2012_val_{n:08d}.JPEG" for n, name in classes.items()))


def imagenet_val_in_one_folder(root: Path) -> None:
    for photo in sorted((root / "val").glob("*/*.JPEG")):
        photo.rename(root / "val" / photo.name)
        photo.parent.rmdir()


def devkit(root: Path) -> None:
    """ImageNet's labels of its validation photos, in the order of their numbers; its own ids are not in that of
    WordNet's."""
    data = root / "ILSVRC2012_devkit_t12/data"
    text(data / "ILSVRC2012_validation_ground_truth.txt", ["1", "3", "2"])
    ids, names = [1, 2, 3, 1860], [SHARK, GOLDFISH, TENCH, "n00001740"]
    synsets = structs(ILSVRC2012_ID=ids, WNID=names, words=names, num_children=[0, 0, 0, 18])
    savemat(data / "meta.mat", {"synsets": synsets.T})


def kaggle_labels(root: Path) -> None:
    """The same as on Kaggle."""
    boxes = {2: f"{TENCH} 1 2 3 4", 1: f"{SHARK} 1 2 3 4 {SHARK} 5 6 7 8", 3: f"{GOLDFISH} 1 2 3 4"}
    rows = [f"ILSVRC2012_val_{n:08d},{box}" for n, box in boxes.items()]
    text(root / "LOC_val_solution.csv", ["ImageId,PredictionString", *rows])


UNPACK: dict[str, Callable[[Path], None]] = {
    "imagenet": imagenet,
    "imagenet100": imagenet,
    "caltech101": caltech101,
    "pets": pets,
    "cars": cars,
    "flowers102": flowers102,
    "food101": food101,
    "aircraft": aircraft,
    "sun397": sun397,
    "dtd": dtd,
    "eurosat": eurosat,
}
COOP: dict[str, Split] = {
    "caltech101": {
        "train": [("Faces/image_0001.jpg", 0, "face"), ("car_side/image_0001.jpg", 1, "car_side")],
        "val": [("Faces/image_0002.jpg", 0, "face")],
        "test": [("car_side/image_0003.jpg", 1, "car_side")],
    },
    "pets": {
        "train": [("Abyssinian_100.jpg", 0, "abyssinian"), ("american_bulldog_7.jpg", 1, "american_bulldog")],
        "val": [("Abyssinian_2.jpg", 0, "abyssinian")],
        "test": [("Abyssinian_201.jpg", 0, "abyssinian"), ("american_bulldog_8.jpg", 1, "american_bulldog")],
    },
    "cars": {
        "train": [("cars_train/00002.jpg", 0, "2012 Acura RL Sedan"), ("cars_train/00001.jpg", 1, "2000 AM SUV")],
        "val": [("cars_train/00003.jpg", 0, "2012 Acura RL Sedan")],
        "test": [("cars_test/00001.jpg", 0, "2012 Acura RL Sedan")],
    },
    "flowers102": {
        "train": [("image_00001.jpg", 1, "passion flower"), ("image_00004.jpg", 0, "pink primrose")],
        "val": [],
        "test": [("image_00002.jpg", 1, "passion flower")],
    },
    "food101": {
        "train": [("apple_pie/3.jpg", 0, "apple_pie"), ("waffles/1.jpg", 1, "waffles")],
        "val": [("apple_pie/1.jpg", 0, "apple_pie")],
        "test": [("apple_pie/2.jpg", 0, "apple_pie")],
    },
    "sun397": {
        "train": [("a/abbey/sun_a.jpg", 0, "abbey"), ("a/apse/indoor/sun_d.jpg", 1, "indoor apse")],
        "val": [],
        "test": [("a/apse/indoor/sun_b.jpg", 1, "indoor apse")],
    },
    "dtd": {
        "train": [("banded/banded_0004.jpg", 0, "banded"), ("woven/woven_0003.jpg", 1, "woven")],
        "val": [],
        "test": [("banded/banded_0002.jpg", 0, "banded")],
    },
    "eurosat": {
        "train": [("AnnualCrop/AnnualCrop_1.jpg", 0, "Annual Crop Land"), ("SeaLake/SeaLake_1.jpg", 1, "Sea or Lake")],
        "val": [("SeaLake/SeaLake_2.jpg", 1, "Sea or Lake")],
        "test": [("AnnualCrop/AnnualCrop_2.jpg", 0, "Annual Crop Land")],
    },
}
"""CoOp's split of each set that has one."""


def few_classes(
    name: str, official: tuple[int, int, int, int], coop: tuple[int, int, int, int] | None = None
) -> KnownSet:
    """A known set, but with the classes and the numbers of a small one."""
    known = KNOWN[name]
    reader = known.official
    if name in ("imagenet", "imagenet100"):
        reader = partial(layouts.imagenet, ids=[SHARK, TENCH, GOLDFISH].copy)
    elif isinstance(reader, partial):
        folders = ("Faces", "airplanes", "car_side") if name == "caltech101" else ("AnnualCrop", "SeaLake")
        reader = partial(reader, names={folder: reader.keywords["names"][folder] for folder in folders})
    split = known.coop._replace(counts=Counts(*coop)) if known.coop and coop else known.coop
    return replace(known, official=reader, official_counts=Counts(*official), coop=split)


def add_coop_split(name: str, root: Path, split: Split | None = None) -> None:
    (root / str(KNOWN[name].coop.file)).write_text(json.dumps(COOP[name] if split is None else split))
