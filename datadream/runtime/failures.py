"""How a stage ends when some of its units failed and the others are done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from datadream.run.store import RunStore

SHOWN = 10
"""Failures that the message names; the file has all."""


def check_none_failed(store: RunStore, file: str, failures: Sequence[str], what: str) -> None:
    """Raises RuntimeError, "`what` failed" and why, after writing all failures to `file`; without any, the list of an
    earlier start is removed."""
    if not failures:
        if store.exists(file):
            store.remove(file)
        return
    with suppress(OSError):  # a full disk, perhaps, is why they failed
        store.write_json(file, failures)
    few = "\n  ".join(failures[:SHOWN])
    rest = f"\nAll are listed in {store.path(file)}." if len(failures) > SHOWN else ""
    raise RuntimeError(f"{what} failed:\n  {few}{rest}")
