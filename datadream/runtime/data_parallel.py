"""Data-parallel units: all workers of the cluster share one unit's batches, one unit after the other.

One Ray Train run with a process group serves all units of a stage, because its start costs more than a small unit. A
worker that dies ends the run, for the others wait for its gradients; another run, with the nodes that are left, goes
on from the unit's last checkpoint.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
import ray.data
import ray.train
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError

from datadream.run.store import RunStore
from datadream.runtime.failures import GIVE_UP_AFTER, Failure, Kind, Ledger, LostPeerError, describe
from datadream.runtime.garbage import without_collection
from datadream.runtime.nodes import (
    address_of,
    avoiding,
    beside_driver,
    check_sees_run,
    scratch,
    to_avoid,
    train_storage,
    workers_now,
)
from datadream.runtime.notices import Said, listen
from datadream.runtime.progress import Facts, Reporter, polled
from datadream.runtime.ray_errors import failure_of, failure_text, found_no_room, lost_a_worker, worker_errors
from datadream.runtime.train_controller import SECONDS_TO_INTERRUPT, abort
from datadream.runtime.unit import P, Unit, checkpoint_state, pending, titles
from datadream.runtime.workers import Workers

if TYPE_CHECKING:
    import torch
    from ray.train.torch import TorchTrainer

    from datadream.runtime.collectives import Collectives

log = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 0.5

Report = Callable[[int, "Facts | Callable[[], Facts]"], None]
"""Hears of every step of a unit, and what there is to tell: at once, or by a function that is called only when it is
time to tell, because reading a loss waits for the GPU."""
Train = Callable[[Unit, Report], None]
"""Trains one unit on all ranks and commits it on rank 0. A FloatingPointError is the unit's own fault and must be
raised by all ranks at the same step; any other error may be one rank's alone, and ends the run."""


@dataclass(frozen=True, slots=True)
class Datasets:
    """Ray Data streams that the workers read, by name."""

    rows: Mapping[str, ray.data.Dataset] = field(default_factory=dict)
    split: Sequence[str] = ()
    """Names of those of which each worker reads its own part; of the others each reads all."""
    unreadable: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Why units cannot be done whose rows cannot be read, by the units' keys."""


@dataclass(frozen=True, slots=True)
class DataParallel:
    """How a stage trains its units."""

    load: Callable[[Any, torch.device, Collectives], Train]
    """Called once in every worker with `load_from`."""
    load_from: Any
    most: int
    """No more workers than a batch has samples for."""
    datasets: Callable[[Sequence[Unit], int], tuple[Datasets, Any]] = lambda units, n_workers: (Datasets(), None)
    """Called before every start with the units that are left and the number of workers. What it returns beside the
    datasets is handed to `load` in place of `load_from`, unless it is None."""


class UnitFault(Exception):
    """One rank's account of what ended a run: the position of the unit, the kind of fault, where, and why."""

    def __init__(self, position: int | None, failure: Failure, node: str) -> None:
        super().__init__(position, failure, node)  # all arguments: exceptions are pickled by them
        self.position, self.failure, self.node = position, failure, node

    def __str__(self) -> str:
        return self.failure.reason


