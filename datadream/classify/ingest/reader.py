"""The published synthetic images: what is there, whether it is whole, and how a shard's rows are decoded."""

from __future__ import annotations

import itertools
import posixpath
import re
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datadream.data.decode import decode_squares
from datadream.run.layout import DATASET, SELECTION, DatasetMarker
from datadream.run.store import RunStore

FOLDER = posixpath.dirname(DATASET)
ENCODINGS = ("webp", "png", "jpg")
"""Names under which a WebDataset sample holds its image."""
# Decoded, these are 37 MiB of squares of 224 pixels; Ray Data aims at blocks of up to 128 MiB.
ROWS_PER_DECODE = 256
_INDEX = re.compile(r"(\d+)(?:\.\w+)?$")
REMEDY = "Remove the run's dataset folder and run generate again."


@dataclass(frozen=True, slots=True)
class Published:
    """A dataset as training reads it: rows of image (uint8 [3, size, size]), label and key; `key` is unique and gives
    the rows an order."""

    store: RunStore
    format: str
    shards: Sequence[str]
    """Paths in the dataset's folder, in the order in which they are read."""
    n: int
    """Rows."""
    size: int
    ends: list[int] | None
    """Of each class only the images with an index below this are read; None: all."""

    @property
    def n_bytes(self) -> int:
        """Size of all decoded images."""
        return self.n * 3 * self.size**2

    def decode(self, table: pa.Table) -> dict[str, np.ndarray]:
        """Rows of encoded images from a shard, as columns of decoded ones: image, label (int64) and key."""
        if self.format == "parquet":
            # Joined: Arrow takes the fields of one array of structs, and not of a chunked one.
            rows = table["image"].combine_chunks()
            images, keys, labels = rows.field("bytes"), rows.field("path"), table["label"].to_numpy().astype(np.int64)
        else:
            images = table[next(name for name in ENCODINGS if name in table.column_names)]
            keys, labels = table["__key__"], np.array([int(label) for label in table["cls"].to_pylist()], np.int64)
        if self.ends is not None:
            # Before decoding, which is what costs. Every key that we publish ends in its image's index.
            indices = [int(found[1]) for found in map(_INDEX.search, keys.to_pylist()) if found]
            kept = np.array([i < self.ends[label] for i, label in zip(indices, labels, strict=True)], bool)
            images, keys, labels = images.filter(pa.array(kept)), keys.filter(pa.array(kept)), labels[kept]
        names = keys.to_pylist()
        return {
            "image": decode_squares(images.to_pylist(), names, self.size),
            "label": labels,
            "key": np.array(names, dtype=str),
        }


def check_published(store: RunStore, class_names: Sequence[str]) -> None:
    """Find before any work what training on the run's dataset would stumble over.

    Of all shards the sizes are listed, of Parquet the labels are read, of WebDataset the beginning of each shard; all
    else is seen when it is decoded. Raises ValueError when nothing was published, when a shard is missing, has another
    size than was published or cannot be read, when classes are not the run's, or when one has no image.
    """
    if not store.exists(DATASET):
        raise ValueError(
            f"run {store.url!r} has no synthetic images to train on: {DATASET} is missing. Run generate first."
        )
    marker = DatasetMarker.from_json(store.read_json(DATASET))
    if not marker.n_images:
        raise ValueError(f"run {store.url!r}: the published dataset is empty. {REMEDY}")
    if list(marker.class_names) != list(class_names):
        pairs = itertools.zip_longest(marker.class_names, class_names)
        label, (theirs, ours) = next((label, pair) for label, pair in enumerate(pairs) if pair[0] != pair[1])
        raise ValueError(
            f"run {store.url!r}: class {label} is {theirs!r} in the dataset, {ours!r} in the run. {REMEDY}"
        )
    _check_sizes(store, marker)
    # Each shard is a round trip or several where it lies in an object store.
    with ThreadPoolExecutor() as threads:
        labels = list(threads.map(lambda shard: _read_labels(store, shard, marker.format), marker.shards))
    # One label of each tar cannot tell whether a class has no image.
    if marker.format == "parquet":
        check_labels(np.concatenate(labels), class_names)
    else:
        check_range(np.concatenate(labels), len(class_names))


