"""Lets chunks wait for adapters that are still being trained, so that drawing begins with the first that is there."""

from __future__ import annotations

import pickle
import time
from typing import Any

import ray
from ray.actor import ActorHandle

from datadream.cluster import beside_driver
from datadream.generate.chunks import Chunk
from datadream.run_store import RunStore, adapter_marker

SECONDS_BETWEEN_LOOKS = 0.5


@ray.remote
class Gate:
    """Open while adapters are being trained."""

    def __init__(self) -> None:
        self._is_closed = False

    def close(self) -> None:
        """No more adapters will come."""
        self._is_closed = True

    def is_closed(self) -> bool:
        return self._is_closed


def open_gate() -> ActorHandle:
    """A gate on the driver's node."""
    return Gate.options(**beside_driver()).remote()


def await_adapters(row: dict[str, Any], gate: ActorHandle) -> dict[str, Any]:
    """Return the row of a chunk when its adapters are committed, or when none will come any more."""
    chunk: Chunk = pickle.loads(row["chunk"])
    store = RunStore(chunk.run_url)
    missing = {adapter_id for request in chunk.requests for adapter_id, _ in request.adapters}
    while True:
        # Asked before the store: an adapter may be the last that comes.
        is_closed = ray.get(gate.is_closed.remote())
        missing = {adapter_id for adapter_id in missing if not store.exists(adapter_marker(adapter_id))}
        if is_closed or not missing:
            return row
        time.sleep(SECONDS_BETWEEN_LOOKS)
