"""Data-parallel units on real Ray: who is to blame when a run ends, and that all others are done.

A start of two workers takes 7 s on an idle machine, so that one stage tells most stories. What a unit does is a word
in its payload; what it did is counted in files, because each start has new processes.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
import ray.data

from datadream.run.layout import SCRATCH
from datadream.run.store import RunStore
from datadream.runtime.data_parallel import DataParallel, Datasets, run_together
from datadream.runtime.failures import GIVE_UP_AFTER
from datadream.runtime.map_units import quiet_data
from datadream.runtime.progress import Reporter
from datadream.runtime.unit import Unit
from datadream.runtime.workers import Workers
from tests.processes import ray_workers, train_workers, wait_until, wait_until_gone

STEPS = 3
SECONDS_TO_END = 60.0
"""Ray gives an actor whose owner died 30 s to end by itself (`actor_graceful_shutdown_timeout_ms`), then kills it."""
SECONDS_LATE = 3.0
TWO = Workers(2, threads=1, use_gpu=False)

pytestmark = pytest.mark.usefixtures("local_ray")


def unit_of(store: RunStore, name: str, behaviour: str = "") -> Unit[str]:
    return Unit(
        run_url=store.url,
        name=name,
        marker=f"{name}.json",
        payload=behaviour,
        size=STEPS,
        checkpoints=f"{name}.checkpoint",
    )


def load(greeting, device, collectives):
    """Counts to STEPS with a checkpoint after each, and the marker holds where each start began."""
    if greeting == "no model":
        raise ValueError("there is no such model.")
    if greeting == "rank 0 is late" and collectives.rank == 0:
        time.sleep(SECONDS_LATE)

    def train(unit, report):
        import torch

        behaviour, checkpoint = unit.payload, f"{unit.name}.checkpoint"
        # There is a last rank also where one worker is all that finds room, soon after another's death.
        is_last = collectives.rank == collectives.count - 1
        if is_last:
            unit.store.write_bytes(f"{unit.name}-{os.getpid()}.start", b"")
        began = int(unit.store.read_bytes(checkpoint)) if unit.store.exists(checkpoint) else 0
        for step in range(began + 1, STEPS + 1):
            if is_last and (behaviour == "kills" or (behaviour == "kills once" and (began, step) == (0, 2))):
                os._exit(1)
            collectives.sum(torch.ones(1))
            if behaviour == "warns":
                logging.getLogger("datadream.toy").warning("memory is short\nand more")
            if behaviour == "diverges":
                raise FloatingPointError("the loss became nan.")
            if behaviour == "broken on rank 1" and collectives.rank == 1:
                raise ValueError("a photo is broken.")
            if behaviour == "interrupts its driver" and collectives.rank == 0:
                os.kill(int(greeting), signal.SIGINT)
            if behaviour == "interrupts its driver":
                time.sleep(10 * SECONDS_TO_END)
            if behaviour == "gone on all":
                raise FileNotFoundError("a photo is gone.")
            report(step, {"loss": 1 / step})
            if collectives.rank == 0 and behaviour != "kills":
                unit.store.write_bytes(checkpoint, str(step).encode())
            collectives.sum(torch.ones(1))  # so that nobody is a step ahead of the checkpoint
        if collectives.rank == 0:
            unit.store.write_json(unit.marker, {"began": began, "ranks": collectives.count, "said": greeting})

    return train


def starts(unit: Unit[str]) -> int:
    """How often the unit was begun by the last rank, which may be the one that dies."""
    return len(list(Path(unit.run_url).glob(f"{unit.name}-*.start")))


def run(store: RunStore, units: list[Unit[str]], greeting: str = "done", **more) -> tuple[dict, Reporter]:
    how = DataParallel(load=load, load_from=greeting, most=8, **more)
    with quiet_data(), Reporter("toy", STEPS * len(units), "step") as reporter:
        failures = run_together(store, units, how, TWO, reporter)
    return failures, reporter


def done(*units: Unit[str]) -> list[bool]:
    return [unit.store.exists(unit.marker) for unit in units]


def unreadable(left, n_workers):
    rows = ray.data.from_items([{"name": unit.name} for unit in left])
    broken = {unit.key: "its shard is broken." for unit in left if unit.name == "unreadable"}
    return Datasets({"names": rows}, unreadable=broken), f"{n_workers} workers"


@pytest.mark.soak
def test_a_units_own_fault_costs_no_start_and_what_workers_warn_of_is_said_once(tmp_path, caplog):
    store = RunStore(str(tmp_path))
    units = [
        unit_of(store, *each) for each in (("first", "warns"), ("diverges", "diverges"), ("unreadable",), ("last",))
    ]
    failures, reporter = run(store, units, datasets=unreadable)
    assert failures == {units[1].key: "the loss became nan.", units[2].key: "its shard is broken."}
    assert done(*units) == [True, False, False, True]
    assert [starts(unit) for unit in units] == [1, 1, 0, 1]
    assert store.read_json("last.json") == {"began": 0, "ranks": 2, "said": "2 workers"}
    assert (reporter.done, reporter.now.facts["failed"]) == (STEPS * len(units), 2)
    assert [record.getMessage() for record in caplog.records if "memory" in record.getMessage()] == [
        "a worker: memory is short"
    ]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(SCRATCH)]


@dataclass
class Story:
    """A stage over three runs, whose units have the same names."""

    units: dict[str, Unit[str]]
    failures: dict[tuple[str, str], str]
    reporter: Reporter


@pytest.fixture(scope="module")
def story(local_ray, tmp_path_factory) -> Story:
    a, b, c = (RunStore(str(tmp_path_factory.mktemp(name, numbered=False))) for name in "abc")
    units = {
        "first": unit_of(a, "dataset"),
        "diverges": unit_of(a, "diverges", "diverges"),
        "earlier": unit_of(c, "earlier"),
        "unreadable": unit_of(c, "unreadable"),
        "broken": unit_of(b, "dataset", "broken on rank 1"),
        "dies": unit_of(b, "dies", "kills once"),
        "last": unit_of(c, "dataset"),
    }
    c.write_json(units["earlier"].marker, {})
    return Story(units, *run(a, list(units.values()), datasets=unreadable))


@pytest.mark.slow
def test_what_is_at_fault_is_named_and_all_others_are_done(story):
    assert {name: story.failures.get(unit.key) for name, unit in story.units.items()} == {
        "first": None,
        "diverges": "the loss became nan.",
        "earlier": None,
        "unreadable": "its shard is broken.",
        "broken": "a photo is broken.",
        "dies": None,
        "last": None,
    }
    for name, unit in story.units.items():
        assert done(unit) == [unit.key not in story.failures], name
    assert story.units["last"].store.read_json("dataset.json") == {"began": 0, "ranks": 2, "said": "2 workers"}


@pytest.mark.slow
def test_of_units_with_one_name_the_broken_one_is_blamed_and_what_was_told_before_is_kept(story):
    """Every run of a table may have an adapter called `dataset`: the first used to be blamed for the second, and a
    divergence before it was forgotten."""
    assert {name: starts(unit) for name, unit in story.units.items()} == {
        "first": 1,
        "diverges": 1,
        "earlier": 0,
        "unreadable": 0,
        "broken": 1,
        "dies": 2,
        "last": 1,
    }


@pytest.mark.slow
def test_a_unit_whose_worker_dies_goes_on_from_its_checkpoint(story):
    assert story.units["dies"].store.read_json("dies.json")["began"] == 1


@pytest.mark.slow
def test_the_count_ends_at_all_units_and_nothing_is_left_behind(story):
    assert (story.reporter.done, story.reporter.now.facts["failed"]) == (STEPS * len(story.units), 3)
    folder = Path(story.units["first"].run_url)
    assert not [path for path in folder.iterdir() if path.name.startswith(SCRATCH)]


@pytest.mark.slow
def test_of_runs_that_ended_with_an_error_no_process_stays(story):
    """Ray Train's error holds the run's controller, and held our monitor, for as long as the driver lived."""
    assert story.failures
    wait_until(lambda: not (ray_workers("TrainController") + ray_workers("Monitor")), SECONDS_TO_END)


@pytest.mark.slow
def test_workers_that_cannot_load_say_why(tmp_path):
    store = RunStore(str(tmp_path))
    with pytest.raises(RuntimeError, match="^there is no such model.$"):
        run(store, [unit_of(store, "any")], "no model")


def test_without_anything_to_do_nothing_starts(tmp_path):
    store = RunStore(str(tmp_path))
    unit = unit_of(store, "any")
    store.write_json(unit.marker, {})
    assert run(store, [unit], "no model")[0] == {}


@pytest.mark.soak
@pytest.mark.timeout(600)  # seven starts of workers
def test_a_unit_that_kills_its_worker_every_time_or_that_no_host_can_do_is_given_up_and_the_next_is_done(tmp_path):
    store = RunStore(str(tmp_path))
    killer, gone, last = (
        unit_of(store, *each) for each in (("killer", "kills"), ("gone", "gone on all"), ("last", ""))
    )
    # The rank that dies has begun before rank 0, which tells of steps: no loss may pass for one of the start.
    failures, _ = run(store, [killer, gone, last], "rank 0 is late")
    assert failures.keys() == {killer.key, gone.key}
    assert failures[killer.key].startswith(f"given up after {GIVE_UP_AFTER} attempts: its workers were lost")
    assert failures[gone.key] == f"given up after {GIVE_UP_AFTER} attempts: FileNotFoundError: a photo is gone."
    assert [starts(unit) for unit in (killer, gone, last)] == [GIVE_UP_AFTER, GIVE_UP_AFTER, 1]
    assert done(killer, gone, last) == [False, False, True]


DRIVER = """if True:
    import os, signal, sys
    import ray
    from datadream.run.store import RunStore
    from tests.runtime.test_data_parallel import run, unit_of
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores the signal
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    store = RunStore(sys.argv[2])
    try:
        run(store, [unit_of(store, "a", "interrupts its driver")], str(os.getpid()))
    except KeyboardInterrupt:
        sys.exit("the driver's own" if signal.getsignal(signal.SIGINT) is signal.default_int_handler else "taken")
"""


@pytest.mark.soak
def test_ctrl_c_stays_the_drivers_and_no_worker_outlives_it(tmp_path):
    """Ray Train takes the signal for itself until the process ends, and exits with 0 on it."""
    cluster = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", DRIVER, cluster, str(tmp_path)]
    driver = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert driver.stderr.splitlines()[-1] == "the driver's own", driver.stderr
    wait_until_gone(train_workers(), SECONDS_TO_END)
    assert not train_workers(), "others were started meanwhile"