def run_together(
    store: RunStore, units: Sequence[Unit[P]], how: DataParallel, workers: Workers, reporter: Reporter, before: int = 0
) -> dict[tuple[str, str], str]:
    """Train every unit that is not done; returns why units were given up, by their keys.

    A unit that fails does not stop the others. `store` lends scratch space; `before` counts the work of units that are
    not among these. Raises RuntimeError with the cause when workers cannot even start.
    """
    ledger: Ledger[tuple[str, str]] = Ledger()
    names, starts_lost, told = titles(units), 0, Said()
    found, fewer = None, 0
    while todo := [unit for unit in pending(units) if unit.key not in ledger.given_up]:
        already = before + sum(unit.size for unit in units) - sum(unit.size for unit in todo)
        state = {unit.key: checkpoint_state(unit) for unit in todo}
        attempt = _Attempt(store, todo, how, workers, reporter, already, len(ledger.given_up), told)
        error = attempt.run(ledger.suspects, fewer)
        ledger.given_up.update(attempt.failures())
        if isinstance(error, TrainingFailedError) and found_no_room(error):
            # Somebody else was quicker, and the next attempt waits for room again. Where that finds the same again,
            # what is free is no room, such as two GPUs of which others have half: one worker fewer will find it.
            found, fewer = attempt.found, fewer + 1 if attempt.found == found else 0
            log.warning("%s; looking for room again", failure_text(error).splitlines()[0])
            continue
        found, fewer = None, 0
        if error is None:
            # The workers came to the end of their list, so that starting again would only do the same again.
            if lost := [names[unit.key] for unit in pending(todo) if unit.key not in ledger.given_up]:
                raise RuntimeError(f"{', '.join(lost[:5])}: trained, but not to be found in the run's folder.")
            continue
        faults = [fault for fault in worker_errors(error).values() if isinstance(fault, UnitFault)]
        culprit = attempt.culprit(faults)
        if culprit is not None and checkpoint_state(culprit) != state[culprit.key]:
            ledger.advance(culprit.key)
        _judge(error, faults, culprit, attempt.units, ledger)
        starts_lost = 0 if culprit is not None else starts_lost + 1
        if starts_lost >= GIVE_UP_AFTER:
            raise RuntimeError(f"the workers cannot start: {failure_text(error)}") from error
        if culprit is None or culprit.key not in ledger.given_up:
            said, name = failure_text(error).splitlines()[0], names[culprit.key] if culprit else "start"
            log.warning("%s: the workers were stopped (%s); going on from the last checkpoint", name, said)
    return ledger.given_up


def _judge(
    error: Exception,
    faults: Sequence[UnitFault],
    culprit: Unit | None,
    units: Sequence[Unit],
    ledger: Ledger[tuple[str, str]],
) -> None:
    """Enter into the ledger what ended a run over `units`, in which `culprit` was in training.

    `faults` are the workers' own accounts in `error`; there are none where nobody could give one.

    Raises RuntimeError for what is neither a unit's fault nor a host's, and would end the next run too.
    """
    own = [fault for fault in faults if fault.failure.kind is Kind.UNIT]
    for fault in own:
        if fault.position is None:
            raise RuntimeError(fault.failure.reason) from error
        ledger.fail(units[fault.position].key, fault.failure.reason)
    if own:
        return
    if lost_a_worker(error):
        # Before the others' faults: when a process dies, a peer may word its broken collective as a device's error.
        # A unit that was committed all the same cost nothing.
        if culprit is not None and pending([culprit]):
            ledger.lose(culprit.key, f"its workers were lost ({failure_text(error).splitlines()[0]}).")
        return
    if not faults:
        raise RuntimeError(failure_text(error)) from error
    struck: set[tuple[str, str]] = set()
    for fault in faults:
        key = None if fault.position is None else units[fault.position].key
        # What all ranks lack, such as a photo that is gone, is one strike against the unit and not one for each rank.
        ledger.blame(fault.node, fault.failure.reason, key, strike=key not in struck)
        log.warning("node %s has a fault: %s", address_of(fault.node), fault.failure.reason)
        if key is not None:
            struck.add(key)
    for key in struck & ledger.given_up.keys():
        # Or its nodes, which are kept off all that follows, would be idle for the rest of the stage.
        ledger.acquit(key)


