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
from datadream.runtime.progress import Facts, Reporter, polled
from datadream.runtime.ray_errors import failure_text, lost_a_worker, worker_errors
from datadream.runtime.unit import P, Unit, checkpoint_state, pending, titles
from datadream.runtime.workers import Workers

if TYPE_CHECKING:
    import torch
    from ray.train.torch import TorchTrainer

    from datadream.runtime.collectives import Collectives

log = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 0.5

Report = Callable[[int, "Facts | Callable[[], Facts]"], None]
"""Hears of every step of a unit, and what there is to tell: at once, or by a function that is called now and then."""
Train = Callable[[Unit, Report], None]
"""Trains one unit on all ranks and commits it on rank 0. A FloatingPointError is the unit's own fault and must be
raised by all ranks at the same step; any other error may be one rank's alone, and ends the run."""


@dataclass(frozen=True, slots=True)
class Datasets:
    """Ray Data streams that the workers read, by name."""

    rows: Mapping[str, ray.data.Dataset] = field(default_factory=dict)
    split: Sequence[str] = ()
    """Names of those of which each worker reads its own part; of the others each reads all."""


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
    starts_lost = 0
    names = titles(units)
    while todo := [unit for unit in pending(units) if unit.key not in ledger.given_up]:
        already = before + sum(unit.size for unit in units) - sum(unit.size for unit in todo)
        state = {unit.key: checkpoint_state(unit) for unit in todo}
        attempt = _Attempt(store, todo, how, workers, reporter, already, len(ledger.given_up))
        error = attempt.run(to_avoid(ledger.suspects))
        ledger.given_up.update(attempt.failures())
        if error is None:
            _check_committed(todo, ledger)
            continue
        culprit = attempt.culprit()
        if culprit is not None and checkpoint_state(culprit) != state[culprit.key]:
            ledger.advance(culprit.key)
        starts_lost = 0 if culprit is not None else starts_lost + 1
        _judge(error, todo, culprit, ledger)
        if starts_lost >= GIVE_UP_AFTER:
            raise RuntimeError(f"the workers cannot start: {failure_text(error)}") from error
        if culprit is not None and culprit.key not in ledger.given_up:
            log.warning(
                "%s: a worker was lost (%s); going on from the last checkpoint", names[culprit.key], _short(error)
            )
    return ledger.given_up


def _check_committed(units: Sequence[Unit], ledger: Ledger) -> None:
    """Raises RuntimeError when workers did their units and the driver sees nothing of it."""
    lost = [unit.name for unit in pending(units) if unit.key not in ledger.given_up]
    if lost:
        raise RuntimeError(f"{', '.join(lost[:5])}: trained, but not to be found in the run's folder.")


def _short(error: Exception) -> str:
    return failure_text(error).splitlines()[0]


