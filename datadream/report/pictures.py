"""Real shots and generated images of each class as small pictures inside the page."""

from __future__ import annotations

import base64
import io
import logging
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from datadream.config import ExperimentConfig
from datadream.data.datasets import IMAGE_SUFFIXES, PhotoSource, open_source
from datadream.run.layout import DATASET, FEW_SHOT
from datadream.run.store import RunStore

log = logging.getLogger(__name__)

MAX_CLASSES = 20
REAL_PER_CLASS = 4
GENERATED_PER_CLASS = 8
THUMBNAIL_PIXELS = 144
"""Longest side: twice the size on the page, for fine screens."""
PIXELATED_BELOW = 65
"""Images of fewer pixels a side are enlarged as squares: smoothing would hide what the generator made."""
MAX_SHARDS = 16
"""Shards are class-mixed, so that a few are enough; a bound for runs of a thousand classes on slow storage."""
SMALL_BATCH = 64


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as a data URI."""

    uri: str
    pixelated: bool


@dataclass(frozen=True, slots=True)
class ClassPictures:
    """One class's real shots beside what each method generated for it."""

    name: str
    real: list[Picture]
    generated: dict[str, list[Picture]]


def class_pictures(cells: list[tuple[RunStore, ExperimentConfig]]) -> tuple[list[ClassPictures], int]:
    """Pictures of the first classes, and the number of all classes; shots are those of the first cell."""
    generated_cells = [(store, config) for store, config in cells if store.exists(DATASET)]
    few_shot = _first_few_shot(generated_cells or cells)
    if few_shot is None:
        return [], 0
    (_, config), classes = few_shot
    shown = classes[:MAX_CLASSES]
    labels = {entry["label"] for entry in shown}
    generated = {config.method: _generated(store, labels) for store, config in generated_cells}
    real = _real(config.data.source, shown)
    pictures = [
        ClassPictures(
            name=entry["name"],
            real=real.get(entry["label"], []),
            generated={method: by_label[entry["label"]] for method, by_label in generated.items()},
        )
        for entry in shown
    ]
    return [each for each in pictures if each.real or any(each.generated.values())], len(classes)


def thumbnail(image: Image.Image) -> Picture:
    """An image at page size: small ones to the last pixel, large ones reduced."""
    pixelated = max(image.size) < PIXELATED_BELOW
    image = image.convert("RGB")
    buffer = io.BytesIO()
    if max(image.size) <= THUMBNAIL_PIXELS:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return Picture(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", pixelated)


def _first_few_shot(
    cells: list[tuple[RunStore, ExperimentConfig]],
) -> tuple[tuple[RunStore, ExperimentConfig], list[Any]] | None:
    for store, config in cells:
        if store.exists(FEW_SHOT):
            return (store, config), store.read_json(FEW_SHOT)["classes"]
    return None


def _real(source_name: str, classes: list[dict[str, Any]]) -> dict[int, list[Picture]]:
    """The first shots of each class; none where the photos cannot be read, which must not cost the figures."""
    try:
        source = open_source(source_name)
        return {entry["label"]: [_read(source, key) for key in entry["photos"][:REAL_PER_CLASS]] for entry in classes}
    except Exception as error:  # every file system has its own, and reports are made on other machines than runs
        log.warning("the report shows no real photos: %s", error)
        return {}


def _read(source: PhotoSource, key: str) -> Picture:
    return thumbnail(source.read(key))


def _generated(store: RunStore, labels: set[int]) -> dict[int, list[Picture]]:
    """The first generated images of each label, in the order of the shards."""
    found: dict[int, list[Picture]] = {label: [] for label in labels}
    missing = len(labels) * GENERATED_PER_CLASS
    for label, data in _dataset_images(store):
        if label in found and len(found[label]) < GENERATED_PER_CLASS:
            found[label].append(thumbnail(Image.open(io.BytesIO(data))))
            missing -= 1
        if not missing:
            break
    return found


def _dataset_images(store: RunStore) -> Iterator[tuple[int, bytes]]:
    dataset = store.read_json(DATASET)
    read_shard = {"parquet": _parquet_images, "webdataset": _webdataset_images}[dataset["format"]]
    for shard in dataset["shards"][:MAX_SHARDS]:
        with store.fs.open(store.path(posixpath.join(posixpath.dirname(DATASET), shard)), "rb") as file:
            yield from read_shard(file)


def _parquet_images(file: Any) -> Iterator[tuple[int, bytes]]:
    for batch in pq.ParquetFile(file).iter_batches(SMALL_BATCH, columns=["image", "label"]):
        for row in batch.to_pylist():
            yield row["label"], row["image"]["bytes"]


def _webdataset_images(file: Any) -> Iterator[tuple[int, bytes]]:
    """Samples of a tar: files that share a key are neighbours, and come in any order within their sample."""
    key, label, image = None, None, None
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        for member in tar:
            stem, suffix = posixpath.splitext(member.name)
            if stem != key:
                key, label, image = stem, None, None
            if suffix == ".cls":
                label = int(tar.extractfile(member).read())
            elif suffix in IMAGE_SUFFIXES:
                image = tar.extractfile(member).read()
            if label is not None and image is not None:
                yield label, image
                label = image = None
