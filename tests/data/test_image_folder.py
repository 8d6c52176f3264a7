"""Folders as people have them: parts, links, litter and odd names, with an account of what was left out."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from datadream.data.image_folder import Listing, is_class_folder, list_photos


def fill(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"a photo")
    return root


def listed(root: Path) -> Listing:
    return list_photos(LocalFileSystem(), str(root))


def keys(listing: Listing, part: str = "pool") -> list[str]:
    return [key for key, _ in listing.keys.get(part, [])]


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "valid", "Testing"), ("TRAIN", "dev", "eval")]
)
def test_parts_in_their_usual_spellings(tmp_path, names):
    listing = listed(fill(tmp_path, *(f"{part}/{name}/0.jpg" for part in names for name in ("a", "b"))))
    assert listing.class_names == ("a", "b")
    assert {part: len(photos) for part, photos in listing.keys.items()} == {"pool": 2, "val": 2, "test": 2}
    assert not listing.left_out


def test_a_test_folder_beside_the_classes(tmp_path):
    listing = listed(fill(tmp_path, "a/0.jpg", "b/0.jpg", "test/a/1.jpg"))
    assert keys(listing) == ["a/0.jpg", "b/0.jpg"]
    assert listing.keys["test"] == [("test/a/1.jpg", 0)]


@pytest.mark.parametrize("called", ["train", "test", "dev"])
def test_a_class_may_be_called_like_a_part(tmp_path, called):
    listing = listed(fill(tmp_path, "bus/0.jpg", "car/0.jpg", f"{called}/0.jpg"))
    assert listing.class_names == tuple(sorted(["bus", "car", called]))
    assert list(listing.keys) == ["pool"]


def test_photos_in_folders_of_a_class_and_every_suffix(tmp_path):
    names = ["a/2019/0.JPG", "a/x/y/1.tiff", "b/0.jfif", "b/1.bmp", "b/2.Gif", "b/3.heic", "b/4.avif", "b/5.jpe"]
    assert sorted(keys(listed(fill(tmp_path, *names)))) == sorted(names)


def test_what_is_left_out_is_counted(tmp_path):
    photos = ["a/0.jpg", "b/0.jpg"]
    litter = [
        "a/.DS_Store",
        "a/Thumbs.db",
        "a/._0.jpg",
        "__MACOSX/a/0.jpg",
        "@eaDir/0.jpg",
        ".ipynb_checkpoints/0.jpg",
    ]
    listing = listed(fill(tmp_path, *photos, *litter, "a/notes.txt", "a/1.mp4", "a/2.mp4", "b/README"))
    assert keys(listing) == photos
    assert dict(listing.left_out) == {
        "system folders": 3,
        "system files": 3,
        ".txt files": 1,
        ".mp4 files": 2,
        "no suffix files": 1,
    }


def test_folders_beside_the_parts_are_named(tmp_path):
    listing = listed(fill(tmp_path, "train/a/0.jpg", "train/b/0.jpg", "extra/a/0.jpg"))
    assert dict(listing.left_out) == {"folder extra/ beside train/": 1}


def test_linked_classes_and_photos(tmp_path):
    elsewhere = fill(tmp_path / "elsewhere", "cats/0.jpg", "dog.jpg")
    root = fill(tmp_path / "root", "b/0.jpg")
    (root / "a").symlink_to(elsewhere / "cats")
    (root / "b" / "1.jpg").symlink_to(elsewhere / "dog.jpg")
    (root / "b" / "2.jpg").symlink_to(elsewhere / "gone.jpg")
    (root / "b" / "round").symlink_to(root / "b")
    listing = listed(root)
    assert {"a/0.jpg", "b/0.jpg", "b/1.jpg"} <= set(keys(listing))
    assert listing.left_out["links to nothing"] > 0


def test_one_name_in_two_spellings_of_unicode(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    listing = listed(fill(tmp_path, f"train/{composed}/0.jpg", "train/b/0.jpg", f"test/{decomposed}/0.jpg"))
    assert listing.class_names == ("b", composed)
    assert listing.keys["test"] == [(f"test/{decomposed}/0.jpg", 1)]
    with pytest.raises(ValueError, match="the same name in two spellings. Join them"):
        listed(fill(tmp_path, f"train/{decomposed}/0.jpg"))


def test_names_that_are_not_utf8(tmp_path):
    fill(tmp_path, "a/0.jpg")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9"))).mkdir()
    with pytest.raises(ValueError, match="is not in UTF-8. Rename it"):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a/0.jpg"], r"has 1 class folders \(a\): need at least 2"),
        (["0.jpg", "1.jpg"], "has 0 class folders: need at least 2"),
        (["a/0.jpg", "b/0.mp4"], r"b' holds no image \(left out: 1 .mp4 files\)"),
        (
            ["train/a/0.jpg", "train/b/0.jpg", "test/c/0.jpg"],
            "has class 'c', which the training photos lack. Known: a, b",
        ),
    ],
)
def test_what_is_no_set_of_classes_is_explained(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        listed(fill(tmp_path, *files))


@pytest.mark.parametrize(
    ("photos", "folder", "is_class"),
    [
        (("a/0.jpg", "b/0.jpg"), "runs/one", True),
        (("a/0.jpg", "b/0.jpg"), "a/runs", True),
        (("a/0.jpg", "b/0.jpg"), ".", True),
        (("a/0.jpg", "b/0.jpg"), "../runs", False),
        (("a/0.jpg", "b/0.jpg"), ".runs/one", False),
        (("train/a/0.jpg", "train/b/0.jpg"), "runs/one", False),
        (("train/a/0.jpg", "train/b/0.jpg"), "train/runs", True),
    ],
)
def test_folders_that_would_be_a_class(tmp_path, photos, folder, is_class):
    root = fill(tmp_path / "photos", *photos)
    assert is_class_folder(LocalFileSystem(), str(root), os.path.normpath(root / folder)) is is_class
