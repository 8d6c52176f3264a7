"""Which adapters wait, which are being trained and which are done: plain bookkeeping, a Ray actor when it is used."""

from __future__ import annotations

import posixpath
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from datadream.methods.base import AdapterSpec
from datadream.run.layout import adapter_marker

if TYPE_CHECKING:
    from ray.actor import ActorHandle

MAX_LOSSES = 3
"""Workers that an adapter may cost before it is given up: it may be what kills them."""


@dataclass(frozen=True, slots=True)
class AdapterJob:
    """One adapter and the run that it belongs to."""

    run_url: str
    spec: AdapterSpec
    steps: int

    @property
    def marker(self) -> str:
        return adapter_marker(self.spec.adapter_id)


@dataclass(frozen=True, slots=True)
class Group:
    """Adapters to train side by side."""

    places: tuple[int, ...]
    """Their places in the queue."""
    jobs: tuple[AdapterJob, ...]
    missing: tuple[bool, ...]
    """Which of them nobody has committed yet."""


@dataclass(slots=True)
class _Lease:
    place: str
    group: Group
    since: float
    heard: float
    step: int = 0
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class QueueProgress:
    """How far the training of all adapters is."""

    steps: int
    """Done in all, those of adapters in training included."""
    adapters: int
    """Done in all, those that were committed before included."""
    failed: int
    loss: float | None
    """Mean over the adapters in training."""