def _judge(error: Exception, todo: Sequence[Unit], culprit: Unit | None, ledger: Ledger) -> None:
    """Enter into the ledger what ended a run; raises RuntimeError for what is neither a unit's fault nor a host's."""
    faults = [fault for fault in worker_errors(error).values() if isinstance(fault, UnitFault)]
    if not faults and lost_a_worker(error):
        if culprit is not None:
            ledger.lose(culprit.key, f"its workers were lost ({_short(error)}).")
        return
    if not faults:
        raise RuntimeError(failure_text(error)) from error
    for fault in faults:
        key = None if fault.position is None else todo[fault.position].key
        if fault.failure.kind is Kind.UNIT and key is not None:
            ledger.fail(key, fault.failure.reason)
        elif fault.failure.kind is Kind.UNIT:
            raise RuntimeError(fault.failure.reason) from error
        else:
            ledger.blame(fault.node, fault.failure.reason, key)
            log.warning("node %s is avoided: %s", address_of(fault.node), fault.failure.reason)


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
    ) -> None:
        self._store, self._units, self._how, self._workers = store, units, how, workers
        self._reporter, self._before, self._failed = reporter, before, failed
        self._monitor = ray.remote(Monitor).options(**beside_driver()).remote()
        self._heard = Heard()

    def run(self, without: set[str]) -> Exception | None:
        """Returns what ended the run before all units were done."""
        workers = workers_now(self._workers, without).at_most(self._how.most)
        log.info("%s: %d workers share every batch", self._reporter.now.stage, workers.count)
        try:
            datasets, load_from = self._how.datasets(self._units, workers.count)
            with scratch(self._store) as folder, polled(self._look):
                self._trainer(datasets, load_from, workers, folder, without).fit()
        except RayTaskError as error:  # Ray Data's, which appends its advice to the first line
            raise RuntimeError(f"reading the dataset failed: {str(error.cause).splitlines()[0]}") from error
        except (TrainingFailedError, RayError) as error:
            return error
        return None

    def culprit(self) -> Unit | None:
        """The unit that was in training at last; None when none had begun."""
        self._look()
        return None if self._heard.position is None else self._units[self._heard.position]

    def failures(self) -> dict[tuple[str, str], str]:
        """Units that failed by themselves, and why."""
        self._look()
        return {self._units[position].key: reason for position, reason in self._heard.failures.items()}

    def _look(self) -> None:
        try:
            self._heard = ray.get(self._monitor.heard.remote())
        except RayError:  # why it is gone is for the run to say
            return
        heard = self._heard
        done = self._before + sum(unit.size for unit in self._units[: heard.position or 0]) + heard.done
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
                "units": self._units,
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
            run_config=RunConfig(
                name=uuid.uuid4().hex,
                failure_config=FailureConfig(controller_failure_limit=0, max_preemption_failures=0),
                **train_storage(self._store, folder),
            ),
            datasets=dict(datasets.rows),
            dataset_config=ray.train.DataConfig(datasets_to_split=list(datasets.split)),
        )


@dataclass(slots=True)
class Heard:
    """What the workers have said."""

    position: int | None = None
    """Of the unit in training."""
    done: int = 0
    facts: Facts = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)


class Monitor:
    """Where the workers say how far they are, for the driver to ask: it must survive them."""

    def __init__(self) -> None:
        self._heard = Heard()

    def put(self, position: int, done: int, facts: Facts) -> None:
        self._heard.position, self._heard.done, self._heard.facts = position, done, facts

    def fail(self, position: int, reason: str) -> None:
        self._heard.failures[position] = reason

    def heard(self) -> Heard:
        return self._heard


def _train_units(loop: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    from datadream.runtime.collectives import Collectives
    from datadream.runtime.device import shared_worker_device, use_threads

    context, node = ray.train.get_context(), ray.get_runtime_context().get_node_id()
    collectives = Collectives(context.get_world_rank(), context.get_world_size())
    position: int | None = None
    try:
        check_sees_run(loop["run_url"], loop["scratch"])
        use_threads(loop["workers"].threads)
        train = loop["load"](loop["load_from"], shared_worker_device(loop["workers"].use_gpu), collectives)
        for position, unit in enumerate(loop["units"]):
            report = _reporter(loop["monitor"], position, collectives.rank)
            report(0, {})
            try:
                train(unit, report)
            except FloatingPointError as error:  # on all ranks, which go on with the next
                if collectives.rank == 0:
                    ray.get(loop["monitor"].fail.remote(position, describe(error)))
    except LostPeerError:
        raise
    except Exception as error:
        raise UnitFault(position, Failure.of(error), node) from error


def _reporter(monitor: ActorHandle, position: int, rank: int) -> Report:
    """Tells the monitor of a unit's steps, now and then; only rank 0 talks."""
    last, known = 0.0, {}

    def report(done: int, facts: Facts | Callable[[], Facts]) -> None:
        nonlocal last
        is_news = not callable(facts) and (facts or done == 0)
        if rank == 0 and (is_news or time.monotonic() - last > SECONDS_BETWEEN_REPORTS):
            last = time.monotonic()
            known.update(facts() if callable(facts) else facts)
            monitor.put.remote(position, done, dict(known))

    return report
