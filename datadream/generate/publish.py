"""Publish committed chunks as a dataset (Ray Data): class-mixed, even shards whose bytes depend on the plan alone.

The shards are a seeded shuffle: of all images where these are few, and otherwise of all chunks and then of the images
of many chunks at a time, so that no chunk is read by more than two tasks.
"""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray.data

from datadream.config import ExperimentConfig
from datadream.data.card import dataset_card
from datadream.data.few_shot import FewShotSet
from datadream.data.shards import ImageRecord, from_parquet, shard_name, to_parquet, to_webdataset
from datadream.generate.select.record import Selection
from datadream.hashing import sha256
from datadream.methods.chunks import Chunk, plan_hash
from datadream.run.layout import DATASET
from datadream.run.store import RunStore
from datadream.runtime.map_units import plain_errors, quiet_ray_data
from datadream.seeds import derive_seed

WINDOW_IMAGES = 5000
"""Images that are shuffled together and held in memory at once: 1.8 GB of lossless 512-pixel images."""


@dataclass(frozen=True, slots=True)
class _Shard:
    """One published file and its images as (chunk file, row)."""

    name: str
    members: tuple[tuple[str, int], ...]
    clip_scores: tuple[float, ...]
    """Of each image, where filters chose them."""


@dataclass(frozen=True, slots=True)
class _Window:
    """Shards that share their chunks, so that each chunk is read once."""

    shards: tuple[_Shard, ...]

    @property
    def files(self) -> set[str]:
        """Chunk files of its images."""
        return {file for shard in self.shards for file, _ in shard.members}


def publish_dataset(store: RunStore, chunks: Sequence[Chunk], few_shot: FewShotSet, config: ExperimentConfig) -> None:
    """Write the class-mixed, evenly sized shards and the dataset card, unless they are committed.

    Where filters choose the images, `chunks` are all that may have been drawn.
    """
    if store.exists(DATASET) or not chunks:
        return
    selection = Selection.read(store) if config.generate.select.on else None
    windows = _plan_windows(chunks, config, selection and selection.clip_scores(chunks))
    quiet_ray_data()
    written = ray.data.from_items(
        [{"window": pickle.dumps(window)} for window in windows], override_num_blocks=len(windows)
    ).flat_map(_write_window, fn_kwargs={"run_url": store.url, "class_names": few_shot.class_names, "config": config})
    with plain_errors("publishing"):
        files = {row["name"]: row for row in written.iter_rows()}
    n_bytes = sum(row["n_bytes"] for row in files.values())
    published = sum(len(shard.members) for window in windows for shard in window.shards)
    totals = selection.totals if selection else None
    store.write_bytes("dataset/README.md", dataset_card(few_shot, config, published, n_bytes, totals).encode())
    marker = {
        "plan": plan_hash(chunks, config),
        "format": config.generate.dataset_format,
        "image_format": config.generate.image_format,
        "n_images": published,
        "class_names": list(few_shot.class_names),
        "shards": sorted(files),
        "sha256": [files[name]["sha256"] for name in sorted(files)],
        "n_bytes": [files[name]["n_bytes"] for name in sorted(files)],
    }
    if totals:
        marker["selection"] = totals
    store.write_json(DATASET, marker)


def _plan_windows(
    chunks: Sequence[Chunk], config: ExperimentConfig, clip_scores: Mapping[tuple[str, int], float] | None = None
) -> list[_Window]:
    """A seeded shuffle of all chunks, then of the images of each window; shards differ by at most one image.

    With `clip_scores`, only the images (chunk file, row) that have one.
    """
    rng = np.random.default_rng(derive_seed(config.seed, "publish"))
    shuffled = [chunks[place] for place in rng.permutation(len(chunks))]
    members = [(chunk.file, row) for chunk in shuffled for row in range(len(chunk.requests))]
    if clip_scores is not None:
        members = [member for member in members if member in clip_scores]
    count = math.ceil(len(members) / config.generate.images_per_shard)
    parts = np.array_split(np.arange(len(members)), count)
    per_window = max(1, WINDOW_IMAGES // config.generate.images_per_shard)
    windows = []
    for first in range(0, count, per_window):
        own = parts[first : first + per_window]
        order = iter(rng.permutation(np.concatenate(own)))
        shards = []
        for number, part in enumerate(own):
            images = tuple(members[place] for place in itertools.islice(order, len(part)))
            scores = tuple(clip_scores[image] for image in images) if clip_scores else ()
            shards.append(_Shard(shard_name(config.generate.dataset_format, first + number, count), images, scores))
        windows.append(_Window(tuple(shards)))
    return windows


def _write_window(
    row: dict[str, Any], run_url: str, class_names: Sequence[str], config: ExperimentConfig
) -> list[dict[str, Any]]:
    """Read each of a window's chunks once and write its shards."""
    window: _Window = pickle.loads(row["window"])
    store = RunStore(run_url)
    files = {file: from_parquet(store.read_bytes(file)) for file in window.files}
    write = to_parquet if config.generate.dataset_format == "parquet" else to_webdataset
    written = []
    for shard in window.shards:
        records = [files[file][index] for file, index in shard.members]
        if shard.clip_scores:
            records = list(map(_with_clip_score, records, shard.clip_scores))
        data = write(records, config.generate.image_format, class_names)
        store.write_bytes(f"dataset/{shard.name}", data)
        written.append({"name": shard.name, "sha256": sha256(data), "n_bytes": len(data)})
    return written


def _with_clip_score(record: ImageRecord, score: float) -> ImageRecord:
    return replace(record, provenance={**record.provenance, "clip_score": score})
