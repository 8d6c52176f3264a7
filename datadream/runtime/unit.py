"""A unit of work: the run that it belongs to, a name that people can read, and the marker that says it is done.

An adapter, a chunk of images, a chunk's features, a search trial, a window of shards, a classifier: each is a unit. It
is done when its marker is committed, and whoever commits it second writes the same bytes, so doing it twice is waste
and never an error.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from datadream.run.store import RunStore

P = TypeVar("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit(Generic[P]):
    """What a worker needs to know to do one unit of work and to commit it."""

    run_url: str
    name: str
    """For people; unique among the units of a stage and a run."""
    marker: str
    """Path in the run. The unit is done when this exists."""
    payload: P
    size: int = 1
    """Work in the stage's own count: steps, images, trials."""
    needs: tuple[str, ...] = ()
    """Markers in the same run that must exist before the unit can start."""
    checkpoints: str = ""
    """Glob of the files in the run that change whenever an interrupted unit would go on from further on."""

    @property
    def store(self) -> RunStore:
        return RunStore(self.run_url)

    @property
    def key(self) -> tuple[str, str]:
        """Tells units apart; names alone do not: every run of a table may have an adapter called `dataset`."""
        return (self.run_url, self.marker)


class Committed:
    """Which markers exist, by one listing of each folder that holds any.

    A thousand adapters are a thousand folders, and in an object store every question is a round trip.
    """

    def __init__(self, units: Iterable[Unit]) -> None:
        folders: dict[str, set[str]] = defaultdict(set)
        for unit in units:
            folders[unit.run_url].update(marker.partition("/")[0] for marker in (unit.marker, *unit.needs))
        self._files = {
            url: set().union(*(RunStore(url).files(folder) for folder in names)) for url, names in folders.items()
        }

    def __contains__(self, unit: Unit) -> bool:
        return unit.marker in self._files[unit.run_url]

    def can_start(self, unit: Unit) -> bool:
        """Whether all that the unit needs exists."""
        return self._files[unit.run_url].issuperset(unit.needs)


def pending(units: Sequence[Unit[P]]) -> list[Unit[P]]:
    """The units that are not done, in their order."""
    committed = Committed(units)
    return [unit for unit in units if unit not in committed]


def ready(units: Sequence[Unit[P]]) -> list[Unit[P]]:
    """The units that are not done and need nothing that is missing, in their order."""
    committed = Committed(units)
    return [unit for unit in units if unit not in committed and committed.can_start(unit)]


def checkpoint_state(unit: Unit) -> list[str]:
    """Changes whenever the unit would go on from further on, so that a loss of workers has not been for nothing."""
    store = unit.store
    if not unit.checkpoints:
        return []
    # fsspec's ukey: of what a file system knows of a file, such as its time or its ETag, without reading it.
    return [str(store.fs.ukey(path)) for path in sorted(store.fs.glob(store.path(unit.checkpoints)))]


def titles(units: Iterable[Unit]) -> dict[tuple[str, str], str]:
    """What to call units in messages, by their keys: with the run's name where there are several runs."""
    units = list(units)
    many = len({unit.run_url for unit in units}) > 1
    return {
        unit.key: f"{posixpath.basename(unit.run_url.rstrip('/'))}/{unit.name}" if many else unit.name
        for unit in units
    }
