"""Generate chunks of images, and publish them as a dataset: both as units that `run_mapped` spreads over the cluster.

A chunk, images of one class from one adapter, is the unit of work, retry and commit: its images do not depend on which
sampler makes it or when, its file name is fixed, and a chunk that is committed is never made again.
"""

from __future__ import annotations

import logging
import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from datadream.config import ExperimentConfig, public_model
from datadream.data.card import dataset_card
from datadream.data.datasets import open_source
from datadream.data.shards import ImageRecord, encode_image, to_parquet
from datadream.generate.publish import Window, plan_windows, window_memory, write_window
from datadream.generate.select.record import Selection
from datadream.hashing import sha256
from datadream.methods.base import ImageRequest
from datadream.methods.chunks import Chunk
from datadream.run.cell import Cell
from datadream.run.layout import (
    CARD,
    CHUNKS,
    DATASET,
    DATASET_FOLDER,
    FAILED_CHUNKS,
    FAILED_WINDOWS,
    GENERATE_BATCH,
    WINDOWS,
    ChunkMarker,
    DatasetMarker,
    GenerateBatch,
    ShardRecord,
    adapter_marker,
    shard_file,
    window_marker,
)
from datadream.run.store import RunStore, adapter_sha256, read_adapter
from datadream.runtime.failures import Ledger, finish, retried
from datadream.runtime.map_units import Mapped, run_mapped
from datadream.runtime.progress import Facts, Listener, Reporter
from datadream.runtime.unit import Unit, pending, titles
from datadream.runtime.workers import Workers

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Generated = tuple[np.ndarray, dict[str, str]]
"""Pixels [n, height, width, 3], uint8, and what of their provenance the worker alone knows."""


def chunk_units(chunks: Sequence[Chunk]) -> list[Unit[Chunk]]:
    """Chunks as units, which can start when their adapters are trained."""
    return [
        Unit(
            run_url=chunk.run_url,
            name=f"chunk {chunk.chunk_id}",
            marker=chunk.marker,
            payload=chunk,
            size=len(chunk.requests),
            needs=tuple(map(adapter_marker, chunk.adapter_ids)),
        )
        for chunk in chunks
    ]


def generate_chunks(
    store: RunStore,
    units: Sequence[Unit[Chunk]],
    config: ExperimentConfig,
    workers: Workers,
    listeners: Sequence[Listener] = (),
    facts: Facts | None = None,
) -> None:
    """Generate every chunk that is not committed yet; `facts` hold meanwhile and are told beside our own.

    A chunk that fails stops no others; raises RuntimeError that names those that failed at the end. They are generated
    when this is called again.
    """
    missing = pending(units)
    if not missing:
        return
    total, to_do = sum(unit.size for unit in units), sum(unit.size for unit in missing)
    log.info("generate: %d of %d images to generate, in %d chunks", to_do, total, len(missing))
    commit = partial(_commit_chunk, config=config)
    how = Mapped(load=_load_sampler, load_from=(config, store.url), what="generating", commit=commit)
    ledger: Ledger[tuple[str, str]] = Ledger()
    n_done, busy, idle = 0, 0.0, 0.0

    waiting_for = f"{workers.at_most(len(missing)).count} samplers to start"
    with Reporter("generate", total, "image", listeners, total - to_do, waiting_for) as reporter:

        def tell(n_images: int) -> None:
            ours: Facts = {"chunks": f"{n_done + len(ledger.given_up)}/{len(missing)}"}
            if n_done:
                ours["busy_percent"] = 100 * busy / max(busy + idle, 1e-9)
            reporter.update(reporter.done + n_images, "", len(ledger.given_up), **ours, **(facts or {}))

        for done in run_mapped(store, missing, how, workers, ledger):
            n_done, busy, idle = n_done + 1, busy + done.busy_seconds, idle + done.idle_seconds
            tell(done.unit.size)
        tell(0)  # units that are given up come back with no row of their own
    finish_units(store, FAILED_CHUNKS, missing, ledger, "generating {} of {} chunks of images")