class _Attempt:
    """One Ray Train run over units that are not done."""

    def __init__(
        self,
        store: RunStore,
        units: Sequence[Unit],
        how: DataParallel,
        workers: Workers,
        reporter: Reporter,
        before: int,
        failed: int,
        told: Said,
    ) -> None:
        self.units = units
        """Those that can be read, once the datasets are open; positions are places among them."""
        self.found: int | None = None
        """Workers that there was room for."""
        self._store, self._how, self._workers = store, how, workers
        self._reporter, self._before, self._failed = reporter, before, failed
        self._monitor = ray.remote(Monitor).options(**beside_driver()).remote()
        self._heard, self._said = Heard(), told
        self._unreadable: Mapping[tuple[str, str], str] = {}

    def run(self, suspects: set[str], fewer: int = 0) -> Exception | None:
        """Returns what ended the run before all units were done.

        Nodes that are `suspects` are kept off where others will do; `fewer` are workers to do without, but for one.
        """

        def wait_for(shortage: str) -> None:
            self._reporter.update(self._before, shortage, self._failed)

        there = workers_now(self._workers, wait_for, suspects).at_most(self._how.most)
        without = to_avoid(suspects, there)
        self.found = there.count
        workers = self._workers = there.at_most(there.count - fewer)
        log.info("%s: %d workers share every batch", self._reporter.now.stage, workers.count)
        try:
            datasets, load_from = self._how.datasets(self.units, workers.count)
            self._unreadable = datasets.unreadable
            self._failed += len(datasets.unreadable)
            self._before += sum(unit.size for unit in self.units if unit.key in datasets.unreadable)
            self.units = [unit for unit in self.units if unit.key not in datasets.unreadable]
            if self.units:
                with scratch(self._store) as folder, polled(self._look):
                    self._fit(self._trainer(datasets, load_from, workers, folder, without))
        # Before RayError, of which it is a kind.
        except RayTaskError as error:  # of a stream's tasks, beside the workers
            raise RuntimeError(f"reading the dataset failed: {failure_of(error).reason}") from error
        except (TrainingFailedError, RayError) as error:
            # Ray Train 2.60 keeps it in a frame of its own traceback: in that circle the run's controller and our
            # monitor, a process each, would stay on the cluster until Python looks for such.
            return error.with_traceback(None)
        return None

    def _fit(self, trainer: TorchTrainer) -> None:
        """Leave Ctrl-C to the driver.

        In the main thread Ray Train 2.60 takes the signal for itself, for the rest of the process, and on it exits
        with 0 as if all were done.
        """
        controllers: list[ActorHandle] = []
        trainer._register_sigint_handler = controllers.append
        try:
            trainer.fit()
        except KeyboardInterrupt:
            for controller in controllers:
                abort(controller, SECONDS_TO_INTERRUPT)
            raise

    def culprit(self, faults: Sequence[UnitFault]) -> Unit | None:
        """The unit that was in training when the run ended with these faults; None when none had begun.

        Who failed knows best: another rank may have begun the next.
        """
        self._look()
        told = [fault.position for fault in faults if fault.position is not None]
        position = max(told) if told else self._heard.position
        return None if position is None else self.units[position]

    def failures(self) -> dict[tuple[str, str], str]:
        """Units that failed by themselves, and why."""
        self._look()
        return dict(self._unreadable) | {self.units[i].key: reason for i, reason in self._heard.failures.items()}

    def _look(self) -> None:
        # On the polling thread, and once more by whoever asks what became of the units: the last word may be new.
        try:
            self._heard = ray.get(self._monitor.heard.remote())
        except RayError:  # why it is gone is for the run to say
            return
        heard = self._heard
        self._said.say(heard.notices)
        done = self._before + sum(unit.size for unit in self.units[: heard.position or 0]) + heard.done
        waiting_for = "" if heard.position is not None else f"{self._workers.count} workers to start"
        self._reporter.update(done, waiting_for, self._failed + len(heard.failures), **heard.facts)

    def _trainer(
        self, datasets: Datasets, load_from: Any, workers: Workers, folder: str, without: set[str]
    ) -> TorchTrainer:
        # Imported here, not above: it imports torch, and Ray Train's controller of leased units, which reads a stage's
        # module and so this one, would start two seconds later.
        from ray.train.torch import TorchConfig, TorchTrainer

        how = self._how
        return TorchTrainer(
            _train_units,
            train_loop_config={
                "units": self.units,
                "load": how.load,
                "load_from": how.load_from if load_from is None else load_from,
                "workers": workers,
                "monitor": self._monitor,
                "run_url": self._store.url,
                "scratch": folder,
            },
            # The driver's own devices say nothing of the workers'.
            torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers.count,
                use_gpu=workers.use_gpu,
                resources_per_worker=workers.resources,
                **avoiding(without),
            ),
            # Ray Train's own retries are off: on the loss of a node they block until its resources return, and we
            # start again on the nodes that are left.
            # A name of its own: under one that it knows, Ray Train would resume a run from its checkpoints.
            run_config=RunConfig(
                name=uuid.uuid4().hex,
                failure_config=FailureConfig(controller_failure_limit=0, max_preemption_failures=0),
                **train_storage(self._store, folder),
            ),
            datasets=dict(datasets.rows),
            # Ray splits into equal parts (DataConfig's equal=True), so that all ranks have as many batches.
            dataset_config=ray.train.DataConfig(datasets_to_split=list(datasets.split)),
        )


