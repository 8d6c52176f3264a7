"""Stream chunks of requests through a pool of samplers into committed files, then publish the dataset (Ray Data).

A chunk, images of one class from one adapter, is the unit of work, retry and commit: its images do not depend on which
actor draws it or when, its file name is fixed, and a chunk that is committed is never drawn again. The published
shards are a seeded shuffle, so they depend on the plan alone: of all images where these are few, and otherwise of all
chunks and then of the images of many chunks at a time, so that no chunk is read by more than two tasks.
"""

from __future__ import annotations

import itertools
import logging
import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import ray
from ray.util.metrics import Counter

from datadream.cluster import Workers
from datadream.config import ExperimentConfig
from datadream.data.card import dataset_card
from datadream.data.datasets import open_source
from datadream.data.few_shot import FewShotSet
from datadream.data.shards import (
    ImageRecord,
    encode_image,
    from_parquet,
    shard_name,
    to_parquet,
    to_webdataset,
)
from datadream.failures import check_none_failed
from datadream.generate.chunks import Chunk
from datadream.methods.base import ImageRequest
from datadream.progress import Facts, Progress
from datadream.run_store import CHUNKS, DATASET, RunStore, read_adapter, sha256
from datadream.seeds import derive_seed

log = logging.getLogger(__name__)

T = TypeVar("T")
ATTEMPTS = 3
WINDOW_IMAGES = 5000
"""Images that are shuffled together and held in memory at once: 1.8 GB of lossless 512-pixel images."""
FAILED_CHUNKS = "stages/generate-failed.json"


@dataclass(frozen=True, slots=True)
class _Shard:
    """One published file and its images as (chunk file, row)."""

    name: str
    members: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class _Window:
    """Shards that share their chunks, so that each chunk is read once."""

    shards: tuple[_Shard, ...]

    @property
    def files(self) -> set[str]:
        """Chunk files of its images."""
        return {file for shard in self.shards for file, _ in shard.members}


def draw_chunks(store: RunStore, chunks: Sequence[Chunk], config: ExperimentConfig, workers: Workers) -> None:
    """Draw every chunk that is not committed yet; `store` is told how far it is.

    A chunk that fails three times does not stop the others; raises RuntimeError that names those at the end. They are
    drawn when this is called again.
    """
    committed = {url: RunStore(url).markers(CHUNKS) for url in {chunk.run_url for chunk in chunks}}
    todo = [chunk for chunk in chunks if chunk.chunk_id not in committed[chunk.run_url]]
    if not todo:
        return
    total, to_do = _n_images(chunks), _n_images(todo)
    log.info("generate: %d of %d images to draw, in %d chunks", to_do, total, len(todo))
    _quiet_ray_data()
    drawn = ray.data.from_items([{"chunk": pickle.dumps(chunk)} for chunk in todo], override_num_blocks=len(todo)).map(
        _ChunkDrawer,
        fn_constructor_args=(config, workers),
        compute=ray.data.ActorPoolStrategy(size=workers.at_most(len(todo)).count),
        num_cpus=0 if workers.use_gpu else workers.threads,
        num_gpus=1 if workers.use_gpu else 0,
    )
    commits = drawn.map(_commit_chunk, fn_kwargs={"config": config})
    tally = _Tally(len(todo), workers.at_most(len(todo)).count)
    with Progress("generate", total, "image", store, done=total - to_do) as progress, _plain_errors("drawing"):
        for row in commits.iter_rows():
            tally.add(row)
            progress.update(progress.done + row["n_images"], **tally.facts())
    what = f"drawing {len(tally.failures)} of {len(todo)} chunks of images"
    check_none_failed(store, FAILED_CHUNKS, tally.failures, what)


