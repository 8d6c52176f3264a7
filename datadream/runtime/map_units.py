"""Mapped units: rows that stream through a pool of actors, and perhaps a second step that commits (Ray Data).

A row is one unit. What it returns does not depend on which actor does it or when, so a pool may grow, shrink and lose
members. Ray Data repeats what a lost process or node held; errors are caught in the worker, so that one row's error is
not the end of all.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from datadream.hashing import sha256
from datadream.run.store import RunStore
from datadream.runtime.failures import GIVE_UP_AFTER, Failure, Kind, Ledger
from datadream.runtime.garbage import without_collection
from datadream.runtime.nodes import address_of, avoiding, check_sees_run, living_nodes, scratch, to_avoid
from datadream.runtime.notices import Said, listen
from datadream.runtime.ray_errors import failure_of, plain_errors
from datadream.runtime.unit import P, Unit
from datadream.runtime.workers import Workers

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SECONDS_TO_STEP_BACK = 5.0
"""A worker that had several host's faults in a row waits so long with each further row: Ray Data hands rows to whoever
is free, and one that fails at once is free more often than all others."""


@dataclass(frozen=True, slots=True)
class Mapped(Generic[P]):
    """What a stage wants done with each unit."""

    load: Callable[[Any, torch.device | None], Callable[[Unit[P]], Any]]
    """Called once in every worker with `load_from` and the worker's device; what it returns does one unit."""
    load_from: Any
    what: str
    """For messages: what is done, such as "generating"."""
    commit: Callable[[Unit[P], Any], Any] | None = None
    """A second step that gets what the first returned, beside the workers where these are GPUs'."""
    bytes_each: int = 0
    """Memory that a unit needs, where units are done by tasks; Ray then runs no more than a node can hold."""


@dataclass(frozen=True, slots=True)
class Done(Generic[P]):
    """A unit that was done."""

    unit: Unit[P]
    value: Any
    """What the last step returned."""
    busy_seconds: float
    """Of the first step."""
    idle_seconds: float
    """Of the worker, since the first step of its unit before: it waited, or committed that one."""


def run_mapped(
    store: RunStore, units: Sequence[Unit[P]], how: Mapped[P], workers: Workers | None, ledger: Ledger[tuple[str, str]]
) -> Iterator[Done[P]]:
    """Do every unit, in no particular order; `ledger` then has why units were given up, by their keys.

    Without `workers`, by tasks of one CPU each in place of actors: for what loads nothing.

    Units that met a host's fault are done again by others, as long as there are any. `store` lends scratch space.
    Raises RuntimeError when Ray itself gives up.
    """
    by_key, said = {unit.key: unit for unit in units}, Said()
    with scratch(store) as folder, quiet_data(), plain_errors(how.what):
        # Each pass is one execution of Ray Data; rows that met a host's fault are in the next, on other nodes
        # where there are any.
        while todo := [unit for unit in by_key.values() if unit.key not in ledger.given_up]:
            without = to_avoid(ledger.suspects, workers)
            for row in _rows(todo, how, workers, (store.url, folder), without).iter_rows():
                said.say(pickle.loads(row["notices"]))
                failure: Failure | None = pickle.loads(row["failure"])
                unit = by_key[tuple(pickle.loads(row["key"]))]
                if failure is None:
                    del by_key[unit.key]
                    if row["node"]:
                        ledger.succeed(row["node"], unit.key)
                    yield Done(unit, pickle.loads(row["value"]), row["busy_seconds"], row["idle_seconds"])
                elif failure.kind is Kind.UNIT:
                    ledger.fail(unit.key, failure.reason)
                else:
                    known = row["node"] in ledger.suspects
                    ledger.blame(row["node"], failure.reason, unit.key)
                    if not known:
                        log.warning("node %s has a fault: %s", address_of(row["node"]), failure.reason)


