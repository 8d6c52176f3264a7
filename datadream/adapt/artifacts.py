"""What an adapter leaves in the run's folder, the index of all, and whether files are still what was written."""

from __future__ import annotations

import io
import logging
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from datadream.config import ExperimentConfig
from datadream.hashing import sha256, spec_hash
from datadream.run.layout import ADAPTER_INDEX, adapter_weights
from datadream.run.store import RunStore, library_versions
from datadream.runtime.work_queue import AdapterJob

if TYPE_CHECKING:
    from datadream.adapt.lora_trainer import TrainedAdapter

log = logging.getLogger(__name__)

LOSSES = "losses.parquet"
CORRUPT = "corrupt-"
"""How weights are renamed that are not what their marker says."""


def commit_adapter(job: AdapterJob, trained: TrainedAdapter, config: ExperimentConfig) -> None:
    """Write an adapter's weights, the loss of every step, what else was asked for, and then the marker that makes it
    count."""
    store = RunStore(job.run_url)
    folder = posixpath.dirname(job.marker)
    store.write_bytes(adapter_weights(job.spec.adapter_id), trained.weights)
    store.write_bytes(f"{folder}/{LOSSES}", _losses_table(job.spec.adapter_id, trained.losses))
    for name, data in trained.exports.items():
        store.write_bytes(f"{folder}/{name}", data)
    spec = asdict(job.spec)
    marker = {
        "adapter_id": job.spec.adapter_id,
        "spec": spec,
        "spec_sha256": spec_hash(
            [spec, config.adapt.model_dump(mode="json"), config.diffusion.model_dump(mode="json")]
        ),
        "weights_sha256": sha256(trained.weights),
        "base_model": config.diffusion.model,
        "rank": config.adapt.rank,
        "steps": len(trained.losses),
        "losses": trained.curve(),
        "vae_encodes": trained.vae_encodes,
        "seconds": round(trained.seconds, 3),
        "versions": library_versions(),
    }
    store.write_json(job.marker, marker)


def are_committed(jobs: Sequence[AdapterJob]) -> list[bool]:
    """Which adapters have their marker and the weights that it announces.

    Weights that differ from their marker's hash are set aside under another name, and the adapter counts as missing.
    """
    # A thousand adapters are a thousand small files: in an object store each is a round trip.
    with ThreadPoolExecutor(32) as threads:
        return list(threads.map(_is_committed, jobs))


def write_index(jobs: Sequence[AdapterJob]) -> None:
    """Write adapters/index.json of each run: all its adapters with prompts, steps, last loss, file and hash."""
    for url in dict.fromkeys(job.run_url for job in jobs):
        store = RunStore(url)
        with ThreadPoolExecutor(32) as threads:
            own = [job for job in jobs if job.run_url == url]
            entries = list(threads.map(lambda job, store=store: _index_entry(store, job), own))
        store.write_json(ADAPTER_INDEX, entries)


def _is_committed(job: AdapterJob) -> bool:
    store, weights = RunStore(job.run_url), adapter_weights(job.spec.adapter_id)
    if not store.exists(job.marker):
        return False
    expected = store.read_json(job.marker)["weights_sha256"]
    found = sha256(store.read_bytes(weights)) if store.exists(weights) else None
    if found == expected:
        return True
    # The marker goes first: a reader must never trust what is being moved.
    store.remove(job.marker)
    if found:
        store.move(weights, f"{posixpath.dirname(weights)}/{CORRUPT}{found[:8]}.safetensors")
    log.warning(
        "adapt: the weights of %r %s: set aside, to be trained again",
        job.spec.adapter_id,
        "are not what was written" if found else "are gone",
    )
    return False


def _index_entry(store: RunStore, job: AdapterJob) -> dict[str, Any]:
    marker = store.read_json(job.marker)
    return {
        "adapter_id": job.spec.adapter_id,
        "file": adapter_weights(job.spec.adapter_id),
        "sha256": marker["weights_sha256"],
        "prompts": sorted({photo.prompt for photo in job.spec.photos}),
        "n_photos": len(job.spec.photos),
        "steps": marker["steps"],
        "last_loss": marker["losses"][-1][1],
        "rank": marker["rank"],
        "base_model": marker["base_model"],
        "seconds": marker["seconds"],
    }


def _losses_table(adapter_id: str, losses: Sequence[float]) -> bytes:
    steps = pa.array(range(1, len(losses) + 1), pa.int32())
    table = pa.table({"adapter_id": [adapter_id] * len(losses), "step": steps, "loss": pa.array(losses, pa.float32())})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
