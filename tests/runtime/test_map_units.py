"""Mapped units on real Ray: errors are told apart, rows go back to others, and values come back whatever the order.

What fails is counted by files in the run, because a unit that goes back is done by another process.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray

from datadream.run.store import RunStore
from datadream.runtime import map_units
from datadream.runtime.failures import GIVE_UP_AFTER, Ledger
from datadream.runtime.map_units import Mapped, run_mapped
from datadream.runtime.unit import Unit
from datadream.runtime.workers import Workers

TWO = Workers(2, 1, False)
HOST_FAULTS = {"twice": 2, "always": 1_000}


def units_of(store: RunStore, *payloads: str) -> list[Unit[str]]:
    return [
        Unit(run_url=store.url, name=f"unit {number}", marker=f"{number}.json", payload=payload)
        for number, payload in enumerate(payloads)
    ]


def attempt(unit: Unit[str], step: str) -> int:
    """How often this step of the unit was begun before."""
    folder = Path(unit.run_url) / "attempts" / unit.name
    folder.mkdir(parents=True, exist_ok=True)
    begun = len(list(folder.glob(f"{step}-*")))
    (folder / f"{step}-{begun}").touch()
    return begun


def attempts(unit: Unit[str], step: str = "work") -> int:
    return len(list((Path(unit.run_url) / "attempts" / unit.name).glob(f"{step}-*")))


def fail_as_asked(unit: Unit[str], step: str) -> None:
    """Payloads are words, of which some are instructions, such as `work:unit` or `commit:twice`."""
    before = attempt(unit, step)
    where, _, what = unit.payload.partition(":")
    if where != step:
        return
    if what == "unit":
        raise ValueError(f"{unit.name} is broken.")
    if before < HOST_FAULTS[what]:
        raise FileNotFoundError(f"no photos here for {unit.name}")


def load(greeting, device):
    def work(unit):
        fail_as_asked(unit, "work")
        logging.getLogger("datadream.toy").warning("memory is short")
        return {"said": f"{greeting} {unit.payload}", "pixels": np.full(3, len(unit.payload), np.uint8)}

    return work


def commit(unit, value):
    fail_as_asked(unit, "commit")
    unit.store.write_json(unit.marker, value["said"])
    return value["pixels"]


def load_on_second_start(run_url, device):
    """The first worker that starts has no model."""
    place = Path(run_url) / "first"
    try:
        place.touch(exist_ok=False)
    except FileExistsError:
        return lambda unit: unit.payload
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def load_asking_for_resources(_, device):
    return lambda unit: (device, ray.get_runtime_context().get_assigned_resources())


def run(store, units, how, workers=TWO):
    """What came back, by the units' names, and why others were given up."""
    ledger = Ledger()
    done = {row.unit.name: row.value for row in run_mapped(store, units, how, workers, ledger)}
    names = {unit.key: unit.name for unit in units}
    return done, {names[key]: reason for key, reason in ledger.given_up.items()}


@pytest.fixture
def store(local_ray, tmp_path) -> RunStore:
    return RunStore(str(tmp_path))


@pytest.mark.soak
def test_a_units_own_fault_is_named_at_once_and_a_hosts_goes_back_to_others(store, caplog):
    units = units_of(store, "one", "work:unit", "work:twice", "work:always", "five")
    done, given_up = run(store, units, Mapped(load=load, load_from="hello", what="greeting"))
    assert {name: value["said"] for name, value in done.items()} == {
        "unit 0": "hello one",
        "unit 2": "hello work:twice",
        "unit 4": "hello five",
    }
    assert done["unit 4"]["pixels"].tolist() == [4, 4, 4]
    assert given_up == {
        "unit 1": "unit 1 is broken.",
        "unit 3": f"given up after {GIVE_UP_AFTER} attempts: FileNotFoundError: no photos here for unit 3",
    }
    assert [attempts(unit) for unit in units] == [1, 1, 3, GIVE_UP_AFTER, 1]
    assert caplog.text.count("a worker: memory is short") == 1


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
def test_faults_of_the_second_step_are_told_apart_as_well(store, monkeypatch, beside):
    monkeypatch.setattr(map_units, "commits_beside", lambda workers: beside)
    units = units_of(store, "one", "commit:unit", "commit:twice", "work:unit")
    how = Mapped(load=load, load_from="hello", what="greeting", commit=commit)
    done, given_up = run(store, units, how)
    assert {name: value.tolist() for name, value in done.items()} == {"unit 0": [3] * 3, "unit 2": [12] * 3}
    assert store.read_json("2.json") == "hello commit:twice"
    assert given_up == {"unit 1": "unit 1 is broken.", "unit 3": "unit 3 is broken."}
    assert [attempts(unit, "commit") for unit in units] == [1, 1, 3, 0]