class _Tries:
    """How often something was begun and did not end, from an actor's second start on: Ray Data starts a process that
    died again, with what it did, for as long as it takes.

    Kept in the run's scratch folder, which outlives processes and nodes; an actor that never died writes nothing.
    """

    def __init__(self, probe: tuple[str, str]) -> None:
        url, folder = probe
        self._store, self._folder = RunStore(url), f"{folder}/tries"

    def begin(self, key: object) -> bool:
        """False where it cost as many workers as may be."""
        file = self._file(key)
        begun = self._store.read_json(file) if self._store.exists(file) else 0
        if begun >= GIVE_UP_AFTER:
            return False
        self._store.write_json(file, begun + 1)
        return True

    def end(self, key: object) -> None:
        with suppress(Exception):  # every file system has its own; one too many is counted, at worst
            if self._store.exists(self._file(key)):
                self._store.remove(self._file(key))

    def _file(self, key: object) -> str:
        return f"{self._folder}/{sha256(repr(key).encode())}.json"


def _rows(
    units: Sequence[Unit], how: Mapped, workers: Workers | None, probe: tuple[str, str], without: set[str]
) -> ray.data.Dataset:
    # One block for each row: an actor gets whole blocks, and rows as small as these would all be in one.
    items = [{"unit": pickle.dumps(unit), "key": pickle.dumps(unit.key)} for unit in units]
    rows = ray.data.from_items(items, override_num_blocks=len(items))
    if workers is None:
        # More than a node has would wait for ever.
        fitting = [node["Resources"] for node in living_nodes() if node["NodeID"] not in without]
        most = max((node.get("memory", 0) for node in fitting if node.get("CPU", 0) >= 1), default=0)
        memory = {"memory": int(min(how.bytes_each, most))} if how.bytes_each else {}
        return rows.map(_do, fn_kwargs={"how": how, "probe": probe}, num_cpus=1, **memory, **avoiding(without))
    # As many actors as were asked for; where nobody asked, those that fit now, and more or fewer as nodes join and
    # leave.
    count = workers.at_most(len(units)).count
    pool = ActorPoolStrategy(size=count)
    if workers.grows:
        pool = ActorPoolStrategy(min_size=1, initial_size=count, max_size=len(units))
    # Ray Data does not take CPUs and GPUs together.
    resources = {"num_cpus": 0, "num_gpus": 1} if workers.use_gpu else {"num_cpus": workers.threads, "num_gpus": 0}
    rows = rows.map(
        _Worker,
        fn_constructor_args=(how, workers, probe, not commits_beside(workers)),
        compute=pool,
        **resources,
        **avoiding(without),
    )
    if how.commit is None or not commits_beside(workers):
        return rows
    return rows.map(_commit, fn_kwargs={"how": how}, num_cpus=1)


def commits_beside(workers: Workers) -> bool:
    """Whether tasks commit, so that no GPU waits for it; on CPUs, which do all work by themselves, the workers do.

    Tasks that ask for no CPU beside workers that hold all of them are a process each: Ray keeps no more idle ones than
    a node has CPUs, and Ray Data begins as many as there are rows. On four nodes of one CPU there were 30 at once, and
    0.9 small images per second; without them 20 (benchmarks/RESULTS.md).
    """
    return workers.use_gpu


