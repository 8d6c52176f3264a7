"""Stream chunks of requests through a pool of samplers into committed files (Ray Data).

A chunk, images of one class from one adapter, is the unit of work, retry and commit: its images do not depend on which
actor draws it or when, its file name is fixed, and a chunk that is committed is never drawn again.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import ray
from ray.util.metrics import Counter, Gauge

from datadream.config import ExperimentConfig, public_model
from datadream.data.datasets import open_source
from datadream.data.shards import ImageRecord, encode_image, to_parquet
from datadream.hashing import sha256
from datadream.methods.base import ImageRequest
from datadream.methods.chunks import Chunk, n_images
from datadream.run.layout import CHUNKS
from datadream.run.store import RunStore, adapter_sha256, read_adapter
from datadream.runtime.failures import check_none_failed
from datadream.runtime.map_units import plain_errors, quiet_ray_data
from datadream.runtime.progress import Facts, Progress
from datadream.runtime.session import Workers

if TYPE_CHECKING:
    from datadream.generate.sampler import Sampler

log = logging.getLogger(__name__)

T = TypeVar("T")
ATTEMPTS = 3
FAILED_CHUNKS = "stages/generate-failed.json"
BATCH_SIZE = "stages/generate-batch.json"


def draw_chunks(
    store: RunStore,
    chunks: Sequence[Chunk],
    config: ExperimentConfig,
    workers: Workers,
    facts: Facts | None = None,
) -> None:
    """Draw every chunk that is not committed yet; `store` is told how far it is, and `facts` that hold meanwhile.

    A chunk that fails three times does not stop the others; raises RuntimeError that names those at the end. They are
    drawn when this is called again.
    """
    committed = {url: RunStore(url).markers(CHUNKS) for url in {chunk.run_url for chunk in chunks}}
    todo = [chunk for chunk in chunks if chunk.chunk_id not in committed[chunk.run_url]]
    if not todo:
        return
    total, to_do = n_images(chunks), n_images(todo)
    log.info("generate: %d of %d images to draw, in %d chunks", to_do, total, len(todo))
    quiet_ray_data()
    rows = ray.data.from_items([{"chunk": pickle.dumps(chunk)} for chunk in todo], override_num_blocks=len(todo))
    drawn = rows.map(
        _ChunkDrawer,
        fn_constructor_args=(config, workers, store.url),
        compute=_pool(workers, len(todo)),
        num_cpus=0 if workers.use_gpu else workers.threads,
        num_gpus=1 if workers.use_gpu else 0,
    )
    # Samplers on CPUs may fill all of them when nodes are lost; beside these, encoding takes next to nothing.
    commits = drawn.map(_commit_chunk, fn_kwargs={"config": config}, num_cpus=1 if workers.use_gpu else 0)
    tally = _Tally(len(todo))
    with Progress("generate", total, "image", store, done=total - to_do) as progress, plain_errors("drawing"):
        for row in commits.iter_rows():
            tally.add(row)
            progress.update(progress.done + row["n_images"], **tally.facts(), **(facts or {}))
    what = f"drawing {len(tally.failures)} of {len(todo)} chunks of images"
    check_none_failed(store, FAILED_CHUNKS, tally.failures, what)


def _pool(workers: Workers, n_chunks: int) -> ray.data.ActorPoolStrategy:
    """As many samplers as were asked for; where nobody asked, those that fit now, and more or fewer as nodes join and
    leave."""
    count = workers.at_most(n_chunks).count
    if not workers.grows:
        return ray.data.ActorPoolStrategy(size=count)
    return ray.data.ActorPoolStrategy(min_size=1, initial_size=count, max_size=n_chunks)


class _Tally:
    """What the progress line and Ray's metrics say of chunks."""

    def __init__(self, n_chunks: int) -> None:
        self.failures: list[str] = []
        self._n_chunks = n_chunks
        self._chunks = self._retries = 0
        self._busy = self._idle = 0.0
        self._left = Gauge("datadream_chunks_left", "Chunks of images that are neither drawn nor given up.")
        self._busy_share = Gauge("datadream_samplers_busy_percent", "Share of their time that samplers were drawing.")

    def add(self, row: dict[str, Any]) -> None:
        """A chunk is committed, or has failed for good."""
        self._busy += row["seconds"]
        self._idle += row["idle_seconds"]
        self._chunks += 1
        self._retries += row["retries"]
        if row["error"]:
            self.failures.append(row["error"])
        self._left.set(self._n_chunks - self._chunks)
        self._busy_share.set(self._busy_percent)

    @property
    def _busy_percent(self) -> float:
        return 100 * self._busy / max(self._busy + self._idle, 1e-9)

    def facts(self) -> Facts:
        """Chunks done, the share of their time that samplers were drawing, chunks retried and failed."""
        facts: Facts = {"chunks": f"{self._chunks}/{self._n_chunks}", "busy_percent": self._busy_percent}
        counts = {"retried": self._retries, "failed": len(self.failures)}
        return facts | {name: count for name, count in counts.items() if count}


