"""Leased units: groups of workers, one per node, stay loaded and lease units from a queue, whatever dies or joins.

A group is one Ray Train run on one node. Ray replaces a worker that dies, alone; a node that dies takes its group with
it and no other; a node that joins gets one. The queue knows what is left to do, so groups may come and go. It is
work-stealing and not one trainer per unit, because a Ray Train start costs seconds and a small adapter costs few.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import ray
import ray.train
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.callback import ControllerCallback

# ray.train.data_parallel_trainer still has the one of Ray Train V1, which knows no replica groups.
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from datadream.run.store import RunStore
from datadream.runtime.failures import GIVE_UP_AFTER, Failure
from datadream.runtime.garbage import without_collection
from datadream.runtime.nodes import (
    NODE_LABEL,
    address_of,
    beside_driver,
    check_sees_run,
    living_nodes,
    scratch,
    shortage,
    train_storage,
    workers_to_add,
)
from datadream.runtime.notices import Said, listen
from datadream.runtime.ray_errors import failure_text
from datadream.runtime.train_controller import (
    SECONDS_TO_ABORT,
    SECONDS_TO_FIND_ROOM,
    SECONDS_TO_INTERRUPT,
    abort,
)
from datadream.runtime.unit import Unit
from datadream.runtime.work_queue import Group, QueueProgress, WorkQueue
from datadream.runtime.workers import Workers

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_QUESTIONS = 1.0
"""A worker for which nothing waits asks again after so long."""
SECONDS_BETWEEN_REPORTS = 0.5
SECONDS_TO_END = 2.0
"""Grace period before groups are ended once all work is committed."""
SECONDS_TO_INTRODUCE = 20.0
"""How long a group that was just launched may be without a controller to end."""
MOST_NODES_LOST = 10
"""In a row, and nothing done between: what they load may be what kills them."""
SECONDS_OF_SILENCE = 600.0
"""No worker was heard of for so long: starting one, with its model, takes less."""


class GroupWorker(Protocol):
    """What a worker has loaded."""

    def group_size(self, most: int) -> int:
        """How many units, at most `most`, to work on side by side; asked where nobody has said."""

    def work(self, group: Group, heartbeat: Heartbeat) -> Mapping[int, Failure]:
        """Do and commit a group's missing units; returns why some were not done, by their positions in the queue.

        What it raises is the fault of all of them, and ends the process.
        """


Load = Callable[[Any, "torch.device"], GroupWorker]
"""Called once in every worker with what `run_leased` was given to load from, and the worker's device."""


class Heartbeat:
    """Tells the queue now and then how far a worker is, which also renews its lease."""

    def __init__(self, queue: ActorHandle, worker: str) -> None:
        self._queue, self._worker = queue, worker
        self._last = time.monotonic()

    def step(self, done: int, losses: torch.Tensor) -> None:
        """Hears of every step of a group; reads the losses, which waits for the device, now and then."""
        if time.monotonic() - self._last > SECONDS_BETWEEN_REPORTS:
            self._last = time.monotonic()
            self._queue.report.remote(self._worker, done, losses.mean().item())

    def alive(self) -> None:
        """The worker is busy with something other than steps."""
        self._queue.report.remote(self._worker)


@dataclass(frozen=True, slots=True)
class Leased:
    """How a stage wants its units leased."""

    load: Load
    load_from: Any
    group_size: int | None
    """Units side by side; None: each worker measures, and the first answer holds for all."""
    most: int
    """At most so many side by side where it is measured."""
    lease_seconds: float


def run_leased(
    store: RunStore,
    units: Sequence[Unit],
    done: Sequence[bool],
    how: Leased,
    workers: Workers,
    look: Callable[[QueueProgress], None],
) -> tuple[dict[tuple[str, str], str], dict[str, float]]:
    """Work until every unit is done or given up; returns why units were given up, by their keys, and the usage.

    `store` lends scratch space; `look` is told the progress now and then. Raises RuntimeError when every place is left
    out, or when groups of workers are lost again and again and nothing gets done.
    """
    queue = ray.remote(WorkQueue).options(**beside_driver()).remote(units, done, how.lease_seconds)
    with scratch(store) as folder:
        settings = {"queue": queue, "how": how, "run_url": store.url, "scratch": folder}
        groups = _Groups(queue, settings, workers, train_storage(store, folder))
        said = Said()

        def look_and_say() -> None:
            progress = ray.get(queue.progress.remote())
            said.say(progress.notices)
            look(replace(progress, waiting_for=groups.waiting_for))

        groups.run(look_and_say)
    return ray.get(queue.failures.remote()), ray.get(queue.usage.remote())