@dataclass(slots=True)
class Heard:
    """What the workers have said."""

    position: int | None = None
    """Of the unit in training: the last that any rank has begun."""
    done: int = 0
    facts: Facts = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    notices: dict[str, None] = field(default_factory=dict)
    """What workers have warned of, in the order of telling."""


class Monitor:
    """Where the workers say how far they are, for the driver to ask: it must survive them."""

    def __init__(self) -> None:
        self._heard = Heard()

    def begin(self, position: int) -> None:
        if self._heard.position is None or position > self._heard.position:
            self._heard.position, self._heard.done, self._heard.facts = position, 0, {}

    def put(self, position: int, done: int, facts: Facts) -> None:
        # Not awaited by rank 0, so that its last word on a unit may come when another rank has begun the next.
        if position == self._heard.position:
            self._heard.done, self._heard.facts = done, facts

    def fail(self, position: int, reason: str) -> None:
        self._heard.failures[position] = reason

    def warn(self, notices: Sequence[str]) -> None:
        self._heard.notices |= dict.fromkeys(notices)

    def heard(self) -> Heard:
        return self._heard


def _train_units(loop: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    from datadream.runtime.collectives import Collectives
    from datadream.runtime.device import shared_worker_device, use_threads

    context, node = ray.train.get_context(), ray.get_runtime_context().get_node_id()
    collectives = Collectives(context.get_world_rank(), context.get_world_size())
    listen()  # from the loading on
    position: int | None = None
    try:
        check_sees_run(loop["run_url"], loop["scratch"])
        use_threads(loop["workers"].threads)
        with without_collection():
            train = loop["load"](loop["load_from"], shared_worker_device(loop["workers"].use_gpu), collectives)
        for position, unit in enumerate(loop["units"]):
            report = _reporter(loop["monitor"], position, collectives.rank)
            # By every rank, and waited for: a unit that kills its worker at once must not be taken for the one before
            # it, and the rank that dies may be ahead of rank 0.
            ray.get(loop["monitor"].begin.remote(position))
            try:
                train(unit, report)
            except FloatingPointError as error:  # on all ranks, which go on with the next
                if collectives.rank == 0:
                    ray.get(loop["monitor"].fail.remote(position, describe(error)))
    except Exception as error:
        is_rays = isinstance(error, RayError) and not isinstance(error, RayTaskError)
        if is_rays or isinstance(error, LostPeerError):
            raise  # a process elsewhere is gone, and took gradients or rows along
        raise UnitFault(position, failure_of(error), node) from error


def _reporter(monitor: ActorHandle, position: int, rank: int) -> Report:
    """Tells the monitor of a unit's steps, now and then; only rank 0 talks."""
    last, known, notices = 0.0, {}, listen()

    def report(done: int, facts: Facts | Callable[[], Facts]) -> None:
        nonlocal last
        if warned := notices.take():
            monitor.warn.remote(warned)
        is_news = bool(facts) and not callable(facts)
        if rank == 0 and (is_news or time.monotonic() - last > SECONDS_BETWEEN_REPORTS):
            last = time.monotonic()
            known.update(facts() if callable(facts) else facts)
            monitor.put.remote(position, done, dict(known))

    return report
