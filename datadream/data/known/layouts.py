"""Readers of the files that say which photo is of which class and part, one for each format. Paths in what they return
count from the data set's folder, and classes have the names of CoOp (Zhou et al., 2022)."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

from datadream.data.known.place import Place
from datadream.data.listing import Listing
from datadream.data.names import WORDNET_ID

PARTS = {"pool": "train", "val": "val", "test": "test"}
"""What files call the parts that a listing has."""

KAGGLE_FOLDER = "ILSVRC/Data/CLS-LOC"
"""Where ImageNet's photos are on Kaggle, three folders below its labels."""

Labelled = Iterable[tuple[str, str]]
"""Paths of photos, and their classes."""


def coop_split(place: Place, file: str, paths_from: str = ".") -> Listing:
    """CoOp's split_zhou_<set>.json: {"train": [[path, label, class], ...], "val": ..., "test": ...}, with paths from
    `paths_from`, seen from the folder of photos."""
    found = place.json(file)
    listing, names = Listing(), dict[int, str]()
    for part, key in PARTS.items():
        listing.keys[part] = []
        for path, label, name in found[key]:
            if names.setdefault(label, name) != name:
                raise ValueError(f"{file} calls class {label} both {names[label]!r} and {name!r}")
            whole = posixpath.normpath(posixpath.join(place.photos, paths_from, path))
            listing.keys[part].append((whole, label))
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{file} numbers its {len(names)} classes {min(names)} to {max(names)}, with gaps")
    listing.class_names = tuple(name for _, name in sorted(names.items()))
    return listing


def pets(place: Place) -> Listing:
    """annotations/trainval.txt and test.txt: "Abyssinian_100 1 1 1"; the class is what stands before the number."""
    files = {"pool": "annotations/trainval.txt", "test": "annotations/test.txt"}
    parts = {part: [line.split()[0] for line in _lines(place.text(file))] for part, file in files.items()}
    return _listing(
        {
            part: [(f"{place.photos}/{name}.jpg", name.rpartition("_")[0].lower()) for name in names]
            for part, names in parts.items()
        }
    )


def cars(place: Place) -> Listing:
    """The devkit's MATLAB files; a name's year comes first, as in CoOp."""
    names = [str(name) for name in place.mat("devkit/cars_meta.mat")["class_names"]]
    years_first = [" ".join([*name.split()[-1:], *name.split()[:-1]]) for name in names]
    # By part the folder of its photos, and where the file of their classes may lie.
    files = {
        "pool": ("cars_train", "devkit/cars_train_annos.mat"),
        "test": ("cars_test", "cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"),
    }
    photos = {
        part: [
            (f"{folder}/{each['fname']}", years_first[int(each["class"]) - 1])
            for each in place.mat(*paths)["annotations"]
        ]
        for part, (folder, *paths) in files.items()
    }
    return _listing(photos, years_first)


def flowers(place: Place) -> Listing:
    """imagelabels.mat and setid.mat, which have no names: those are torchvision's, as in CoOp."""
    from torchvision.datasets import Flowers102  # torch takes seconds to import, and few need it

    # The one question mark is of a botanist who was not sure.
    names = [name.rstrip("?") for name in Flowers102.classes]
    labels, parts = place.mat("imagelabels.mat")["labels"], place.mat("setid.mat")
    columns = {"pool": "trnid", "val": "valid", "test": "tstid"}
    photos = {
        part: [
            # MATLAB counts from 1, photos and labels alike.
            (f"{place.photos}/image_{number:05d}.jpg", names[int(labels[number - 1]) - 1])
            for number in parts[column]
        ]
        for part, column in columns.items()
    }
    return _listing(photos, names)


def food(place: Place) -> Listing:
    """meta/train.json and test.json: {"apple_pie": ["apple_pie/1005649", ...], ...}."""
    parts = {"pool": place.json("meta/train.json"), "test": place.json("meta/test.json")}
    return _listing(
        {
            part: [(f"{place.photos}/{path}.jpg", name) for name, paths in found.items() for path in paths]
            for part, found in parts.items()
        }
    )


def aircraft(place: Place) -> Listing:
    """images_variant_train.txt, _val.txt and _test.txt: "1025794 707-320"."""
    texts = {part: place.text(f"images_variant_{name}.txt") for part, name in PARTS.items()}
    photos = {
        part: [
            # A variant may have blanks in its name, and a photo's number has none.
            (f"{place.photos}/{number}.jpg", variant)
            for number, _, variant in (line.partition(" ") for line in _lines(text))
        ]
        for part, text in texts.items()
    }
    return _listing(photos, _lines(place.text("variants.txt")))