class _IndependentBackend(Backend):
    # Made for TorchFT, and undocumented: without it Ray Train restarts all workers of a run when one dies.
    # tests/runtime/test_worker_groups.py fails where a new Ray changes it.
    has_replica_groups = True


@dataclass
class IndependentWorkers(BackendConfig):
    """Workers that need no process group and are replaced alone."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _IndependentBackend


class _Introduction(ControllerCallback):
    """Ray Train's controller tells the queue who it is, so that one that waits forever can be ended."""

    def __init__(self, queue: ActorHandle, group: str) -> None:
        self._queue, self._group = queue, group

    def after_controller_start(self, train_run_context: Any) -> None:
        self._queue.introduce.remote(self._group, ray.get_runtime_context().current_actor)


class _Group:
    """One Ray Train run on a thread of its own."""

    def __init__(
        self, name: str, node: str, settings: dict[str, Any], workers: Workers, storage: dict[str, Any]
    ) -> None:
        self.name, self.node, self.size, self.error = name, node, workers.count, None
        self.launched = time.monotonic()
        self.is_left_out = False
        """Whether none of its places gets any more work."""
        self._queue = settings["queue"]
        self._trainer = DataParallelTrainer(
            _lease_and_work,
            train_loop_config=settings | {"group": name, "workers": workers},
            backend_config=IndependentWorkers(),
            scaling_config=ScalingConfig(
                num_workers=workers.count,
                use_gpu=workers.use_gpu,
                resources_per_worker=workers.resources,
                label_selector={NODE_LABEL: node},
            ),
            # The queue bounds what a deadly unit may cost; a lost machine is nobody's fault.
            run_config=RunConfig(
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[_Introduction(self._queue, name)],
                **storage,
            ),
        )
        self._ending: threading.Thread | None = None
        # daemon: `fit` of a run whose node is gone, with no other in its place, did not return within 100 s.
        self.thread = threading.Thread(target=self._fit, daemon=True)
        self.thread.start()

    def end(self, grace: float = 0.0, patience: float = SECONDS_TO_ABORT) -> threading.Thread:
        """End it, unless it ends by itself within `grace` seconds, on a thread that is returned: one that is starting
        may take `patience` seconds."""
        if self._ending is None:
            self._ending = threading.Thread(target=self._end, args=(grace, patience), daemon=True)
            self._ending.start()
        return self._ending

    def _end(self, grace: float, patience: float) -> None:
        self.thread.join(grace)
        deadline = time.monotonic() + min(SECONDS_TO_INTRODUCE, patience)
        with suppress(RayError):  # Ray is shut down
            while self.thread.is_alive() and time.monotonic() < deadline:
                controller = ray.get(self._queue.controller.remote(self.name))
                if controller is not None:
                    abort(controller, patience)
                    break
                self.thread.join(SECONDS_BETWEEN_LOOKS)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except (TrainingFailedError, RayError) as error:
            # For the driver's thread, which says it; its traceback would hold actors (data_parallel.py says why).
            self.error = error.with_traceback(None)