def publish_dataset(store: RunStore, chunks: Sequence[Chunk], few_shot: FewShotSet, config: ExperimentConfig) -> None:
    """Write the class-mixed, evenly sized shards and the dataset card, unless they are committed."""
    if store.exists(DATASET) or not chunks:
        return
    windows = _plan_windows(chunks, config)
    _quiet_ray_data()
    written = ray.data.from_items(
        [{"window": pickle.dumps(window)} for window in windows], override_num_blocks=len(windows)
    ).flat_map(_write_window, fn_kwargs={"run_url": store.url, "class_names": few_shot.class_names, "config": config})
    with _plain_errors("publishing"):
        files = {row["name"]: row for row in written.iter_rows()}
    n_images, n_bytes = _n_images(chunks), sum(row["n_bytes"] for row in files.values())
    store.write_bytes("dataset/README.md", dataset_card(few_shot, config, n_images, n_bytes).encode())
    marker = {
        "format": config.generate.dataset_format,
        "image_format": config.generate.image_format,
        "n_images": n_images,
        "class_names": list(few_shot.class_names),
        "shards": sorted(files),
        "sha256": [files[name]["sha256"] for name in sorted(files)],
    }
    store.write_json(DATASET, marker)


class _Tally:
    """What the progress line says of chunks."""

    def __init__(self, n_chunks: int, n_workers: int) -> None:
        self.failures: list[str] = []
        self._n_chunks, self._n_workers = n_chunks, n_workers
        self._chunks = self._retries = 0
        self._busy, self._began = 0.0, math.inf

    def add(self, row: dict[str, Any]) -> None:
        """A chunk is committed, or has failed for good."""
        self._began = min(self._began, time.monotonic() - row["seconds"])
        self._busy += row["seconds"]
        self._chunks += 1
        self._retries += row["retries"]
        if row["error"]:
            self.failures.append(row["error"])

    def facts(self) -> Facts:
        """Chunks done, the share of their time that samplers were drawing, chunks retried and failed."""
        passed = self._n_workers * max(time.monotonic() - self._began, 1e-9)
        facts: Facts = {
            "chunks": f"{self._chunks}/{self._n_chunks}",
            "busy_percent": min(100, 100 * self._busy / passed),
        }
        counts = {"retried": self._retries, "failed": len(self.failures)}
        return facts | {name: count for name, count in counts.items() if count}


class _ChunkDrawer:
    """Ray Data actor: holds the loaded generator. Its counters reach whatever scrapes Ray's metrics."""

    def __init__(self, config: ExperimentConfig, workers: Workers) -> None:
        # Imported here, not above: diffusers takes seconds, and the encoding tasks import this module as well.
        import torch

        from datadream.device import dtype_of, use_threads, worker_device
        from datadream.generate.sampler import Sampler
        from datadream.models.diffusion import load_pipeline

        use_threads(workers.threads)
        device = worker_device(workers.use_gpu)
        dtype = dtype_of(config.generate.precision, device, on_cuda=torch.float16)
        pipeline = load_pipeline(config.diffusion.model, config.diffusion.revision, device, dtype)
        self._sampler = Sampler(pipeline, config.generate, config.diffusion.resolution)
        self._source = open_source(config.data.source)
        self._images = Counter("datadream_images_drawn", "Images that samplers drew.")
        self._seconds = Counter("datadream_drawing_seconds", "Seconds that samplers spent drawing.")
        self._retries = Counter("datadream_drawing_retries", "Times that drawing a chunk was tried again.")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        chunk: Chunk = pickle.loads(row["chunk"])
        store = RunStore(chunk.run_url)

        def draw() -> np.ndarray:
            read = partial(read_adapter, store)
            return self._sampler.draw(chunk.requests, read, self._source.read, run=chunk.run_url)

        started = time.monotonic()
        pixels, error, retries = _tried(chunk, draw)
        seconds = time.monotonic() - started
        pixels = np.zeros((0, 1, 1, 3), np.uint8) if pixels is None else pixels
        for counter, value in ((self._images, len(pixels)), (self._seconds, seconds), (self._retries, retries)):
            if value:  # a counter does not take 0
                counter.inc(value)
        return {**row, "pixels": pixels, "error": error, "retries": retries, "seconds": seconds}