def sun(place: Place) -> Listing:
    """The first of ten partitions: "/a/abbey/sun_aaa.jpg"; /a/apse/indoor is called "indoor apse", as in CoOp."""

    def class_of(folder: str) -> str:
        return " ".join(reversed(folder.strip("/").split("/")[1:]))

    folders, pool, test = (
        _lines(place.text(file, f"Partitions/{file}", f"{place.photos}/{file}"))
        for file in ("ClassName.txt", "Training_01.txt", "Testing_01.txt")
    )
    photos = {
        part: [(f"{place.photos}{path}", class_of(posixpath.dirname(path))) for path in paths]
        for part, paths in (("pool", pool), ("test", test))
    }
    return _listing(photos, map(class_of, folders))


def textures(place: Place) -> Listing:
    """The first of ten splits, labels/train1.txt, val1.txt and test1.txt: "banded/banded_0002.jpg"."""
    parts = {part: _lines(place.text(f"labels/{name}1.txt")) for part, name in PARTS.items()}
    return _listing(
        {
            part: [(f"{place.photos}/{path}", posixpath.dirname(path)) for path in paths]
            for part, paths in parts.items()
        }
    )


def class_folders(place: Place, names: Mapping[str, str], ignored: Sequence[str] = ()) -> Listing:
    """Folders of classes without an official split: all photos are in the pool; `names` are those of the folders."""
    _check_folders(place, place.photos, names, "|".join(ignored))
    return _listing({"pool": _in_folders(place, place.photos, names)}, names.values())


def imagenet(place: Place, ids: Callable[[], Iterable[str]]) -> Listing:
    """train/<id>/ and val/, which is the test part, in folders or in one with the devkit's or Kaggle's labels beside
    it; classes beyond `ids` are left out where there are fewer than ImageNet's."""
    classes = sorted(ids())
    others = "" if len(classes) == 1000 else WORDNET_ID.pattern
    left_out = Counter({"folders of other classes": _check_folders(place, place.photos, classes, others)})
    if place.folders("val"):
        _check_folders(place, "val", classes, others)
        test = list(_in_folders(place, "val", {name: name for name in classes}))
    else:
        labels = _val_labels(place)
        test = [(f"val/{name}", labels[name]) for name in place.images("val")]
    wanted = set(classes)
    pool = _in_folders(place, place.photos, {name: name for name in classes})
    listing = _listing({"pool": pool, "test": (each for each in test if each[1] in wanted)}, classes)
    listing.left_out = +left_out  # without the reasons that nothing was left out for
    return listing


def _val_labels(place: Place) -> dict[str, str]:
    """Classes of ImageNet's 50,000 validation photos by file name."""
    devkit = "ILSVRC2012_devkit_t12/data"
    kaggle = f"{'../../../' if place.root.endswith(KAGGLE_FOLDER) else ''}LOC_val_solution.csv"
    file = place.first(f"{devkit}/ILSVRC2012_validation_ground_truth.txt", kaggle)
    if file == kaggle:  # "ILSVRC2012_val_00048981,n03995372 85 1 499 272 n03995372 ..."
        # Without the line of headings. The first word is the class; coordinates of boxes follow.
        rows = (row.split(",") for row in _lines(place.text(file))[1:])
        return {f"{name}.JPEG": boxes.split()[0] for name, boxes in rows}
    synsets = place.mat(f"{devkit}/meta.mat")["synsets"]
    ids = {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in synsets}
    return {
        f"ILSVRC2012_val_{number:08d}.JPEG": ids[int(line)]
        for number, line in enumerate(_lines(place.text(file)), start=1)
    }


def _check_folders(place: Place, folder: str, known: Iterable[str], ignored: str) -> int:
    """Raises ValueError where a class has no folder, or a folder no class; returns how many match `ignored`."""
    classes, found = set(known), set(place.folders(folder))
    others = {name for name in found - classes if ignored and re.fullmatch(ignored, name)}
    wrong = {"classes without one": classes - found, "folders of no class": found - classes - others}
    told = [f"{what}: {len(names)} (the first {min(names)!r})" for what, names in wrong.items() if names]
    if told:
        raise ValueError(f"{folder}/ should have a folder for each of {len(classes)} classes, but {'; '.join(told)}")
    return len(others)


def _in_folders(place: Place, folder: str, names: Mapping[str, str]) -> Labelled:
    for below, name in names.items():
        inside = posixpath.normpath(posixpath.join(folder, below))
        yield from ((f"{inside}/{photo}", name) for photo in place.images(inside))


def _listing(parts: Mapping[str, Labelled], names: Iterable[str] | None = None) -> Listing:
    """Labels are the places of classes in `names`, or in alphabetical order."""
    photos = {part: list(found) for part, found in parts.items()}
    known = tuple(names) if names is not None else tuple(sorted({name for _, name in chain(*photos.values())}))
    labels = {name: label for label, name in enumerate(known)}
    return Listing(known, {part: [(path, labels[name]) for path, name in found] for part, found in photos.items()})


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