class _ChunkDrawer:
    """Ray Data actor: holds the loaded generator. Its counters reach whatever scrapes Ray's metrics."""

    def __init__(self, config: ExperimentConfig, workers: Workers, run_url: str) -> None:
        # Imported here, not above: diffusers takes seconds, and the encoding tasks import this module as well.
        import torch

        from datadream.generate.sampler import Sampler
        from datadream.models.diffusion.pipeline import load_pipeline
        from datadream.runtime.device import dtype_of, use_threads, worker_device

        use_threads(workers.threads)
        device = worker_device(workers.use_gpu)
        dtype = dtype_of(config.generate.precision, device, on_cuda=torch.float16)
        pipeline = load_pipeline(config.diffusion.model, config.diffusion.revision, device, dtype)
        self._sampler = Sampler(pipeline, config.generate, config.diffusion.resolution)
        if device.type == "cuda" and config.generate.batch_size is None:
            self._sampler.batch_size = _noted_batch(RunStore(run_url), self._sampler)
        self._scheduler = type(pipeline.scheduler).__name__
        self._ended: float | None = None
        """When the last chunk was drawn."""
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
        idle_seconds = started - self._ended if self._ended else 0.0
        pixels, error, retries = _tried(chunk, draw)
        self._ended = time.monotonic()
        seconds = self._ended - started
        pixels = np.zeros((0, 1, 1, 3), np.uint8) if pixels is None else pixels
        for counter, value in ((self._images, len(pixels)), (self._seconds, seconds), (self._retries, retries)):
            if value:  # a counter does not take 0
                counter.inc(value)
        told = {"error": error, "retries": retries, "seconds": seconds, "idle_seconds": idle_seconds}
        return {**row, "pixels": pixels, "scheduler": self._scheduler, **told}


def _noted_batch(store: RunStore, sampler: Sampler) -> int:
    """Other batches would change an image's last bits, so the first measurement of a run holds for all workers."""
    if store.exists(BATCH_SIZE):
        return store.read_json(BATCH_SIZE)["batch_size"]
    return store.write_json_once(BATCH_SIZE, {"batch_size": sampler.fastest_batch()})["batch_size"]


def _commit_chunk(row: dict[str, Any], config: ExperimentConfig) -> dict[str, Any]:
    """Encode a chunk's pixels and commit them; runs on CPUs beside the samplers."""
    chunk: Chunk = pickle.loads(row["chunk"])
    told = {name: row[name] for name in ("retries", "seconds", "idle_seconds")}
    if row["error"]:
        return {"n_images": 0, "error": row["error"], **told}
    written, error, retries = _tried(chunk, lambda: _write_chunk(chunk, row["pixels"], row["scheduler"], config))
    return {"n_images": written or 0, "error": error, **told, "retries": row["retries"] + retries}


def _tried(chunk: Chunk, work: Callable[[], T]) -> tuple[T | None, str, int]:
    """What the work returns, or why it failed for the last time; and how often it was tried again."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return work(), "", attempt - 1
        except Exception as error:
            reason = f"chunk {chunk.chunk_id}: {type(error).__name__}: {error}"
            log.warning("%s (attempt %d of %d)", reason, attempt, ATTEMPTS)
    return None, reason, ATTEMPTS - 1


def _write_chunk(chunk: Chunk, images: np.ndarray, scheduler: str, config: ExperimentConfig) -> int:
    store, settings = RunStore(chunk.run_url), config.generate
    hashes = {name: adapter_sha256(store, name) for name, _ in chunk.requests[0].adapters}
    records = [
        ImageRecord(
            key=f"{request.label:05d}_{request.index:06d}",
            image=encode_image(pixels, settings.image_format),
            label=request.label,
            provenance=_provenance(request, hashes, scheduler, config),
        )
        for request, pixels in zip(chunk.requests, images, strict=True)
    ]
    data = to_parquet(records, settings.image_format, ())
    store.write_bytes(chunk.file, data)
    store.write_json(chunk.marker, {"n_images": len(records), "sha256": sha256(data)})
    return len(records)


def _provenance(
    request: ImageRequest, adapter_hashes: Mapping[str, str], scheduler: str, config: ExperimentConfig
) -> dict[str, Any]:
    """How an image was made. Lists hold values of one type, or `datasets` cannot read them from a WebDataset."""
    settings = config.generate
    made_by = {
        "prompt": request.prompt,
        "seed": request.seed,
        "adapters": [
            {"name": name, "weight": weight, "sha256": adapter_hashes[name]} for name, weight in request.adapters
        ],
        "source_key": request.source_key,
        "strength": request.strength,
        "model": public_model(config.diffusion.model),
        "revision": config.diffusion.revision,
        "scheduler": scheduler,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "guidance_interval": settings.guidance_interval,
        "cache_interval": settings.cache_interval,
    }
    return {name: value for name, value in made_by.items() if value is not None}