def finish_units(
    store: RunStore, file: str, units: Sequence[Unit], ledger: Ledger[tuple[str, str]], what: str
) -> None:
    """End a stage; raises RuntimeError that names the units given up, after `what` with how many of how many."""
    names = titles(units)
    failures = [f"{names[key]}: {reason}" for key, reason in sorted(ledger.given_up.items())]
    finish(store, file, failures, what.format(len(failures), len(units)))


def _load_sampler(
    load_from: tuple[ExperimentConfig, str], device: torch.device | None
) -> Callable[[Unit[Chunk]], Generated]:
    """Runs once in every sampler: the model stays loaded."""
    # Imported here, not above: diffusers takes seconds, and the commit tasks import this module as well.
    import torch

    from datadream.generate.sampler import Sampler
    from datadream.models.diffusion.pipeline import load_pipeline
    from datadream.runtime.device import DTYPES, dtype_of

    config, run_url = load_from
    assert device is not None
    dtype = dtype_of(config.generate.precision, device, on_cuda=torch.float16)
    model = config.diffusion
    pipeline = retried(lambda: load_pipeline(model.model, model.revision, device, dtype), "loading the model")
    sampler = Sampler(pipeline, config.generate, model.resolution)
    # As the sampler has set them: an image's provenance names what made it, also where the config names nothing.
    made_with = {
        "scheduler": type(pipeline.scheduler).__name__,
        "precision": next(name for name, known in DTYPES.items() if known is dtype),
    }
    # On CPUs the best batch is known (see CPU_BATCH).
    if device.type == "cuda" and config.generate.batch_size is None:
        # Other batches would change an image's last bits, so the first measurement of a run holds for all workers.
        run = RunStore(run_url)
        if (noted := run.read_json_once(GENERATE_BATCH)) is None:
            measured = GenerateBatch(batch_size=sampler.fastest_batch())
            noted = run.write_json_once(GENERATE_BATCH, measured.to_json())
        sampler.batch_size = GenerateBatch.from_json(noted).batch_size
    source = open_source(config.data.source, config.data.background)

    def generate(unit: Unit[Chunk]) -> Generated:
        # The retries are around the reads alone: an image costs far more than the file that it needs.
        pixels = sampler.generate(
            unit.payload.requests,
            lambda name: retried(lambda: read_adapter(unit.store, name), f"reading adapter {name!r}"),
            lambda key: retried(lambda: source.read(key), f"reading photo {key!r}"),
            run=unit.run_url,
        )
        return pixels, made_with

    return generate


def _commit_chunk(unit: Unit[Chunk], generated: Generated, config: ExperimentConfig) -> None:
    """Encode a chunk's images and commit them; runs on CPUs, beside samplers that are on GPUs."""
    (images, made_with), chunk, store, settings = generated, unit.payload, unit.store, config.generate
    adapter_ids = chunk.adapter_ids
    hashes = retried(lambda: {name: adapter_sha256(store, name) for name in adapter_ids}, f"{unit.name}: reading")
    records = [
        ImageRecord(
            key=f"{request.label:05d}_{request.index:06d}",
            image=encode_image(pixels, settings.image_format),
            label=request.label,
            provenance=_provenance(request, hashes, made_with, config),
        )
        for request, pixels in zip(chunk.requests, images, strict=True)
    ]
    # Without class names: others read the published shards, which have them, and not chunks.
    data = to_parquet(records, settings.image_format, ())
    marker = ChunkMarker(n_images=len(records), sha256=sha256(data))
    retried(lambda: store.write_bytes(chunk.file, data), f"{unit.name}: writing")
    # The marker last: it says that the file is whole.
    retried(lambda: store.write_json(chunk.marker, marker.to_json()), f"{unit.name}: writing")


def _provenance(
    request: ImageRequest, adapter_hashes: dict[str, str], made_with: dict[str, str], config: ExperimentConfig
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
        "resolution": config.diffusion.resolution,
        **made_with,
        "steps": settings.steps,
        "decode_precision": None if settings.decode_precision == "auto" else settings.decode_precision,
        "guidance_scale": settings.guidance_scale,
        "guidance_interval": settings.guidance_interval,
        "cache_interval": settings.cache_interval,
    }
    return {name: value for name, value in made_by.items() if value is not None}


