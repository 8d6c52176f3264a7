"""Labelled photos in three parts: a pool to sample shots from, a validation part and a test part.

`digits` is scikit-learn's copy of the UCI handwritten digits: 1,797 scans, real data inside a dependency. Any other
source is an image folder, one that holds a data set of the paper as it was unpacked, a list of photos or a data set of
the library `datasets`. One without a test part, such as a folder with only classes, is as good: few_shot.sample_shots
then keeps a part of every class for validation and test, so that people with spare photos still get an honest figure.
"""

from __future__ import annotations

import functools
import os
import posixpath
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from datadream.config import WHITE, DataConfig, KnownDataset
from datadream.data.decode import decode_photo, look_of
from datadream.data.hugging_face import HUB, is_saved, list_examples, read_example
from datadream.data.image_folder import is_class_folder, list_classes, list_photos
from datadream.data.known import GUIDE, KNOWN, given_shots, list_known
from datadream.data.listing import Listing
from datadream.data.names import readable_names
from datadream.data.photo_list import LIST_SUFFIXES, list_rows
from datadream.data.whole_file import read_whole
from datadream.hashing import sha256

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS_PIXELS = 32


@dataclass(frozen=True, slots=True)
class Photo:
    """One labelled photo; `key` finds it in its source."""

    key: str
    label: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """Photos by part, and the names of their classes by label."""

    class_names: tuple[str, ...]
    pool: tuple[Photo, ...]
    val: tuple[Photo, ...]
    test: tuple[Photo, ...]
    flippable: bool
    """Whether a mirrored photo still belongs to its class."""
    few_val: int | None = None
    """Most validation photos of a class that a few-shot set takes, and never more than shots; None: all of them."""
    left_out: tuple[str, ...] = ()
    """What was found beside the photos and not taken, each with its number."""


class Fingerprint(NamedTuple):
    """By what copies of one photo are known."""

    content: str
    """Equal for equal files."""
    look: int | None
    """See look_of; None where that tells nothing."""


class PhotoSource(Protocol):
    """Where photos come from. Cheap to make and to pickle, so that workers can open it themselves."""

    def dataset(self) -> Dataset:
        """List the photos; raises FileNotFoundError or ValueError when the source is not usable."""
        ...

    def read(self, key: str) -> Image.Image:
        """Decode one photo as RGB; raises ValueError naming a photo that cannot be decoded."""
        ...

    def fingerprint(self, key: str) -> Fingerprint:
        """By what copies of one photo are known; reads it once, and raises ValueError as `read` does."""
        ...


def open_source(source: str, background: str = WHITE) -> PhotoSource:
    """The source that `data.source` names; `background` shows through transparent photos.

    Raises FileNotFoundError when it is neither known nor there, ValueError when its file system cannot be reached.
    """
    if source == "digits":
        return Digits()
    if source.startswith(HUB):
        return HuggingFace(source, background)
    try:
        fs, root = fsspec.core.url_to_fs(source)
        is_list = source.lower().endswith(LIST_SUFFIXES) and fs.isfile(root)
        is_folder = not is_list and fs.isdir(root)
    except Exception as error:  # every file system has its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"data.source {source!r} cannot be reached: {reason}. Check it, and its file system's package, endpoint "
            "and credentials."
        ) from None
    if is_list:
        return PhotoList(source, background)
    if not is_folder:
        raise FileNotFoundError(
            f"data.source is {source!r}: neither a known data set nor a folder that exists. "
            "Use 'digits', a folder with one sub-folder of photos per class, a list of photos "
            f"({', '.join(LIST_SUFFIXES)}) or {HUB}<owner>/<name>."
        )
    # The library reads folders of this machine alone.
    is_local = isinstance(fs, LocalFileSystem)
    return HuggingFace(root, background) if is_local and is_saved(Path(root)) else ImageFolder(source, background)


def open_dataset(config: DataConfig) -> Dataset:
    """The photos that a run's config names, with readable class names; raises what its source and names file raise."""
    if config.dataset is None:
        dataset = open_source(config.source, config.background).dataset()
    else:
        dataset = _known_dataset(config.source, config.background, config.dataset, config.shots)
    return replace(dataset, class_names=readable_names(dataset.class_names, config.names))


# Once: the runs of a table share one list of photos, and ImageNet's has 1.3 million.
@functools.cache
def _known_dataset(location: str, background: str, name: KnownDataset, shots: str | None) -> Dataset:
    is_folder = False
    # A folder that is not there gets the message below, which says where to get this set.
    with suppress(FileNotFoundError):
        is_folder = isinstance(open_source(location, background), ImageFolder)
    if is_folder:
        return KnownPhotos(location, background, name=name, shots=shots).dataset()
    known = KNOWN[name]
    raise FileNotFoundError(
        f"data.dataset is {name!r}, so data.source must be the folder where {known.title} was unpacked, not "
        f"{location!r}. Get it at {known.url} ({GUIDE}), or leave data.dataset out."
    )


def class_names(config: DataConfig) -> tuple[str, ...]:
    """Readable names of the classes where a look at folders tells them, without listing photos; else none.

    Raises what `open_dataset` raises.
    """
    if config.dataset is not None:  # its classes are known, and none comes
        return ()
    source = open_source(config.source, config.background)
    if not isinstance(source, ImageFolder):
        return ()
    return readable_names(list_classes(*fsspec.core.url_to_fs(source.location)), config.names)