def test_a_success_of_two_nodes_is_no_ones(store):
    """A node whose GPU is broken may commit well what others did, and stays suspect."""
    here, how = ray.get_runtime_context().get_node_id(), Mapped(load, "hello", "greeting", commit)
    done, broken = units_of(store, "one", "commit:unit")
    value = {"said": "hello one", "pixels": np.zeros(3, np.uint8)}
    row = {"value": pickle.dumps(value), "failure": pickle.dumps(None), "notices": pickle.dumps([])}
    for unit, worked_on, node in ((done, here, here), (done, "elsewhere", ""), (broken, "elsewhere", here)):
        committed = map_units._commit({**row, "unit": pickle.dumps(unit), "node": worked_on}, how)
        assert committed["node"] == node


@pytest.mark.slow
def test_a_worker_that_cannot_load_costs_no_unit(store):
    """Its units are done by others: here by whoever is started next, for there is one node."""
    units = units_of(store, "one", "two", "three", "four")
    done, given_up = run(store, units, Mapped(load=load_on_second_start, load_from=store.url, what="loading"))
    assert sorted(done.values()) == ["four", "one", "three", "two"]
    assert given_up == {}


def test_tasks_ask_for_the_memory_of_a_unit(store):
    how = Mapped(load=load_asking_for_resources, load_from=None, what="asking", bytes_each=300 * 2**20)
    done, _ = run(store, units_of(store, "one", "two"), how, workers=None)
    for device, resources in done.values():
        assert device is None
        assert resources["CPU"] == 1
        assert resources["memory"] == 300 * 2**20


def test_tasks_that_need_more_than_a_node_has_run_alone(store):
    how = Mapped(load=load_asking_for_resources, load_from=None, what="asking", bytes_each=2**60)
    done, given_up = run(store, units_of(store, "one", "two"), how, workers=None)
    assert len(done) == 2
    assert given_up == {}


def test_the_folder_that_a_stage_borrows_is_gone_when_its_reader_stops(store):
    rows = run_mapped(store, units_of(store, "one"), Mapped(load=load, load_from="", what=""), TWO, Ledger())
    next(rows)
    rows.close()
    assert store.files("") == {"attempts/unit 0/work-0"}


def load_deadly(_, device):
    return lambda unit: os._exit(1) if unit.payload == "deadly" else unit.payload


def load_and_die(_, device):
    os._exit(1)


@pytest.mark.soak
def test_a_unit_that_kills_its_worker_is_given_up_and_named(store):
    """Ray Data begins it again for ever: out of memory in the same place, or a library that crashes."""
    done, given_up = run(store, units_of(store, "one", "deadly", "three"), Mapped(load_deadly, None, "deadly"))
    assert sorted(done.values()) == ["one", "three"]
    assert given_up == {"unit 1": f"given up after {GIVE_UP_AFTER} attempts: its workers died."}


@pytest.mark.soak
def test_a_model_that_kills_whoever_loads_it_ends_in_words(store):
    done, given_up = run(store, units_of(store, "one"), Mapped(load_and_die, None, "a large model"))
    assert done == {}
    assert given_up["unit 0"].endswith(f"a worker died {GIVE_UP_AFTER} times while it loaded a large model.")


@pytest.mark.soak
def test_a_node_that_joins_is_used(tmp_path):
    command = [sys.executable, "-m", "tests.runtime.growing", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
