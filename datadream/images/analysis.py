"""The images of runs beside photos that they were not made from, in images.json of each run, which the page shows.

On one device and without Ray: encoding an image costs a thousandth of generating it.
"""

from __future__ import annotations

import io
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image

from datadream.config import nearest as nearest_name
from datadream.data.datasets import Photo, open_source
from datadream.data.shards import stream_images
from datadream.hashing import spec_hash
from datadream.images.metrics import NEIGHBOURS, Features, cmmd, frechet_distance, kernel_distance, nearest, neighbours
from datadream.models.clip.load import check_clip, load_clip
from datadream.models.features import image_features
from datadream.models.inception import check_inception, load_inception
from datadream.run.cell import Cell
from datadream.run.layout import DATASET, IMAGES, ClosestPair, DatasetMarker, ImageDistances, ImagesRecord, shard_file
from datadream.run.store import RunStore
from datadream.runtime.failures import retried

log = logging.getLogger(__name__)

Against = Literal["held-out", "train", "test"]
"""Photos that are neither shots nor test photos, these with the shots, or the test photos."""
INCEPTION = "inception"
"""The model that stands for the network of the original FID."""
MEASURES = ("fid", "kid", "cmmd", "precision", "recall", "density", "coverage")

Recognise = Callable[[Sequence[Image.Image]], Sequence[str]]
"""The name of the class that each image is taken for."""

