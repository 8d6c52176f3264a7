"""What an adapter leaves in the run's folder, the index of all, and whether files are still what was written."""

from __future__ import annotations

import io
import logging
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from datadream.config import ExperimentConfig
from datadream.hashing import sha256, spec_hash
from datadream.methods import AdapterSpec
from datadream.run.config_record import library_versions
from datadream.run.layout import ADAPTER_INDEX, AdapterEntry, AdapterMarker, adapter_marker, adapter_weights
from datadream.run.store import RunStore
from datadream.runtime.unit import Committed, Unit

if TYPE_CHECKING:
    from datadream.adapt.lora_trainer import TrainedAdapter

log = logging.getLogger(__name__)

LOSSES = "losses.parquet"
LOSS_EVERY = 10
"""Steps that an entry of the marker's loss curve is the mean of."""
CORRUPT = "corrupt-"
"""How weights are renamed that are not what their marker says."""
REQUESTS_AT_ONCE = 32
"""A thousand adapters are a thousand small files, and in an object store each is a round trip of 10 to 50 ms."""


def commit_adapter(store: RunStore, spec: AdapterSpec, trained: TrainedAdapter, config: ExperimentConfig) -> None:
    """Write an adapter's weights, the loss of every step, what else was asked for, and then the marker that makes it
    count."""
    marker, losses = adapter_marker(spec.adapter_id), trained.losses
    folder = posixpath.dirname(marker)
    store.write_bytes(adapter_weights(spec.adapter_id), trained.weights)
    columns = {
        # In every row, so that the tables of many adapters can be read as one.
        "adapter_id": [spec.adapter_id] * len(losses),
        "step": pa.array(range(1, len(losses) + 1), pa.int32()),
        "loss": pa.array(losses, pa.float32()),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    store.write_bytes(f"{folder}/{LOSSES}", buffer.getvalue())
    for name, data in trained.exports.items():
        store.write_bytes(f"{folder}/{name}", data)
    parts = [(start, min(len(losses), start + LOSS_EVERY)) for start in range(0, len(losses), LOSS_EVERY)]
    record = _record(spec, trained.weights, config.adapt.rank, config)
    record = replace(
        record,
        steps=len(losses),
        losses=[(end, fmean(losses[start:end])) for start, end in parts],
        vae_encodes=trained.vae_encodes,
        seconds=round(trained.seconds, 3),
    )
    store.write_json(marker, record.to_json())


def commit_given(
    store: RunStore, spec: AdapterSpec, file: str, weights: bytes, rank: int, config: ExperimentConfig
) -> None:
    """Commit the adapter that somebody else has made, as it is; `file` says where it comes from, `rank` is its
    largest."""
    store.write_bytes(adapter_weights(spec.adapter_id), weights)
    record = replace(_record(spec, weights, rank, config), given=file)
    store.write_json(adapter_marker(spec.adapter_id), record.to_json())


def _record(spec: AdapterSpec, weights: bytes, rank: int, config: ExperimentConfig) -> AdapterMarker:
    """The marker of an adapter that took no training."""
    plain = asdict(spec)
    # Without what changes no weights of a training, or is as it was before there was a knob for it: an adapter of an
    # earlier version keeps its hash.
    without = {"samples_every", "given"}
    if config.adapt.steps_per_class is not None or config.adapt.step_law == "crops":
        without.add("step_law")
    knobs = config.adapt.model_dump(mode="json", exclude=without)
    return AdapterMarker(
        adapter_id=spec.adapter_id,
        spec=plain,
        spec_sha256=spec_hash([plain, knobs, config.diffusion.model_dump(mode="json")]),
        weights_sha256=sha256(weights),
        base_model=config.diffusion.model,
        rank=rank,
        steps=0,
        losses=[],
        vae_encodes=0,
        seconds=0.0,
        versions=library_versions(),
    )


def are_committed(units: Sequence[Unit[AdapterSpec]]) -> list[bool]:
    """Which adapters have their marker and the weights that it announces.

    Weights that differ from their marker's hash are set aside under another name, and the adapter counts as missing.
    """
    committed, damaged = Committed(units), find_damaged(units)
    for unit in damaged:
        store, weights, what = unit.store, adapter_weights(unit.payload.adapter_id), "are gone"
        # The marker goes first: a reader must never trust what is being moved.
        store.remove(unit.marker)
        if store.exists(weights):
            what, found = "are not what was written", sha256(store.read_bytes(weights))
            # Kept, not removed: whoever looks for the cause wants to see them.
            store.move(weights, f"{posixpath.dirname(weights)}/{CORRUPT}{found[:8]}.safetensors")
        log.warning("adapt: the weights of %r %s: set aside, to be trained again", unit.name, what)
    return [unit in committed and unit not in damaged for unit in units]


def find_damaged(units: Sequence[Unit[AdapterSpec]]) -> list[Unit[AdapterSpec]]:
    """The committed adapters whose weights are gone or are not what was written; changes nothing."""
    committed = Committed(units)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
        there = [unit for unit in units if unit in committed]
        return [unit for unit, is_whole in zip(there, threads.map(_is_as_written, there), strict=True) if not is_whole]


def _is_as_written(unit: Unit[AdapterSpec]) -> bool:
    store = unit.store
    expected = AdapterMarker.from_json(store.read_json(unit.marker)).weights_sha256
    try:
        return sha256(store.read_bytes(adapter_weights(unit.payload.adapter_id))) == expected
    except FileNotFoundError:
        return False


def write_index(units: Sequence[Unit[AdapterSpec]]) -> None:
    """Write adapters/index.json of each run: all its adapters with prompts, steps, last loss, file and hash."""
    for url, group in groupby(sorted(units, key=lambda unit: unit.run_url), key=lambda unit: unit.run_url):
        store, own = RunStore(url), list(group)
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            markers = list(map(AdapterMarker.from_json, threads.map(store.read_json, [unit.marker for unit in own])))
        entries = [
            AdapterEntry(
                adapter_id=marker.adapter_id,
                file=adapter_weights(marker.adapter_id),
                sha256=marker.weights_sha256,
                prompts=sorted({photo.prompt for photo in unit.payload.photos}),
                n_photos=len(unit.payload.photos),
                steps=marker.steps,
                last_loss=marker.losses[-1][1] if marker.losses else None,
                rank=marker.rank,
                base_model=marker.base_model,
                seconds=marker.seconds,
                given=marker.given,
            )
            for unit, marker in zip(own, markers, strict=True)
        ]
        store.write_json(ADAPTER_INDEX, [entry.to_json() for entry in entries])
