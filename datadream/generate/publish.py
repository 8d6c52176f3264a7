"""Cut committed chunks into the shards of a dataset: class-mixed and even, with bytes that depend on the plan alone.

The shards are a seeded shuffle: of all images where these are few, and otherwise of all chunks and then of the images
of many chunks at a time, so that no chunk is read for more than two windows. Who writes which is the stage's to say.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datadream.config import ExperimentConfig
from datadream.data.shards import ImageRecord, from_parquet, shard_name, to_parquet, to_webdataset
from datadream.hashing import derive_seed, sha256
from datadream.methods.chunks import Chunk
from datadream.run.layout import ShardRecord, shard_file
from datadream.run.store import RunStore

WINDOW_IMAGES = 5000
"""Images that are shuffled together and held in memory at once: 1.8 GB of lossless 512-pixel images."""
POOLS = 128 * 2**20
"""Bytes that Arrow's pools and threads take beside the images, measured."""
COPIES_WHILE_READING = 3
"""Of a chunk: its file, the Arrow table, and the images as Python's bytes."""
COPIES_WHILE_WRITING = 4
"""Of a shard, beside its images: the Arrow table, the buffer, which grows by doubling, and the finished bytes."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One published file and its images as (chunk file, row)."""

    name: str
    members: tuple[tuple[str, int], ...]
    clip_scores: tuple[float, ...]
    """Of each image, where filters chose them."""


@dataclass(frozen=True, slots=True)
class Window:
    """Shards that share their chunks, so that each chunk is read once."""

    shards: tuple[Shard, ...]

    @property
    def n_images(self) -> int:
        return sum(len(shard.members) for shard in self.shards)

    @property
    def images_of_files(self) -> Counter[str]:
        """How many of its images lie in which chunk file."""
        return Counter(file for shard in self.shards for file, _ in shard.members)


def plan_windows(
    chunks: Sequence[Chunk], config: ExperimentConfig, clip_scores: Mapping[tuple[str, int], float] | None = None
) -> list[Window]:
    """A seeded shuffle of all chunks, then of the images of each window; shards differ by at most one image.

    With `clip_scores`, only the images (chunk file, row) that have one.
    """
    rng = np.random.default_rng(derive_seed(config.seed, "publish"))
    # Whole chunks first, so that a window, which is a run of them, holds images of many classes.
    shuffled = [chunks[place] for place in rng.permutation(len(chunks))]
    members = [(chunk.file, row) for chunk in shuffled for row in range(len(chunk.requests))]
    if clip_scores is not None:
        members = [member for member in members if member in clip_scores]
    count = math.ceil(len(members) / config.generate.images_per_shard)
    # Even shards: training workers that read one each are to end together.
    parts = np.array_split(np.arange(len(members)), count)
    per_window = max(1, WINDOW_IMAGES // config.generate.images_per_shard)
    windows = []
    for first in range(0, count, per_window):
        own = parts[first : first + per_window]
        # Then all images of the window: those of a chunk are of one class.
        order = iter(rng.permutation(np.concatenate(own)))
        shards = []
        for number, part in enumerate(own):
            images = tuple(members[place] for place in itertools.islice(order, len(part)))
            scores = tuple(clip_scores[image] for image in images) if clip_scores else ()
            shards.append(Shard(shard_name(config.generate.dataset_format, first + number, count), images, scores))
        windows.append(Window(tuple(shards)))
    return windows


def window_memory(window: Window, file_bytes: Mapping[str, int], file_images: Mapping[str, int]) -> int:
    """Bytes that writing a window takes at most, by the size and the images of each chunk file.

    All its images are held; while a chunk is read or a shard is written, so are copies of these.
    """
    taken = window.images_of_files
    held = sum(file_bytes.get(file, 0) * count / file_images[file] for file, count in taken.items())
    largest_chunk = max(file_bytes.get(file, 0) for file in taken)
    # By the mean size of an image: shards are class-mixed, so that none has large ones alone.
    largest_shard = held * max(len(shard.members) for shard in window.shards) / window.n_images
    return POOLS + math.ceil(held + max(COPIES_WHILE_READING * largest_chunk, COPIES_WHILE_WRITING * largest_shard))


def write_window(
    store: RunStore, window: Window, class_names: Sequence[str], config: ExperimentConfig
) -> list[ShardRecord]:
    """Read each of a window's chunks once and write its shards."""
    members = {member for shard in window.shards for member in shard.members}
    images: dict[tuple[str, int], ImageRecord] = {}
    for file in window.images_of_files:
        records = from_parquet(store.read_bytes(file))
        # Filters may have left out most of a chunk, and a neighbouring window may have the rest.
        images |= {(file, row): record for row, record in enumerate(records) if (file, row) in members}
    write = to_parquet if config.generate.dataset_format == "parquet" else to_webdataset
    written = []
    for shard in window.shards:
        records = [images[member] for member in shard.members]
        if shard.clip_scores:
            records = [
                replace(record, provenance={**record.provenance, "clip_score": score})
                for record, score in zip(records, shard.clip_scores, strict=True)
            ]
        data = write(records, config.generate.image_format, class_names)
        store.write_bytes(shard_file(shard.name), data)
        written.append(ShardRecord(name=shard.name, sha256=sha256(data), n_bytes=len(data)))
    return written