PHOTOS_PER_CLASS = 500
"""Photos of a class that images are compared with at most, chosen at random: ImageNet's 1.3 million would take longer
to read than they tell more."""
COMPARED = 4_000
"""Images and photos, chosen at random, that measures see which compare all with all: 128 MB for a matrix; and images
that a classifier is asked about."""
JUDGED_AT_ONCE = 64
"""Images in memory, decoded, that a classifier is asked about."""
PAIRS = 8
"""Closest pairs of an image and a shot that are kept."""
QUANTILES = (0.5, 0.95, 1.0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """By which model's features images are compared, and with which photos."""

    model: str
    """As classify.model, or INCEPTION."""
    pretrained: str | None
    """As classify.pretrained, or a file of Inception's weights."""
    against: str = "held-out"
    """One of Against."""


@dataclass(frozen=True, slots=True)
class Judge:
    """A run's classifier of photos alone, which knows nothing of generated images."""

    sha256: str
    """Of its marker, by which it is known again."""
    load: Callable[[], Recognise]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Features fp32 [n, D] of images and their labels [n]; `keys` find them."""

    features: Features
    labels: np.ndarray
    keys: Sequence[tuple[str, str]]
    """Shard and key of an image; an empty text and the key of a photo."""

    def of(self, label: int) -> Features:
        return self.features[self.labels == label]


class Encoder:
    """A model's image features, not scaled to unit length, on the GPU if there is one.

    A photo is encoded once, however many runs of a table have it.
    """

    def __init__(self, how: Comparison, source: str, background: str) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        if how.model == INCEPTION:
            self._prepare, self._model = load_inception(how.pretrained, self._device)
        else:
            clip = load_clip(how.model, how.pretrained, self._device)
            self._prepare, self._model = clip.preprocess, clip.model.encode_image
        self._source = open_source(source, background)
        self._photos: dict[str, Features] = {}

    def photos(self, photos: Sequence[Photo]) -> Labelled:
        missing = [photo.key for photo in photos if photo.key not in self._photos]
        read = [partial(retried, partial(self._source.read, key), f"reading photo {key!r}") for key in missing]
        if missing:
            self._photos |= zip(missing, image_features(read, self._prepare, self._model, self._device), strict=True)
        labels = np.array([photo.label for photo in photos], np.int64)
        return Labelled(_stacked([self._photos[photo.key] for photo in photos]), labels, [("", p.key) for p in photos])

    def images(self, store: RunStore) -> Labelled:
        """All images of a run's dataset, one shard of encoded ones in memory at a time."""
        marker = DatasetMarker.from_json(store.read_json(DATASET))
        features: list[Features] = []
        labels, keys = [], []
        for shard in marker.shards:
            with store.fs.open(store.path(shard_file(shard)), "rb") as file:
                rows = list(stream_images(file, marker.format))
            # Opened when they are read, and not before: an image that is held keeps its decoded pixels, 0.8 GB in a
            # shard of 1,000 images of 512 pixels.
            read = [partial(_decoded, data) for _, _, data in rows]
            features += list(image_features(read, self._prepare, self._model, self._device))
            labels += [label for _, label, _ in rows]
            keys += [(shard, key) for key, _, _ in rows]
        return Labelled(_stacked(features), np.array(labels, np.int64), keys)


def check_analysis(cells: Sequence[Cell], how: Comparison) -> None:
    """Raises ValueError or FileNotFoundError when no run has images, or when there is no such model."""
    if how.against not in get_args(Against):
        raise ValueError(f"--against is {how.against!r}. {nearest_name(how.against, list(get_args(Against)))}")
    if not any(cell.store.exists(DATASET) for cell in cells):
        other = cells[0].config.images_from
        hint = f"Its images are those of run {other!r}: give that one." if other else "Run generate first."
        raise ValueError(f"run {cells[0].store.url!r} has no images to look at: {DATASET} is missing. {hint}")
    if how.model == INCEPTION:
        check_inception(how.pretrained)
    else:
        check_clip(how.model, how.pretrained)


def analyse(cells: Sequence[Cell], how: Comparison, judge_of: Callable[[Cell], Judge | None]) -> None:
    """Write images.json of every run that has images, unless it is there for the same model, images, photos and judge.

    Runs of a table with one seed are compared with the same photos, which none of them has among its shots.
    """
    encoder = None
    generating = [cell for cell in cells if cell.store.exists(DATASET)]
    for cell in generating:
        alike = [each for each in generating if each.config.seed == cell.config.seed]
        photos, judge, recognise = reference_photos(cell, alike, how.against), judge_of(cell), None
        is_compared = False
        if cell.store.exists(IMAGES):
            found = ImagesRecord.from_json(cell.store.read_json(IMAGES))
            same = Comparison(found.model, found.pretrained, found.against) == how
            # By the plan's hash: a dataset of another plan has other images, whatever their number.
            plan = DatasetMarker.from_json(cell.store.read_json(DATASET)).plan
            is_compared = same and found.plan == plan and found.photos == _hash_of(photos)
            # A cell that is looked at by itself does not have its table's judge, and keeps what it said.
            if is_compared and (judge is None or found.judge == judge.sha256):
                continue
        if judge:
            try:
                recognise = judge.load()  # before hours of encoding
            except (ValueError, FileNotFoundError) as error:
                log.warning("images: %s: what is recognised is not measured: %s", cell.store.name, error)
        if is_compared and recognise is None:
            continue
        if not photos:
            log.warning("images: %s has no photos but shots and test photos to compare with", cell.store.name)
        data = cell.config.data
        encoder = encoder or Encoder(how, data.source, data.background)
        record = replace(
            compared(cell, how, encoder, photos, recognise), judge=judge.sha256 if judge and recognise else None
        )
        cell.store.write_json(IMAGES, record.to_json())
        log.info("images: %s: %d images against %d photos", cell.store.name, record.all["n_images"], len(photos))


def compared(
    cell: Cell, how: Comparison, encoder: Encoder, photos: Sequence[Photo], recognise: Recognise | None
) -> ImagesRecord:
    """One run's images beside `photos` and its shots."""
    images, others, shots = encoder.images(cell.store), encoder.photos(photos), encoder.photos(cell.few_shot.photos)
    names = cell.few_shot.class_names
    to_images, to_others = shot_similarity(images, shots), shot_similarity(others, shots)
    hits = recognised(cell.store, images, names, recognise) if recognise else {}
    shares = {name: sum(own) / len(own) for name, own in hits.items()}
    every = list(chain(*hits.values()))
    return ImagesRecord(
        model=how.model,
        pretrained=how.pretrained,
        against=how.against,
        plan=DatasetMarker.from_json(cell.store.read_json(DATASET)).plan,
        all=distances("", images.features, others.features, sum(every) / len(every) if every else None).to_json(),
        classes=[
            distances(name, images.of(label), others.of(label), shares.get(name)).to_json()
            for label, name in enumerate(names)
        ],
        shot_similarity={
            name: [round(float(value), 4) for value in np.quantile(found[1], QUANTILES)]
            for name, found in (("images", to_images), ("photos", to_others))
            if len(found[1])
        },
        closest=[pair.to_json() for pair in closest_pairs(images, shots, *to_images)],
        photos=_hash_of(photos),
    )


def _hash_of(photos: Sequence[Photo]) -> str:
    """One value for one choice of photos: as many others may take their place in a larger table."""
    return spec_hash(sorted((photo.key, photo.label) for photo in photos))


def recognised(store: RunStore, images: Labelled, names: Sequence[str], recognise: Recognise) -> dict[str, list[bool]]:
    """By class, whether each image of a random part is taken for its class; classes without any are left out."""
    chosen = {images.keys[row] for row in _random(len(images.keys), COMPARED)}
    hits: dict[str, list[bool]] = defaultdict(list)
    marker = DatasetMarker.from_json(store.read_json(DATASET))
    for shard in marker.shards:
        with store.fs.open(store.path(shard_file(shard)), "rb") as file:
            rows = ((label, data) for key, label, data in stream_images(file, marker.format) if (shard, key) in chosen)
            while some := list(islice(rows, JUDGED_AT_ONCE)):
                taken_for = recognise([_decoded(data) for _, data in some])
                for (label, _), name in zip(some, taken_for, strict=True):
                    hits[names[label]].append(name == names[label])
    return hits


def reference_photos(cell: Cell, alike: Sequence[Cell], against: str) -> list[Photo]:
    """The photos that a run's images are compared with; of held-out ones, none that a run of `alike` has as a shot."""
    few_shot = cell.few_shot
    if against == "test":
        found = few_shot.test
    else:
        left_out = {photo.key for photo in few_shot.test}
        if against == "held-out":
            left_out |= {photo.key for each in alike for photo in each.few_shot.photos}
        # The run's own labels: folders may have come since it began, and one that extends another has new ones last.
        label_of = {name: label for label, name in enumerate(few_shot.class_names)}
        found = tuple(
            Photo(photo.key, label_of[name])
            for photo in (*cell.dataset.pool, *cell.dataset.val)
            if photo.key not in left_out and (name := cell.dataset.class_names[photo.label]) in label_of
        )
    by_class: dict[int, list[Photo]] = defaultdict(list)
    for photo in found:
        by_class[photo.label].append(photo)
    return [own[row] for _, own in sorted(by_class.items()) for row in _random(len(own), PHOTOS_PER_CLASS)]


def distances(name: str, images: Features, photos: Features, recognised: float | None = None) -> ImageDistances:
    """All measures for which there are enough of both, beside the share that is recognised."""
    found: dict[str, float] = {}
    fewest = min(len(images), len(photos))
    some, others = images[_random(len(images), COMPARED)], photos[_random(len(photos), COMPARED)]
    if fewest > 1:
        # Of all of them: means and covariances grow with the features and not with the images, as a kernel does.
        found["fid"] = frechet_distance(images, photos)
        found["kid"] = kernel_distance(some, others)
        found["cmmd"] = cmmd(_unit(some), _unit(others))
    if fewest > NEIGHBOURS:
        found |= neighbours(others, some)
    measured = {measure: round(found[measure], 6) if measure in found else None for measure in MEASURES}
    share = None if recognised is None else round(recognised, 6)
    return ImageDistances(name=name, n_images=len(images), n_photos=len(photos), recognised=share, **measured)


def shot_similarity(images: Labelled, shots: Labelled) -> tuple[np.ndarray, Features]:
    """Place of the most similar shot of its class [n], and their cosine similarity [n], of each image."""
    places, similarity = np.zeros(len(images.labels), np.int64), np.zeros(len(images.labels))
    for label in np.unique(images.labels):
        own, rows = np.flatnonzero(shots.labels == label), images.labels == label
        nearest_own, similarity[rows] = nearest(_unit(images.features[rows]), _unit(shots.features[own]))
        places[rows] = own[nearest_own]
    return places, similarity


def closest_pairs(images: Labelled, shots: Labelled, places: np.ndarray, similarity: Features) -> list[ClosestPair]:
    """The shots that an image comes nearest to, each with that image."""
    first: dict[str, int] = {}
    # Stable: of equally near images the first, so that the file's bytes are the same each time.
    for row in np.argsort(-similarity, kind="stable").tolist():
        first.setdefault(shots.keys[places[row]][1], row)
    return [
        ClosestPair(
            label=int(images.labels[row]),
            shard=images.keys[row][0],
            image=images.keys[row][1],
            photo=shots.keys[places[row]][1],
            similarity=round(float(similarity[row]), 4),
        )
        for row in list(first.values())[:PAIRS]
    ]


def _random(n: int, most: int) -> np.ndarray:
    """At most `most` of `n` rows, chosen at random, the same each time; in ascending order."""
    # Seed 0 whatever the run's: runs of a table are compared with the same photos.
    return np.sort(np.random.default_rng(0).permutation(n)[:most])


def _unit(features: Features) -> Features:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _stacked(features: Sequence[Features]) -> Features:
    return np.stack(features) if features else np.empty((0, 1), np.float32)


def _decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")
