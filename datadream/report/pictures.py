"""Real shots and generated images of each class as small pictures inside the page."""

from __future__ import annotations

import base64
import io
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from datadream.config import ExperimentConfig, public_method
from datadream.data.datasets import open_source
from datadream.data.few_shot import FewShotSet
from datadream.data.shards import stream_images
from datadream.run.cell import images_store
from datadream.run.layout import (
    ADAPTER_INDEX,
    DATASET,
    FEW_SHOT,
    AdapterEntry,
    DatasetMarker,
    adapter_samples,
    shard_file,
)
from datadream.run.store import RunStore

log = logging.getLogger(__name__)

MAX_CLASSES = 20
REAL_PER_CLASS = 4
GENERATED_PER_CLASS = 8
MAX_SAMPLES = 8
# Longest side: twice the size on the page, for fine screens.
THUMBNAIL_PIXELS = 144
# Images of fewer pixels a side are enlarged as squares: smoothing would hide what the generator made.
PIXELATED_BELOW = 65
# Shards are class-mixed, so that a few are enough; a bound for runs of a thousand classes on slow storage.
MAX_SHARDS = 16


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as a data URI."""

    uri: str
    pixelated: bool


@dataclass(frozen=True, slots=True)
class ClassPictures:
    """One class's real shots beside what each run generated for it."""

    name: str
    real: list[Picture]
    generated: dict[str, list[Picture]]
    """By method, or by what else tells the runs apart."""


@dataclass(frozen=True, slots=True)
class SampleStrip:
    """The samples of one adapter, named by its prompt, or by its id where it has several."""

    name: str
    samples: list[tuple[int, Picture]]
    """By step."""


def class_pictures(
    cells: Sequence[tuple[RunStore, ExperimentConfig]],
    name_of: Callable[[ExperimentConfig], str] = lambda config: public_method(config.method),
) -> tuple[list[ClassPictures], int]:
    """Pictures of the first classes, and the number of all classes; shots are those of the first cell.

    `name_of` says what tells the runs apart."""
    sources = [(images_store(store, config), config) for store, config in cells]
    generating = [(store, config) for store, config in sources if store.exists(DATASET)]
    first = next((cell for cell in generating or cells if cell[0].exists(FEW_SHOT)), None)
    if first is None:
        return [], 0
    store, config = first
    few_shot = FewShotSet.from_json(store.read_json(FEW_SHOT))
    names = few_shot.class_names[:MAX_CLASSES]
    generated = {name_of(config): _generated(store, len(names)) for store, config in generating}
    shots = [keys[:REAL_PER_CLASS] for keys in few_shot.shots[: len(names)]]
    found = iter(photos(config, [key for keys in shots for key in keys], "real photos"))
    real = [list(filter(None, itertools.islice(found, len(keys)))) for keys in shots]
    pictures = [
        ClassPictures(name, own, {method: by_label[label] for method, by_label in generated.items()})
        for label, (name, own) in enumerate(zip(names, real, strict=True))
    ]
    return [each for each in pictures if each.real or any(each.generated.values())], len(few_shot.class_names)


def photos(config: ExperimentConfig, keys: Sequence[str], what: str) -> list[Picture | None]:
    """Photos of a run by their keys; all are None where one cannot be read, with a warning that names `what`."""
    try:
        source = open_source(config.data.source, config.data.background)
        return [thumbnail(source.read(key)) for key in keys]
    except Exception as error:
        # Reports are made on other machines than runs, and every file system has its own errors: photos that cannot
        # be read must not cost the figures.
        log.warning("the report shows no %s: %s", what, error)
        return [None] * len(keys)


def sample_strips(store: RunStore, config: ExperimentConfig) -> list[SampleStrip]:
    """What the first adapters made while they were trained; none where adapt.samples_every is 0."""
    every = config.adapt.samples_every
    if not every or not store.exists(ADAPTER_INDEX):
        return []
    strips = []
    for entry in map(AdapterEntry.from_json, store.read_json(ADAPTER_INDEX)[:MAX_CLASSES]):
        steps = range(every, entry.steps + 1, every)
        # Evenly over the training, with its end.
        shown = sorted({steps[-1 - n * len(steps) // MAX_SAMPLES] for n in range(MAX_SAMPLES)}) if steps else []
        files = [(step, name) for step in shown if store.exists(name := adapter_samples(entry.adapter_id, step))]
        made = [(step, thumbnail(Image.open(io.BytesIO(store.read_bytes(name))))) for step, name in files]
        name = entry.prompts[0] if len(entry.prompts) == 1 else entry.adapter_id
        strips += [SampleStrip(name, made)] if made else []
    return strips


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


def _generated(store: RunStore, n_labels: int) -> list[list[Picture]]:
    """The first generated images of each label, in the order of the shards."""
    found: list[list[Picture]] = [[] for _ in range(n_labels)]
    missing = n_labels * GENERATED_PER_CLASS
    marker = DatasetMarker.from_json(store.read_json(DATASET))
    for shard in marker.shards[:MAX_SHARDS]:
        with store.fs.open(store.path(shard_file(shard)), "rb") as file:
            for _, label, data in stream_images(file, marker.format):
                if label < n_labels and len(found[label]) < GENERATED_PER_CLASS:
                    found[label].append(thumbnail(Image.open(io.BytesIO(data))))
                    missing -= 1
                if not missing:
                    return found
    return found