def publish_dataset(cell: Cell, listeners: Sequence[Listener] = ()) -> None:
    """Write the class-mixed, evenly sized shards and the dataset card, unless they are committed.

    A start that was killed goes on with the windows that are missing. Raises RuntimeError that names windows that
    cannot be written.
    """
    store, chunks, few_shot, config, plan = cell.store, cell.chunks, cell.few_shot, cell.config, cell.plan_hash
    if store.exists(DATASET) or not chunks:
        return
    # Where filters choose the images, the chunks are all that may have been generated.
    selection = Selection.read(store) if config.generate.select.on else None
    windows = plan_windows(chunks, config, selection.clip_scores(chunks) if selection else None)
    units = []
    for number, window in enumerate(windows):
        name, marker = f"window {number}", window_marker(plan, number)
        units.append(Unit(run_url=store.url, name=name, marker=marker, payload=window, size=window.n_images))
    _write_windows(cell, units, listeners)
    records = [ShardRecord.from_json(record) for unit in units for record in store.read_json(unit.marker)]
    shards = sorted(records, key=lambda record: record.name)
    n_images, n_bytes = sum(unit.size for unit in units), sum(shard.n_bytes for shard in shards)
    totals = selection.totals.to_json() if selection else None
    counts: Counter[int] = Counter()
    for series in cell.plan.images:
        counts[series.label] += len(series)
    # The card first: whoever sees dataset.json may rely on all else in the folder.
    store.write_bytes(CARD, dataset_card(few_shot, config, n_images, n_bytes, totals).encode())
    dataset = DatasetMarker(
        plan=plan,
        format=config.generate.dataset_format,
        image_format=config.generate.image_format,
        n_images=n_images,
        counts=None if selection else [counts[label] for label in range(len(few_shot.class_names))],
        class_names=few_shot.class_names,
        shards=[shard.name for shard in shards],
        sha256=[shard.sha256 for shard in shards],
        n_bytes=[shard.n_bytes for shard in shards],
        selection=totals,
    )
    store.write_json(DATASET, dataset.to_json())
    # Only now: a kill in between leaves markers that nobody reads, where the reverse would cost all windows.
    store.fs.rm(store.path(WINDOWS), recursive=True)


def _write_windows(cell: Cell, units: Sequence[Unit[Window]], listeners: Sequence[Listener]) -> None:
    """Write the windows that are missing, as many at a time as memory holds."""
    store = cell.store
    # Whoever removes dataset/ to have it published anew removes no markers, which lie elsewhere.
    markers = store.files(WINDOWS)
    shards = store.files(DATASET_FOLDER) if markers else set()
    for unit in units:
        files = {shard_file(shard.name) for shard in unit.payload.shards}
        if unit.marker in markers and not files <= shards:
            store.remove(unit.marker)
    missing = pending(units)
    if not missing:
        return
    # One listing: to ask for the size of each file would be a round trip for each.
    listed = store.fs.find(store.path(CHUNKS), detail=True)
    file_bytes = {posixpath.relpath(path, store.root): about["size"] for path, about in listed.items()}
    file_images = {chunk.file: len(chunk.requests) for chunk in cell.chunks}
    most = max(window_memory(unit.payload, file_bytes, file_images) for unit in missing)
    load_from = (cell.few_shot.class_names, cell.config)
    how = Mapped(load=_load_writer, load_from=load_from, what="publishing", bytes_each=most)
    ledger: Ledger[tuple[str, str]] = Ledger()
    total, to_do = sum(unit.size for unit in units), sum(unit.size for unit in missing)
    with Reporter("publish", total, "image", listeners, done=total - to_do) as reporter:
        for done in run_mapped(store, missing, how, None, ledger):
            reporter.update(reporter.done + done.unit.size, failed=len(ledger.given_up))
    finish_units(store, FAILED_WINDOWS, missing, ledger, "publishing {} of {} windows of shards")


def _load_writer(
    load_from: tuple[Sequence[str], ExperimentConfig], device: torch.device | None
) -> Callable[[Unit[Window]], None]:
    class_names, config = load_from

    def write(unit: Unit[Window]) -> None:
        shards = retried(lambda: write_window(unit.store, unit.payload, class_names, config), unit.name)
        retried(lambda: unit.store.write_json(unit.marker, [shard.to_json() for shard in shards]), unit.name)

    return write
