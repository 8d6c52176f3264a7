"""Images of the run that a run extends, taken where they would be generated the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

from datadream.generate.stage import chunk_units
from datadream.hashing import sha256
from datadream.methods.chunks import Chunk
from datadream.run.cell import Cell
from datadream.run.config_record import recorded_config
from datadream.run.layout import CHUNKS, ChunkMarker, adapter_marker
from datadream.run.store import RunStore, adapter_sha256
from datadream.runtime.failures import Ledger, retried
from datadream.runtime.map_units import Mapped, run_mapped
from datadream.runtime.unit import Unit, ready

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def take_chunks(cell: Cell) -> None:
    """Commit the missing chunks that the extended run has too; what cannot be copied is left to be generated."""
    if not (equal := equal_chunks(cell)):
        return
    log.info("generate: %d chunks of images of the extended run are taken", len(equal))
    # By tasks over the cluster: images of many classes are hundreds of gigabytes.
    ledger = Ledger[tuple[str, str]]()
    for _ in run_mapped(
        cell.store, equal, Mapped(load=load_copier, load_from=cell.config.extends, what="taking"), None, ledger
    ):
        pass
    for reason in sorted(set(ledger.given_up.values())):
        log.warning("generate: chunks that cannot be taken are generated: %s", reason)


def equal_chunks(cell: Cell) -> list[Unit[Chunk]]:
    """The missing chunks that the extended run has of equal requests and adapters; its config is known to be the same
    in what makes an image (see check_extended)."""
    if cell.config.extends is None or not (missing := ready(chunk_units(cell.chunks))):
        return []
    theirs = RunStore(cell.config.extends)
    config, there = recorded_config(theirs), theirs.files(CHUNKS)
    if config is None:
        return []  # it may be gone, once this run has begun
    requests = {chunk.chunk_id: chunk.requests for chunk in Cell(config, theirs).chunks if chunk.marker in there}

    @cache
    def has_equal(adapter_id: str) -> bool:
        committed = theirs.exists(adapter_marker(adapter_id))
        return committed and adapter_sha256(theirs, adapter_id) == adapter_sha256(cell.store, adapter_id)

    return [
        unit
        for unit in missing
        if requests.get(unit.payload.chunk_id) == unit.payload.requests
        and all(map(has_equal, unit.payload.adapter_ids))
    ]


def load_copier(theirs_url: str, device: torch.device | None) -> Callable[[Unit[Chunk]], None]:
    """What a task does to take a chunk; it raises ValueError where the chunk is not what its marker says."""
    theirs = RunStore(theirs_url)

    def copy(unit: Unit[Chunk]) -> None:
        chunk, ours = unit.payload, unit.store
        data = retried(partial(theirs.read_bytes, chunk.file), f"reading {chunk.file}")
        marker = ChunkMarker.from_json(theirs.read_json(chunk.marker))
        if sha256(data) != marker.sha256:
            raise ValueError(f"{chunk.file} of run {theirs.url!r} is not what was written.")
        retried(partial(ours.write_bytes, chunk.file, data), f"writing {chunk.file}")
        retried(partial(ours.write_json, chunk.marker, marker.to_json()), f"writing {chunk.marker}")

    return copy
