"""Keep as many workers training as there is room for, whatever dies or joins: squads of workers on one queue.

A squad is one Ray Train run on one node. Ray replaces a worker that dies, alone; a node that dies takes its squad with
it and no other; a node that joins gets one. The queue knows what is left to do, so squads may come and go.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from datadream.runtime.session import NODE_LABEL, Workers, failure_text, living_nodes

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_END = 2.0
"""What a squad gets to end by itself when all is done; its workers have nothing left to lose."""
SECONDS_TO_INTRODUCE = 20.0
"""How long a squad that was just launched may be without a controller to end."""
SECONDS_OF_SILENCE = 600.0
"""No worker was heard of for so long: starting one, with its model, takes less."""
MAX_FRUITLESS = 3
"""Squads in a row that may fail without a single adapter done."""


class _IndependentBackend(Backend):
    has_replica_groups = True


@dataclass
class IndependentWorkers(BackendConfig):
    """Workers that need no process group and are replaced alone."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _IndependentBackend


class _Introduction(ControllerCallback):
    """Ray Train's controller tells the queue who it is, so that one that waits forever can be ended."""

    def __init__(self, queue: ActorHandle, squad: str) -> None:
        self._queue, self._squad = queue, squad

    def after_controller_start(self, train_run_context: Any) -> None:
        self._queue.introduce.remote(self._squad, ray.get_runtime_context().current_actor)


class _Squad:
    """One Ray Train run on a thread of its own."""

    def __init__(
        self,
        name: str,
        node: str,
        work: Callable[[dict[str, Any]], None],
        settings: dict[str, Any],
        workers: Workers,
        storage: dict[str, Any],
        queue: ActorHandle,
    ) -> None:
        self.name, self.node, self.size, self.error = name, node, workers.count, None
        self._queue = queue
        self._trainer = DataParallelTrainer(
            work,
            train_loop_config=settings | {"squad": name},
            backend_config=IndependentWorkers(),
            scaling_config=ScalingConfig(
                num_workers=workers.count,
                use_gpu=workers.use_gpu,
                resources_per_worker=workers.resources,
                label_selector={NODE_LABEL: node},
            ),
            # The queue bounds what a deadly adapter may cost; a lost machine is nobody's fault.
            run_config=RunConfig(
                failure_config=FailureConfig(max_failures=-1), callbacks=[_Introduction(queue, name)], **storage
            ),
        )
        self._thread = threading.Thread(target=self._fit, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def end(self, patience: float = 0.0) -> None:
        """Wait for it, and end it when it does not end by itself."""
        self._thread.join(patience)
        deadline = time.monotonic() + SECONDS_TO_INTRODUCE
        while self.is_alive and time.monotonic() < deadline:
            controller = ray.get(self._queue.controller.remote(self.name))
            if controller is not None:
                ray.kill(controller)
            self._thread.join(SECONDS_BETWEEN_LOOKS)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except (TrainingFailedError, RayError) as error:
            self.error = error


def run_squads(
    queue: ActorHandle,
    work: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    room: Callable[[Mapping[str, int]], Mapping[str, Workers]],
    storage: dict[str, Any],
    look: Callable[[], None],
) -> None:
    """Train until the queue is done.

    `work(settings)` is what every worker runs. `room(there)` tells which workers to add to those that are there, both
    by node. `look` is called now and then. Raises RuntimeError when squads fail again and again and nothing gets done.
    """
    squads: list[_Squad] = []
    launches = itertools.count()
    watch = _Watch(queue)
    patience = 0.0
    try:
        while not ray.get(queue.is_done.remote()):
            lost = _lost(squads)
            for squad in lost:
                squads.remove(squad)
                squad.end()
                ray.get(queue.disband.remote(squad.name))
            if lost:
                watch.lost(lost[0])
            for node, workers in room({squad.node: squad.size for squad in squads}).items():
                name = f"squad-{next(launches)}"
                squads.append(_Squad(name, node, work, settings, workers, storage, queue))
                watch.launched()
            if watch.is_silent():
                for squad in squads:
                    squad.end()
            look()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        patience = SECONDS_TO_END
    finally:
        deadline = time.monotonic() + patience
        for squad in squads:
            with suppress(RayError):
                squad.end(max(0, deadline - time.monotonic()))


def _lost(squads: Sequence[_Squad]) -> list[_Squad]:
    """Squads that ended, and those that wait for a node that is gone."""
    living = living_nodes()
    return [squad for squad in squads if not squad.is_alive or squad.node not in living]


class _Watch:
    """Whether the squads still get anywhere."""

    def __init__(self, queue: ActorHandle) -> None:
        self._queue = queue
        self._fruitless, self._steps_before = 0, -1
        self._launched = time.monotonic()

    def launched(self) -> None:
        self._launched = time.monotonic()

    def is_silent(self) -> bool:
        """Whether neither a worker was heard of nor a squad launched for long."""
        silence = ray.get(self._queue.silent_for.remote())
        return min(silence, time.monotonic() - self._launched) > SECONDS_OF_SILENCE

    def lost(self, squad: _Squad) -> None:
        """Raises RuntimeError when squads are lost time after time and no steps get done between."""
        steps = ray.get(self._queue.progress.remote()).steps
        self._fruitless = self._fruitless + 1 if steps <= self._steps_before else 0
        self._steps_before = steps
        reason = failure_text(squad.error) if squad.error else "it ended early"
        if self._fruitless >= MAX_FRUITLESS:
            raise RuntimeError(f"adapter training failed: {reason}")
        log.warning("adapt: the workers of a node were lost (%s); the others go on", reason.splitlines()[0])
