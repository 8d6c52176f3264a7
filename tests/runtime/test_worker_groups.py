"""Leased units on real Ray, without any model; and what worker groups lean on inside Ray Train.

Where a new Ray changes that, the last tests fail, and the bound on Ray must stay. The chaos tests show the behaviour;
these name the cause.
"""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray.train import FailureConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.v2._internal import constants
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.worker_group import worker_group
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from datadream.run.store import RunStore
from datadream.runtime.failures import GIVE_UP_AFTER, Failure
from datadream.runtime.unit import Unit
from datadream.runtime.work_queue import QueueProgress
from datadream.runtime.worker_groups import IndependentWorkers, Leased, run_leased
from datadream.runtime.workers import Workers

TWO = Workers(2, 1, False)


@pytest.fixture
def store(local_ray, tmp_path) -> RunStore:
    return RunStore(str(tmp_path))


def units_of(store: RunStore, *payloads: str) -> list[Unit[str]]:
    return [
        Unit(run_url=store.url, name=f"unit {number}", marker=f"{number}.json", payload=payload)
        for number, payload in enumerate(payloads)
    ]


class Worker:
    """Does what the units' words say, and notes each attempt in the run."""

    def group_size(self, most: int) -> int:
        return most

    def work(self, group, heartbeat) -> dict[int, Failure]:
        failures = {}
        for position, unit, missing in zip(group.positions, group.units, group.missing, strict=True):
            assert missing
            attempts = Path(unit.run_url) / unit.name
            attempts.mkdir(exist_ok=True)
            before = len(list(attempts.iterdir()))
            (attempts / str(before)).touch()
            if unit.payload == "kill" or (unit.payload == "kill once" and before == 0):
                os._exit(1)
            if unit.payload == "fail":
                failures[position] = Failure.of(ValueError(f"{unit.name} is broken."))
                continue
            unit.store.write_json(unit.marker, unit.payload)
        return failures


def load(_, device) -> Worker:
    return Worker()


def load_nothing(_, device) -> Worker:
    raise ValueError("no such model")


def run(store: RunStore, units: list[Unit[str]], load_worker=load) -> tuple[dict[str, str], list[QueueProgress]]:
    """Why units were given up, by name, and what was heard of the progress."""
    heard: list[QueueProgress] = []
    how = Leased(load_worker, None, 1, 1, lease_seconds=60.0)
    given_up, usage = run_leased(store, units, [False] * len(units), how, TWO, heard.append)
    assert usage["workers"] >= 2
    names = {unit.key: unit.name for unit in units}
    return {names[key]: reason for key, reason in given_up.items()}, heard


@pytest.mark.soak
def test_units_are_done_or_named_whoever_dies(store):
    units = units_of(store, "one", "kill once", "fail", "kill", "five")
    given_up, heard = run(store, units)
    assert given_up == {
        "unit 2": "unit 2 is broken.",
        "unit 3": f"given up after {GIVE_UP_AFTER} attempts: its workers died or fell silent.",
    }
    assert [unit.name for unit in units if store.exists(unit.marker)] == ["unit 0", "unit 1", "unit 4"]
    attempts = [len(list(Path(store.root, unit.name).iterdir())) for unit in units]
    assert attempts == [1, 2, 1, GIVE_UP_AFTER, 1]
    assert (heard[-1].units, heard[-1].failed) == (3, 2)
    assert not list(Path(store.root).glob(".*"))


def told_by(module: str, run: Path) -> dict:
    """What a test on a Ray of its own prints."""
    # Without what the Ray of the tests' own process has set.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", module, str(run)]
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=230, check=True).stdout
    return json.loads(next(line for line in said.splitlines() if line.startswith("{")))


@pytest.mark.soak
def test_a_group_that_starts_as_the_last_unit_ends_leaves_nothing_on_the_cluster(tmp_path):
    """Killed while it started, its placement group held its CPUs for the rest of the run, and the next stage waited
    for them."""
    told = told_by("tests.runtime.late_group", tmp_path)
    assert (told["held"], told["groups"], told["actors"]) == (0, 0, [])


@pytest.mark.soak
def test_an_autoscaling_cluster_grows_from_no_node_to_two_and_shrinks_again(tmp_path):
    assert told_by("tests.runtime.autoscaled", tmp_path) == {"done": 4, "failures": 0, "nodes": [2, 0]}


@pytest.mark.slow
def test_workers_of_which_none_can_start_end_the_stage_with_their_reason(store):
    with pytest.raises(RuntimeError, match="no worker can go on:\n  node .*: no such model"):
        run(store, units_of(store, "one", "two"), load_nothing)


def test_a_backend_may_ask_for_workers_that_are_replaced_alone():
    assert Backend.has_replica_groups is False
    assert IndependentWorkers().backend_cls.has_replica_groups is True
    assert "has_replica_groups" in inspect.getsource(worker_group)


def test_a_callback_hears_of_the_controller_from_inside_it():
    assert list(inspect.signature(ControllerCallback.after_controller_start).parameters) == [
        "self",
        "train_run_context",
    ]


def test_workers_may_be_pinned_to_a_node():
    assert ScalingConfig(num_workers=1, label_selector={"ray.io/node-id": "x"}).label_selector


def test_failures_are_told_apart():
    assert issubclass(ControllerError, TrainingFailedError)
    assert WorkerGroupError("failed", {1: ValueError()}).worker_failures.keys() == {1}
    assert issubclass(WorkerHealthCheckFailedError, Exception)
    assert issubclass(WorkerHealthCheckTimeoutError, Exception)
    assert FailureConfig(max_failures=-1, controller_failure_limit=0, max_preemption_failures=0).max_failures == -1


def test_the_pace_of_health_checks_is_a_variable():
    assert constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR == "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
    assert constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR == "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
