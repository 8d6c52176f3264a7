"""Which units wait, which are being worked on and which are done: plain bookkeeping, a Ray actor when it is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Generic

from datadream.runtime.failures import Failure, Kind, Ledger
from datadream.runtime.unit import P, Unit

if TYPE_CHECKING:
    from ray.actor import ActorHandle

SECONDS_BEFORE_SAME_PLACE = 10.0
"""A unit that failed by a host's fault returns to the same place only after so long: others, which may still be
loading their model, get it first; and where there are no others, a folder that is being mounted gets time."""


@dataclass(frozen=True, slots=True)
class Group(Generic[P]):
    """Units to work on side by side."""

    positions: tuple[int, ...]
    """Of its units in the queue."""
    units: tuple[Unit[P], ...]
    missing: tuple[bool, ...]
    """Which of them nobody has committed yet."""


@dataclass(slots=True)
class _Worker:
    place: str
    first_lease: float
    heard: float
    is_lost: bool = False


@dataclass(slots=True)
class _Lease:
    group: Group
    since: float
    done: int = 0
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class QueueProgress:
    """How far all units are."""

    done: int
    """Work done in all, that of units in progress included."""
    units: int
    """Done in all, those that were committed before included."""
    failed: int
    loss: float | None
    """Mean over the units in progress."""
    workers: int
    """That have asked for work so far."""
    notices: tuple[str, ...] = ()
    """What workers have warned of."""
    waiting_for: str = ""
    """What keeps workers from being started."""


class WorkQueue(Generic[P]):
    """Leases groups of units to workers, largest first.

    Which units form a group depends on the plan and the size of a group alone, so that a run that was interrupted
    forms the same ones: side by side with others, an adapter would differ in its last bits. A lease is renewed by
    every report; when it runs out, or its worker is replaced, its units wait again. A result counts whoever brings it.
    """

    def __init__(
        self,
        units: Sequence[Unit[P]],
        done: Sequence[bool],
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`done` tells for each unit whether it is committed already. A worker that was not heard of for
        `lease_seconds` has lost its units to others."""
        # Largest first, so that no long unit begins when all others are done. The sort is stable: equal units keep the
        # plan's order, which decides who is whose neighbour in a group.
        order = sorted(range(len(units)), key=lambda position: -units[position].size)
        self._units = [units[position] for position in order]
        self._open = {position for position, original in enumerate(order) if not done[original]}
        self._waiting = set(self._open)
        self._leases: dict[str, _Lease] = {}
        self._ledger: Ledger[int] = Ledger()
        self._not_before: dict[tuple[int, str], float] = {}
        self._workers: dict[str, _Worker] = {}
        self._busy = 0.0
        self._lease_seconds, self._clock = lease_seconds, clock
        self._heard = clock()
        self._group_size: int | None = None
        self._controllers: dict[str, ActorHandle] = {}
        self._notices: dict[str, None] = {}  # a set in the order of telling

    def lease(self, place: str, worker: str, size: int) -> Group[P] | None:
        """The next group of at most `size` units for a worker; the first size that anybody names holds for all.

        None when nothing waits for this place; some may come back from a lost worker, so ask again until
        `is_over`. `worker` names the process, of which a `place` has one at a time.
        """
        self._hear(worker)
        # Before anything is leased: what this worker still holds, what its predecessor in the same place held, and
        # what workers hold that fell silent. Ray replaces a process without telling the queue.
        for name, known in self._workers.items():
            if known.place == place or self._heard - known.heard > self._lease_seconds:
                self._part_with(name)
        if worker in self._workers:
            self._workers[worker].is_lost = False
        if place in self._ledger.left_out:
            return None
        allowed = [
            position for position in self._waiting if self._not_before.get((position, place), 0.0) <= self._heard
        ]
        if not allowed:
            return None
        self._group_size = self._group_size or size
        # Neighbours in the queue of equal size. Those done already are in the group too: side by side with others, an
        # adapter would differ in its last bits.
        first = min(allowed)
        start = first // self._group_size * self._group_size
        near = range(start, min(start + self._group_size, len(self._units)))
        positions = tuple(position for position in near if self._units[position].size == self._units[first].size)
        group = Group(
            positions,
            tuple(self._units[position] for position in positions),
            tuple(position in self._open for position in positions),
        )
        self._waiting.difference_update(positions)
        self._leases[worker] = _Lease(group, self._heard)
        self._workers.setdefault(worker, _Worker(place, self._heard, self._heard))
        return group

    def report(self, worker: str, done: int | None = None, loss: float | None = None) -> None:
        """A worker lives; it may have done so much of each unit of its group, at last with a mean `loss`."""
        self._hear(worker)
        if done is not None and worker in self._leases:
            lease = self._leases[worker]
            lease.done, lease.loss = done, loss

    def finish(
        self,
        worker: str,
        place: str,
        group: Group[P],
        failures: Mapping[int, Failure],
        notices: Sequence[str] = (),
    ) -> None:
        """A worker is through with its group; `failures` tells why units were not done, by their positions."""
        self._hear(worker)
        self._notices |= dict.fromkeys(notices)
        lease = self._leases.pop(worker, None)
        if lease is not None:
            self._busy += self._heard - lease.since
        # Also without a lease, which may have run out while the worker was slow: what it committed is committed.
        for position, missing in zip(group.positions, group.missing, strict=True):
            failure = failures.get(position)
            if failure is None:
                self._ledger.succeed(place, position)
            elif not missing or position not in self._open:
                continue  # somebody else has done it
            elif failure.kind is Kind.UNIT:
                self._ledger.fail(position, failure.reason)
            elif lease is None:
                continue  # it ran out, which was its strike, and somebody else may have the unit
            else:
                self._ledger.blame(place, failure.reason, position)
                self._not_before[position, place] = self._heard + SECONDS_BEFORE_SAME_PLACE
            self._close_or_give_back(position, is_done=failure is None)

    def cannot_start(self, place: str, failure: Failure) -> None:
        """A worker could not load what it needs. What is no host's fault would be the same at the next try."""
        self._heard = self._clock()
        self._ledger.blame(place, failure.reason)
        if failure.kind is Kind.UNIT:
            self._ledger.left_out.setdefault(place, failure.reason)

    def left_out(self) -> dict[str, str]:
        """Places that get no more work, and why."""
        return dict(self._ledger.left_out)

    def introduce(self, group: str, controller: ActorHandle) -> None:
        """Remember who directs a group of workers."""
        self._controllers[group] = controller

    def controller(self, group: str) -> ActorHandle | None:
        """Who directs a group of workers, once it said so."""
        return self._controllers.get(group)

    def disband(self, group: str) -> None:
        """All workers whose place begins with `group/` are gone."""
        for name, worker in self._workers.items():
            if worker.place.startswith(f"{group}/"):
                self._part_with(name)

    def silent_for(self) -> float:
        """Seconds since any worker was heard of."""
        return self._clock() - self._heard

    def failures(self) -> dict[tuple[str, str], str]:
        """Why units were given up, by their keys, in the order of the queue."""
        return {self._units[position].key: reason for position, reason in sorted(self._ledger.given_up.items())}

    def n_open(self) -> int:
        """Units that are not done."""
        return len(self._open)

    def is_over(self, place: str | None = None) -> bool:
        """Whether nothing is left to do, for anybody or at this place."""
        return not self._open or place in self._ledger.left_out

    def usage(self) -> dict[str, float]:
        """Workers that there were, seconds from the first lease of each to the last sign of any, of a lost one to its
        own last, and how many of these were spent on groups that they finished."""
        workers = self._workers.values()
        seconds = sum((each.heard if each.is_lost else self._heard) - each.first_lease for each in workers)
        return {"workers": len(workers), "seconds": seconds, "busy_seconds": self._busy}

    def progress(self) -> QueueProgress:
        closed = [unit.size for position, unit in enumerate(self._units) if position not in self._open]
        leases = self._leases.values()
        in_progress = sum(lease.done * len(self._open.intersection(lease.group.positions)) for lease in leases)
        losses = [lease.loss for lease in leases if lease.loss is not None]
        failed = len(self._ledger.given_up)
        return QueueProgress(
            done=sum(closed) + in_progress,
            units=len(closed) - failed,
            failed=failed,
            loss=fmean(losses) if losses else None,
            workers=len(self._workers),
            notices=tuple(self._notices),
        )

    def _hear(self, worker: str) -> None:
        self._heard = self._clock()
        if worker in self._workers:
            self._workers[worker].heard = self._heard

    def _part_with(self, worker: str) -> None:
        """Give back what a worker holds; until it asks for more, it counts as lost."""
        self._workers[worker].is_lost = True
        lease = self._leases.pop(worker, None)
        if lease is None:
            return
        for position in self._open.intersection(lease.group.positions):
            self._ledger.lose(position, "its workers died or fell silent.")
            self._close_or_give_back(position)

    def _close_or_give_back(self, position: int, is_done: bool = False) -> None:
        """A unit that is neither done nor given up waits again."""
        if is_done or position in self._ledger.given_up:
            self._open.discard(position)
            self._waiting.discard(position)
        else:
            self._waiting.add(position)