class AdapterQueue:
    """Leases groups of adapters to workers, longest training first.

    Which adapters form a group depends on the plan and the size of a group alone, so that a run that was interrupted
    forms the same ones. A lease is renewed by every report; when it runs out, or its worker is replaced, its adapters
    wait again. A result counts whoever brings it: a second one for the same adapter is the same.
    """

    def __init__(
        self,
        jobs: Sequence[AdapterJob],
        done: Sequence[bool],
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`done` tells for each job whether it is committed already. A worker that was not heard of for
        `lease_seconds` has lost its adapters to others."""
        order = sorted(range(len(jobs)), key=lambda place: -jobs[place].steps)
        self._jobs = [jobs[place] for place in order]
        self._open = {place for place, original in enumerate(order) if not done[original]}
        self._waiting = set(self._open)
        self._leases: dict[str, _Lease] = {}
        self._losses: Counter[int] = Counter()
        self._first_lease: dict[str, float] = {}
        self._busy = 0.0
        self._heard = clock()
        self._lease_seconds, self._clock = lease_seconds, clock
        self._failures: dict[int, str] = {}
        self._size: int | None = None
        self._hopeless: str | None = None
        self._controllers: dict[str, ActorHandle] = {}

    def lease(self, place: str, worker: str, size: int) -> Group | None:
        """The next group of at most `size` adapters for a worker; the first size that anybody names holds for all.

        A group holds adapters that take equally many steps, those done already included: trained with other
        neighbours, an adapter would differ in its last bits. None when nothing waits; some may come back from a lost
        worker, so ask again until `is_done`. `worker` names the process, of which a `place` has one at a time.
        """
        self._heard = self._clock()
        self._take_back(place, worker)
        if not self._waiting or self._hopeless is not None:
            return None
        self._size = self._size or size
        group = self._group_of(min(self._waiting), self._size)
        self._waiting.difference_update(group.places)
        self._leases[worker] = _Lease(place, group, self._heard, self._heard)
        self._first_lease.setdefault(worker, self._heard)
        return group

    def report(self, worker: str, step: int, loss: float | None = None) -> None:
        """A worker lives, and has done `step` steps of its group, the last with a mean `loss`."""
        self._heard = self._clock()
        if worker in self._leases:
            lease = self._leases[worker]
            lease.heard, lease.step, lease.loss = self._clock(), step, loss

    def renew(self, worker: str) -> None:
        """A worker lives."""
        self._heard = self._clock()
        if worker in self._leases:
            self._leases[worker].heard = self._heard

    def finish(self, worker: str, group: Group, failures: Mapping[int, str]) -> None:
        """A worker is through with its group; `failures` tells why adapters failed by themselves, by their places.

        What failed by itself would fail again, so it is given up.
        """
        self._heard = self._clock()
        if worker in self._leases:
            self._busy += self._heard - self._leases.pop(worker).since
        for place, missing in zip(group.places, group.missing, strict=True):
            if place not in failures:
                self._failures.pop(place, None)
            elif missing:
                self._failures[place] = failures[place]
        self._open.difference_update(group.places)
        self._waiting.difference_update(group.places)

    def introduce(self, squad: str, controller: ActorHandle) -> None:
        """Remember who directs a squad."""
        self._controllers[squad] = controller

    def controller(self, squad: str) -> ActorHandle | None:
        """Who directs a squad, once it said so."""
        return self._controllers.get(squad)

    def disband(self, squad: str) -> None:
        """All workers whose place begins with `squad/` are gone."""
        for name in [name for name, lease in self._leases.items() if lease.place.startswith(f"{squad}/")]:
            self._lose(self._leases.pop(name).group)

    def give_up(self, reason: str) -> None:
        """A worker cannot train anything, and no other could."""
        self._hopeless = reason

    def hopeless(self) -> str | None:
        """Why no worker can train anything, if so."""
        return self._hopeless

    def silent_for(self) -> float:
        """Seconds since any worker was heard of."""
        return self._clock() - self._heard

    def failures(self) -> list[str]:
        """Adapters that failed by themselves, and why."""
        many_runs = len({job.run_url for job in self._jobs}) > 1
        named = []
        for place, reason in sorted(self._failures.items()):
            job = self._jobs[place]
            run = f"{posixpath.basename(job.run_url)}/" if many_runs else ""
            named.append(f"{run}{job.spec.adapter_id}: {reason}")
        return named

    def n_open(self) -> int:
        """Adapters that are not done."""
        return len(self._open)

    def usage(self) -> dict[str, float]:
        """Workers that there were, seconds from the first lease of each to the last sign of any, and how many of these
        were spent on groups that they finished."""
        seconds = sum(self._heard - first for first in self._first_lease.values())
        return {"workers": len(self._first_lease), "seconds": seconds, "busy_seconds": self._busy}

    def is_done(self) -> bool:
        return not self._open or self._hopeless is not None

    def progress(self) -> QueueProgress:
        closed = [job.steps for place, job in enumerate(self._jobs) if place not in self._open]
        leases = self._leases.values()
        in_training = sum(lease.step * len(self._open.intersection(lease.group.places)) for lease in leases)
        losses = [lease.loss for lease in leases if lease.loss is not None]
        failed = len(self._failures)
        return QueueProgress(
            sum(closed) + in_training, len(closed) - failed, failed, fmean(losses) if losses else None
        )

    def _group_of(self, first: int, size: int) -> Group:
        start = first // size * size
        near = range(start, min(start + size, len(self._jobs)))
        places = tuple(place for place in near if self._jobs[place].steps == self._jobs[first].steps)
        return Group(
            places, tuple(self._jobs[place] for place in places), tuple(place in self._open for place in places)
        )

    def _take_back(self, place: str, worker: str) -> None:
        now = self._clock()
        for name, lease in list(self._leases.items()):
            replaced = lease.place == place and name != worker
            if replaced or name == worker or now - lease.heard > self._lease_seconds:
                del self._leases[name]
                self._lose(lease.group)

    def _lose(self, group: Group) -> None:
        lost = self._open.intersection(group.places)
        self._losses.update(lost)
        for place in lost:
            if self._losses[place] >= MAX_LOSSES:
                self._open.remove(place)
                self._failures[place] = f"{MAX_LOSSES} workers died or fell silent while they trained it."
        self._waiting |= self._open.intersection(lost)
