"""Adapters of the run that a run extends, taken where a training would become the same."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial

from datadream.adapt.artifacts import CORRUPT, REQUESTS_AT_ONCE, are_committed, find_damaged
from datadream.hashing import spec_hash
from datadream.methods import AdapterSpec
from datadream.run.cell import Cell
from datadream.run.layout import ADAPTERS, AdapterMarker
from datadream.run.store import RunStore
from datadream.runtime.failures import retried
from datadream.runtime.unit import Unit

log = logging.getLogger(__name__)


def take_adapters(cell: Cell, units: Sequence[Unit[AdapterSpec]]) -> None:
    """Commit the missing adapters that the extended run has of equal photos, prompts and seeds; its config is known to
    be the same in what makes an adapter (see check_extended)."""
    if cell.config.extends is None:
        return
    theirs, own = RunStore(cell.config.extends), [unit for unit in units if unit.run_url == cell.store.url]
    missing = [unit for unit, is_done in zip(own, are_committed(own), strict=True) if not is_done]
    files = theirs.files(ADAPTERS) if missing else set()
    there = [replace(unit, run_url=theirs.url) for unit in missing if unit.marker in files]
    damaged = find_damaged(there)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
        markers = list(threads.map(lambda unit: AdapterMarker.from_json(unit.store.read_json(unit.marker)), there))
        taken = [
            unit
            for unit, marker in zip(there, markers, strict=True)
            # By hash: the marker's specification was JSON, where tuples are lists.
            if spec_hash(marker.spec) == spec_hash(asdict(unit.payload)) and unit not in damaged
        ]
        list(threads.map(partial(_copy, theirs, cell.store, files), taken))
    if taken:
        log.info("adapt: %d adapters of run %r are taken", len(taken), theirs.name)


def _copy(theirs: RunStore, ours: RunStore, files: set[str], unit: Unit[AdapterSpec]) -> None:
    folder = posixpath.dirname(unit.marker)
    beside = [file for file in files if file.startswith(f"{folder}/") and file != unit.marker]
    whole = [file for file in beside if not posixpath.basename(file).startswith(CORRUPT)]
    # The marker last: it says that all else is there.
    for file in (*sorted(whole), unit.marker):
        data = retried(partial(theirs.read_bytes, file), f"reading {file}")
        retried(partial(ours.write_bytes, file, data), f"writing {file}")