class _Worker:
    """Ray Data actor: holds what `load` returned."""

    def __init__(self, how: Mapped, workers: Workers | None, probe: tuple[str, str], commits: bool = False) -> None:
        self._commit = how.commit if commits else None
        context = ray.get_runtime_context()
        self._node, self._notices = context.get_node_id(), listen()
        self._faults = 0
        self._ended: float | None = None
        """When the last unit was done."""
        self._broken: Failure | None = None
        actor, self._tries = context.get_actor_id(), None
        try:
            if actor is not None and context.was_current_actor_reconstructed:
                self._tries = _Tries(probe)
                if not self._tries.begin(actor):
                    said = f"a worker died {GIVE_UP_AFTER} times while it loaded {how.what}."
                    self._broken = Failure(Kind.HOST, said)
                    return
            check_sees_run(*probe)
            device = None
            with without_collection():
                if workers is not None:
                    # Imported here, not above: torch takes a second, and the commit tasks import this module as well.
                    from datadream.runtime.device import use_threads, worker_device

                    use_threads(workers.threads)
                    device = worker_device(workers.use_gpu)
                self._work = how.load(how.load_from, device)
            if self._tries:
                self._tries.end(actor)
        except Exception as error:
            # Raised here it would end all rows. What no host can load is for each unit to fail by.
            self._broken = Failure.of(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        idle_seconds = started - self._ended if self._ended else 0.0
        unit: Unit = pickle.loads(row["unit"])
        value, worked, failure = None, 0.0, self._broken
        if failure is None:
            try:
                if self._tries and not self._tries.begin(unit.key):
                    raise ValueError(f"given up after {GIVE_UP_AFTER} attempts: its workers died.")
                value = self._work(unit)
                worked = time.monotonic()
                if self._commit is not None:
                    value = self._commit(unit, value)
            except Exception as error:
                value, failure = None, failure_of(error)
                log.error("%s: %s", unit.name, failure.reason)
        self._ended = worked or time.monotonic()
        is_hosts = failure is not None and failure.kind is not Kind.UNIT
        self._faults = self._faults + 1 if is_hosts else 0
        if self._faults >= GIVE_UP_AFTER:
            time.sleep(SECONDS_TO_STEP_BACK)
        told = {"busy_seconds": self._ended - started, "idle_seconds": idle_seconds, "node": self._node}
        notices = pickle.dumps(self._notices.take())
        done = {**row, "value": pickle.dumps(value), "failure": pickle.dumps(failure), "notices": notices, **told}
        if self._tries:
            self._tries.end(unit.key)
        return done


def _do(row: dict[str, Any], how: Mapped, probe: tuple[str, str]) -> dict[str, Any]:
    # A worker for each row: what is done by tasks loads nothing worth keeping.
    return _Worker(how, None, probe)(row)


def _commit(row: dict[str, Any], how: Mapped) -> dict[str, Any]:
    """The second step, for rows whose first succeeded."""
    if pickle.loads(row["failure"]) is not None or how.commit is None:
        return row
    value, notices, unit = pickle.loads(row["value"]), listen(), pickle.loads(row["unit"])
    failure: Failure | None = None
    try:
        value = how.commit(unit, value)
    except Exception as error:
        value, failure = None, failure_of(error)
        log.error("%s: %s", unit.name, failure.reason)
    told = {"value": pickle.dumps(value), "failure": pickle.dumps(failure)}
    told["notices"] = pickle.dumps([*pickle.loads(row["notices"]), *notices.take()])
    # What fails now is this node's fault. A success of two nodes is no one's: a node that cannot do one of the steps
    # may do the other well, and would be taken for sound after every unit.
    here = ray.get_runtime_context().get_node_id()
    node = here if failure is not None or row["node"] == here else ""
    return row | told | {"node": node}


@contextmanager
def quiet_data(in_order: bool = False) -> Iterator[None]:
    """Ray Data without its progress lines and with a worker's own words when it fails; then as it was before.

    `in_order`: rows come in the order of the files that they are read from.
    """
    context, logger = DataContext.get_current(), logging.getLogger("ray.data")
    names = (
        "enable_progress_bars",
        "enable_operator_progress_bars",
        "use_datasource_v2",
        "raise_original_map_exception",
    )
    before = {name: getattr(context, name) for name in names}
    order, level = context.execution_options.preserve_order, logger.level
    context.enable_progress_bars = context.enable_operator_progress_bars = False
    # Ray 2.60's new reader lists files from threads that import fsspec's HTTP file system at the same time: without
    # aiohttp that now and then fails with "cannot import name 'HTTPFileSystem'". It also joins small shards to a
    # block.
    context.use_datasource_v2 = False
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = in_order
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        context.execution_options.preserve_order = order
        logger.setLevel(level)