class _Groups:
    """The groups of workers that there are, and when there are to be others."""

    def __init__(
        self, queue: ActorHandle, settings: dict[str, Any], workers: Workers, storage: dict[str, Any]
    ) -> None:
        self._queue, self._settings, self._workers, self._storage = queue, settings, workers, storage
        self._groups: list[_Group] = []
        self._ending: list[threading.Thread] = []
        self.waiting_for = ""
        """What keeps the first group from being launched."""
        self._numbers = itertools.count()
        self._fruitless, self._done_before = 0, -1
        self._told: set[tuple[str, str]] = set()

    def run(self, look: Callable[[], None]) -> None:
        grace, patience = 0.0, SECONDS_TO_ABORT
        try:
            while not ray.get(self._queue.is_over.remote()):
                # Before anything is launched: what is left out or lost makes room for others. In this order, because
                # the workers of a group that is left out end by themselves, and are no lost ones.
                self._leave_out()
                self._part_with_lost()
                for node, workers in self._room().items():
                    name = f"group-{next(self._numbers)}"
                    self._groups.append(_Group(name, node, self._settings, workers, self._storage))
                self.waiting_for = "" if self._groups else shortage(self._workers, living_nodes())
                # Where neither a worker was heard of nor a group launched for long, all are started anew.
                silence = ray.get(self._queue.silent_for.remote())
                launched = max((group.launched for group in self._groups), default=math.inf)
                if min(silence, time.monotonic() - launched) > SECONDS_OF_SILENCE:
                    self._ending += [group.end() for group in self._groups]
                look()
                time.sleep(SECONDS_BETWEEN_LOOKS)
            look()
            grace = SECONDS_TO_END
        except KeyboardInterrupt:
            patience = SECONDS_TO_INTERRUPT
            raise
        finally:
            # All at once, and waited for: what a group still holds is missing to the next stage.
            self._ending += [group.end(grace, patience) for group in self._groups]
            for thread in self._ending:
                thread.join(grace + patience)

    def _part_with_lost(self) -> None:
        """Give back what groups held that ended, and those that wait for a node that is gone.

        Raises RuntimeError when groups are lost time after time and nothing gets done between.
        """
        living = {node["NodeID"] for node in living_nodes()}
        lost = [g for g in self._groups if g.node not in living or not (g.thread.is_alive() or g.is_left_out)]
        for group in lost:
            self._groups.remove(group)
            self._ending.append(group.end())
            ray.get(self._queue.disband.remote(group.name))
        if not lost or ray.get(self._queue.is_over.remote()):
            return
        done = ray.get(self._queue.progress.remote()).done
        self._fruitless = self._fruitless + 1 if done <= self._done_before else 0
        self._done_before = done
        reason = failure_text(lost[0].error) if lost[0].error else "it is gone, or about to be"
        # A node that is taken away says little of the work: four of twenty spot machines may go within a minute.
        if self._fruitless >= (GIVE_UP_AFTER if any(group.node in living for group in lost) else MOST_NODES_LOST):
            raise RuntimeError(f"the workers are lost again and again: {reason}")
        log.warning("the workers of a node were lost (%s); the others go on", reason.splitlines()[0])

    def _leave_out(self) -> None:
        """Name what the queue has left out; raises RuntimeError when nothing else is there."""
        places = ray.get(self._queue.left_out.remote())
        for group in self._groups:
            own = {place: reason for place, reason in places.items() if place.startswith(f"{group.name}/")}
            group.is_left_out = len(own) == group.size
            for reason in own.values():
                if (group.node, reason) not in self._told:
                    self._told.add((group.node, reason))
                    log.warning("node %s gets no more work: %s", address_of(group.node), reason)
        if self._groups and all(group.is_left_out for group in self._groups) and not self._room():
            reasons = "\n  ".join(f"node {address_of(node)}: {reason}" for node, reason in sorted(self._told))
            raise RuntimeError(f"no worker can go on:\n  {reasons}")

    def _room(self) -> dict[str, Workers]:
        there: Counter[str] = Counter()
        for group in self._groups:
            there[group.node] += 0 if group.is_left_out else group.size
        recent = time.monotonic() - SECONDS_TO_FIND_ROOM
        closed = {group.node for group in self._groups if group.is_left_out or group.launched > recent}
        return workers_to_add(self._workers, there, ray.get(self._queue.n_open.remote()), closed)


def _lease_and_work(loop: dict[str, Any]) -> None:
    """What every worker runs."""
    queue, how, workers = loop["queue"], loop["how"], loop["workers"]
    place, name = f"{loop['group']}/{ray.train.get_context().get_world_rank()}", uuid.uuid4().hex
    # Ray starts another process also in a place that the queue has left out; returning is what ends it.
    if ray.get(queue.is_over.remote(place)):
        return
    notices = listen()
    try:
        check_sees_run(loop["run_url"], loop["scratch"])
        with without_collection():
            # Imported here, not above: torch takes a second, and the queue's process imports this module as well.
            from datadream.runtime.device import use_threads, worker_device

            use_threads(workers.threads)
            worker = how.load(how.load_from, worker_device(workers.use_gpu))
        size = how.group_size or worker.group_size(how.most)
    except Exception as error:
        ray.get(queue.cannot_start.remote(place, Failure.of(error)))
        raise  # Ray starts another process in this place
    heartbeat = Heartbeat(queue, name)
    while not ray.get(queue.is_over.remote(place)):
        group = ray.get(queue.lease.remote(place, name, size))
        if group is None:  # others hold the rest, and may be lost with it
            time.sleep(SECONDS_BETWEEN_QUESTIONS)
            continue
        try:
            failures = dict(worker.work(group, heartbeat))
        except Exception as error:
            ray.get(queue.finish.remote(name, place, group, dict.fromkeys(group.positions, Failure.of(error))))
            raise  # nobody knows what state this process is in
        ray.get(queue.finish.remote(name, place, group, failures, notices.take()))