@dataclass(frozen=True)
class Digits:
    """Scanned digits, 8x8 grey levels enlarged to 32x32 RGB; per class 40 pool, 39 validation and about 100 test."""

    def dataset(self) -> Dataset:
        labels = _digits().target
        # One fixed shuffle: neighbours in the file are by the same writer.
        order = np.random.default_rng(0).permutation(len(labels))
        parts: dict[str, list[Photo]] = {"pool": [], "val": [], "test": []}
        for label in range(10):
            members = [Photo(f"digits/{i:04d}", label) for i in order if labels[i] == label]
            parts["pool"] += members[:40]
            parts["val"] += members[40:79]
            parts["test"] += members[79:]
        names = tuple(f"digit {name}" for name in DIGIT_NAMES)
        pool, val, test = (tuple(photos) for photos in parts.values())
        return Dataset(names, pool, val, test, flippable=False)

    def read(self, key: str) -> Image.Image:
        levels = _digits().images[int(key.removeprefix("digits/"))]
        # scikit-learn's levels are 0 to 16.
        image = Image.fromarray((levels * (255 / 16)).astype(np.uint8))
        return image.resize((DIGITS_PIXELS, DIGITS_PIXELS), Image.Resampling.BICUBIC).convert("RGB")

    def fingerprint(self, key: str) -> Fingerprint:
        # All scans of the data set differ, and many of them look alike.
        return Fingerprint(key, None)


@dataclass(frozen=True)
class EncodedPhotos(ABC):
    """Photos that are files, or bytes like those of files."""

    location: str
    background: str = WHITE

    @abstractmethod
    def _listing(self) -> Listing: ...

    @abstractmethod
    def _file(self, key: str) -> tuple[str, bytes]:
        """What to call a photo, and its content."""

    def dataset(self) -> Dataset:
        listing = self._listing()
        parts = {part: tuple(Photo(*each) for each in photos) for part, photos in listing.keys.items()}
        pool, val, test = (parts.get(part, ()) for part in ("pool", "val", "test"))
        left_out = tuple(f"{count} {reason}" for reason, count in sorted(listing.left_out.items()))
        # Nobody knows whether a mirrored photo still belongs to its class: on a folder of characters mirroring cost
        # 7.5 points.
        return Dataset(listing.class_names, pool, val, test, flippable=False, left_out=left_out)

    def read(self, key: str) -> Image.Image:
        name, data = self._file(key)
        return decode_photo(data, name, self.background)

    def fingerprint(self, key: str) -> Fingerprint:
        name, data = self._file(key)
        return Fingerprint(sha256(data), look_of(decode_photo(data, name, self.background)))


class ImageFolder(EncodedPhotos):
    """<root>/<class>/... or <root>/{train,val,test}/<class>/..., at any fsspec URL; see list_photos."""

    def takes_in(self, folder: str) -> bool:
        """Whether photos in a folder of this machine, which need not be there yet, would be taken for a class's."""
        fs, root = fsspec.core.url_to_fs(self.location)
        return isinstance(fs, LocalFileSystem) and is_class_folder(
            fs, os.path.realpath(root), os.path.realpath(folder)
        )

    def _listing(self) -> Listing:
        return list_photos(*fsspec.core.url_to_fs(self.location))

    def _file(self, key: str) -> tuple[str, bytes]:
        # Not kept: fsspec hands out the same file system again, and without one a source is cheap to pickle.
        fs, root = fsspec.core.url_to_fs(self.location)
        path = posixpath.join(root, key)
        return path, read_whole(fs, path)


@dataclass(frozen=True, kw_only=True)
class KnownPhotos(ImageFolder):
    """A data set of the paper in the layout in which it is downloaded; see list_known. Its photos have the keys that
    they have in a folder, so that whoever only reads them need not know the data set."""

    name: KnownDataset
    shots: str | None = None
    """The folder of shots that take the place of the training photos."""

    def dataset(self) -> Dataset:
        # The paper mirrors the photos of all of them. Thousands of labels to choose by would be no few-shot learning,
        # so CoOp's code takes 4 of a class.
        return replace(super().dataset(), flippable=True, few_val=4)

    def _listing(self) -> Listing:
        known, (fs, root) = KNOWN[self.name], fsspec.core.url_to_fs(self.location)
        listing = list_known(fs, root, known)
        if self.shots is not None:
            if known.coop and not listing.keys.get("test"):
                raise ValueError(
                    f"data.shots is {self.shots!r}, but {known.title} has no official split to take test photos from. "
                    f"Put {known.coop.file} beside its photos ({GUIDE})."
                )
            listing.keys["pool"] = given_shots(fs, root, self.shots, listing)
        return listing


class PhotoList(EncodedPhotos):
    """A CSV or JSON Lines file at any fsspec URL, with photos in its folder and below; see list_rows."""

    def _listing(self) -> Listing:
        return list_rows(*fsspec.core.url_to_fs(self.location))

    def _file(self, key: str) -> tuple[str, bytes]:
        fs, path = fsspec.core.url_to_fs(self.location)
        path = posixpath.join(posixpath.dirname(path), key)
        return path, read_whole(fs, path)


class HuggingFace(EncodedPhotos):
    """A data set of the library `datasets`: a local folder, or hf-hub:<id>; see list_examples."""

    def _listing(self) -> Listing:
        return list_examples(self.location)

    def _file(self, key: str) -> tuple[str, bytes]:
        return f"{self.location}/{key}", read_example(self.location, key)


@functools.cache
def _digits() -> Any:
    from sklearn.datasets import load_digits

    return load_digits()