def _commit_chunk(row: dict[str, Any], config: ExperimentConfig) -> dict[str, Any]:
    """Encode a chunk's pixels and commit them; runs on CPUs beside the samplers."""
    chunk: Chunk = pickle.loads(row["chunk"])
    told = {"retries": row["retries"], "seconds": row["seconds"]}
    if row["error"]:
        return {"n_images": 0, "error": row["error"], **told}
    n_images, error, retries = _tried(chunk, lambda: _write_chunk(chunk, row["pixels"], config))
    return {"n_images": n_images or 0, "error": error, **told, "retries": row["retries"] + retries}


def _tried(chunk: Chunk, work: Callable[[], T]) -> tuple[T | None, str, int]:
    """What the work returns, or why it failed for the last time; and how often it was tried again."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return work(), "", attempt - 1
        except Exception as error:
            reason = f"chunk {chunk.chunk_id}: {type(error).__name__}: {error}"
            log.warning("%s (attempt %d of %d)", reason, attempt, ATTEMPTS)
    return None, reason, ATTEMPTS - 1


def _write_chunk(chunk: Chunk, images: np.ndarray, config: ExperimentConfig) -> int:
    records = [
        ImageRecord(
            key=f"{request.label:05d}_{request.index:06d}",
            image=encode_image(pixels, config.generate.image_format),
            label=request.label,
            provenance=_provenance(request, config),
        )
        for request, pixels in zip(chunk.requests, images, strict=True)
    ]
    data = to_parquet(records, config.generate.image_format, ())
    store = RunStore(chunk.run_url)
    store.write_bytes(chunk.file, data)
    store.write_json(chunk.marker, {"n_images": len(records), "sha256": sha256(data)})
    return len(records)


def _provenance(request: ImageRequest, config: ExperimentConfig) -> dict[str, Any]:
    settings = config.generate
    return {
        **{
            key: value for key, value in asdict(request).items() if key not in ("label", "index") and value is not None
        },
        "model": config.diffusion.model,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
    }


def _plan_windows(chunks: Sequence[Chunk], config: ExperimentConfig) -> list[_Window]:
    """A seeded shuffle of all chunks, then of the images of each window; shards differ by at most one image."""
    rng = np.random.default_rng(derive_seed(config.seed, "publish"))
    shuffled = [chunks[place] for place in rng.permutation(len(chunks))]
    members = [(chunk.file, row) for chunk in shuffled for row in range(len(chunk.requests))]
    count = math.ceil(len(members) / config.generate.images_per_shard)
    parts = np.array_split(np.arange(len(members)), count)
    per_window = max(1, WINDOW_IMAGES // config.generate.images_per_shard)
    windows = []
    for first in range(0, count, per_window):
        own = parts[first : first + per_window]
        order = iter(rng.permutation(np.concatenate(own)))
        windows.append(
            _Window(
                tuple(
                    _Shard(
                        shard_name(config.generate.dataset_format, first + number, count),
                        tuple(members[place] for place in itertools.islice(order, len(part))),
                    )
                    for number, part in enumerate(own)
                )
            )
        )
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
        data = write(records, config.generate.image_format, class_names)
        store.write_bytes(f"dataset/{shard.name}", data)
        written.append({"name": shard.name, "sha256": sha256(data), "n_bytes": len(data)})
    return written


def _n_images(chunks: Sequence[Chunk]) -> int:
    return sum(len(chunk.requests) for chunk in chunks)


def _quiet_ray_data() -> None:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.raise_original_map_exception = True


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """Raise what a worker said, not Ray's account of it."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        # Ours is the first line; Ray Data appends its retry advice.
        raise RuntimeError(f"{what} images failed: {str(error.cause).splitlines()[0]}") from None
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"{what} images failed: {error}") from error