def _check_sizes(store: RunStore, marker: DatasetMarker) -> None:
    """Shards that were cut short or replaced, by one listing: a tar shows nothing of it at its beginning.

    Markers of older versions do not tell sizes.
    """
    if marker.n_bytes is None:
        return
    shards = [posixpath.join(FOLDER, shard) for shard in marker.shards]
    found = {}
    for folder in filter(store.exists, {posixpath.dirname(shard) for shard in shards}):
        for entry in store.fs.ls(store.path(folder), detail=True):
            found[posixpath.join(folder, posixpath.basename(entry["name"]))] = entry["size"]
    for shard, n_bytes in zip(shards, marker.n_bytes, strict=True):
        size = found.get(shard)
        if size is None:
            raise ValueError(f"shard {shard!r} is missing. {REMEDY}")
        if size != n_bytes:
            raise ValueError(
                f"shard {shard!r} has {size} bytes, but {n_bytes} were published: it was cut short or replaced. "
                f"{REMEDY}"
            )


def check_labels(labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Raises ValueError when a label of a whole dataset is no class's, or a class has no image."""
    check_range(labels, len(class_names))
    missing = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0)
    if len(missing):
        raise ValueError(
            f"class {class_names[missing[0]]!r} has no image in the dataset ({len(missing)} such classes): "
            f"perhaps generate.select left none. {REMEDY}"
        )


def check_range(labels: np.ndarray, n_classes: int) -> None:
    """Raises ValueError when a label is no class's."""
    wrong = labels[(labels < 0) | (labels >= n_classes)]
    if len(wrong):
        raise ValueError(f"the dataset has label {wrong[0]}, but the run's classes are 0 to {n_classes - 1}. {REMEDY}")


def _read_labels(store: RunStore, shard: str, form: str) -> np.ndarray:
    """Labels of a Parquet shard, or the first label of a WebDataset one, int64; raises ValueError naming the shard."""
    path = posixpath.join(FOLDER, shard)
    try:
        with store.fs.open(store.path(path)) as file:
            if form == "parquet":
                return pq.read_table(file, columns=["label"])["label"].to_numpy().astype(np.int64)
            # "r|" reads as a stream, so that a remote shard is read no further than its first label.
            with tarfile.open(fileobj=file, mode="r|") as tar:
                label = next(tar.extractfile(member) for member in tar if member.name.endswith(".cls"))
                return np.array([int(label.read() if label else b"")])
    except (OSError, ValueError, KeyError, StopIteration, tarfile.TarError, pa.ArrowException) as error:
        raise ValueError(f"shard {path!r} cannot be read: {str(error) or type(error).__name__}. {REMEDY}") from error


def find_published(store: RunStore, size: int, order: int, images_per_class: int | None = None) -> Published:
    """The run's dataset, or the first `images_per_class` of each class, to be decoded to squares of `size` pixels, its
    shards in an order of that seed; reads no shard."""
    marker = DatasetMarker.from_json(store.read_json(DATASET))
    ends, n = None, marker.n_images
    if images_per_class is not None:
        ends = [images_per_class] * len(marker.class_names)
        n = sum(map(min, ends, marker.counts or ends))
        if store.exists(SELECTION):
            # A selection leaves gaps between the indices: the first 10 that it kept may end with index 14. Series that
            # take turns are judged one after the other, so that the indices need not ascend.
            first = [sorted(entry["images"])[:images_per_class] for entry in store.read_json(SELECTION)["classes"]]
            ends, n = [max(images, default=-1) + 1 for images in first], sum(map(len, first))
        if n >= marker.n_images:
            ends, n = None, marker.n_images
    shards = np.random.default_rng(order).permutation(marker.shards).tolist()
    return Published(store, marker.format, shards, n, size, ends)
