"""Data-parallel units on real Ray: who is to blame when a run ends, and that all others are done.

A run of two workers takes seconds to start, so that most tests have several stories in one stage. What a unit does is a
word in its payload; what it did is counted in files, because each start has new processes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray.data

from datadream.run.store import RunStore
from datadream.runtime.data_parallel import DataParallel, Datasets, run_together
from datadream.runtime.failures import GIVE_UP_AFTER
from datadream.runtime.map_units import quiet_data
from datadream.runtime.progress import Reporter
from datadream.runtime.unit import Unit
from datadream.runtime.workers import Workers

STEPS = 3
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

    def train(unit, report):
        import torch

        behaviour, checkpoint = unit.payload, f"{unit.name}.checkpoint"
        (Path(unit.run_url) / f"{unit.name}-{os.getpid()}-{collectives.rank}.start").touch()
        began = int(unit.store.read_bytes(checkpoint)) if unit.store.exists(checkpoint) else 0
        for step in range(began + 1, STEPS + 1):
            collectives.sum(torch.ones(1))
            if behaviour == "diverges":
                raise FloatingPointError("the loss became nan.")
            if behaviour == "broken on rank 1" and collectives.rank == 1:
                raise ValueError("a photo is broken.")
            if behaviour == "gone on all":
                raise FileNotFoundError("a photo is gone.")
            if collectives.rank == 1 and (behaviour == "kills" or (behaviour == "kills once" and step == 2 > began)):
                os._exit(1)
            report(step, {"loss": 1 / step})
            if collectives.rank == 0 and behaviour != "kills":
                unit.store.write_bytes(checkpoint, str(step).encode())
            collectives.sum(torch.ones(1))  # so that nobody is a step ahead of the checkpoint
        if collectives.rank == 0:
            unit.store.write_json(unit.marker, {"began": began, "ranks": collectives.count, "said": greeting})

    return train


def starts(unit: Unit[str]) -> int:
    """How often the unit was begun by rank 1, which may be the one that dies."""
    return len(list(Path(unit.run_url).glob(f"{unit.name}-*-1.start")))


def run(store: RunStore, units: list[Unit[str]], greeting: str = "done", **more) -> tuple[dict, Reporter]:
    how = DataParallel(load=load, load_from=greeting, most=8, **more)
    with quiet_data(), Reporter("toy", STEPS * len(units), "step") as reporter:
        failures = run_together(store, units, how, TWO, reporter)
    return failures, reporter


def done(*units: Unit[str]) -> list[bool]:
    return [unit.store.exists(unit.marker) for unit in units]


@pytest.fixture
def stores(tmp_path) -> list[RunStore]:
    return [RunStore(str(tmp_path / name)) for name in ("a", "b", "c")]


def test_a_broken_unit_is_named_by_its_run_a_diverged_one_by_its_own_and_all_others_are_done(stores):
    """Every run of a table may have an adapter called `dataset`: the first used to be blamed for the second."""
    first, broken, last = (unit_of(store, "dataset") for store in stores)
    broken = unit_of(stores[1], "dataset", "broken on rank 1")
    diverged, before = unit_of(stores[0], "diverged", "diverges"), unit_of(stores[2], "earlier")
    before.store.write_json(before.marker, {})
    units = [first, diverged, before, broken, last]
    failures, reporter = run(stores[0], units)
    assert failures == {diverged.key: "the loss became nan.", broken.key: "a photo is broken."}
    assert done(*units) == [True, False, True, False, True]
    # The run that the broken one ended took neither the one that was done nor the divergence along.
    assert [starts(unit) for unit in units] == [1, 1, 0, 1, 1]
    assert first.store.read_json(first.marker) == {"began": 0, "ranks": 2, "said": "done"}
    assert (reporter.done, reporter.now.facts["failed"]) == (STEPS * len(units), 2)
    assert not [path for path in Path(stores[0].root).iterdir() if path.name.startswith(".ray-train")]


def test_a_unit_whose_worker_dies_goes_on_from_its_checkpoint(stores):
    dies, last = unit_of(stores[0], "dies", "kills once"), unit_of(stores[0], "last")
    assert run(stores[0], [dies, last])[0] == {}
    assert (dies.store.read_json(dies.marker)["began"], starts(dies)) == (1, 2)
    assert (last.store.read_json(last.marker)["began"], starts(last)) == (0, 1)


def test_workers_that_cannot_load_say_why(stores):
    with pytest.raises(RuntimeError, match="^there is no such model.$"):
        run(stores[0], [unit_of(stores[0], "any")], "no model")


def test_what_cannot_be_read_costs_the_units_that_need_it(stores):
    needs, other = unit_of(stores[0], "needs"), unit_of(stores[0], "other")

    def datasets(units, n_workers):
        rows = ray.data.from_items([{"name": unit.name} for unit in units])
        return Datasets({"names": rows}, unreadable={needs.key: "its shard is broken."}), f"{n_workers} workers"

    failures, _ = run(stores[0], [needs, other], datasets=datasets)
    assert failures == {needs.key: "its shard is broken."}
    assert other.store.read_json(other.marker)["said"] == "2 workers"
    assert [starts(unit) for unit in (needs, other)] == [0, 1]


def test_without_anything_to_do_nothing_starts(stores):
    unit = unit_of(stores[0], "any")
    stores[0].write_json(unit.marker, {})
    assert run(stores[0], [unit], "no model")[0] == {}


@pytest.mark.soak
def test_a_unit_that_kills_its_worker_every_time_or_that_no_host_can_do_is_given_up_and_the_next_is_done(stores):
    killer, gone, last = (
        unit_of(stores[0], *each) for each in (("killer", "kills"), ("gone", "gone on all"), ("last", ""))
    )
    failures, _ = run(stores[0], [killer, gone, last])
    assert failures.keys() == {killer.key, gone.key}
    assert failures[killer.key].startswith(f"given up after {GIVE_UP_AFTER} attempts: its workers were lost")
    assert failures[gone.key] == f"given up after {GIVE_UP_AFTER} attempts: FileNotFoundError: a photo is gone."
    assert [starts(unit) for unit in (killer, gone, last)] == [GIVE_UP_AFTER, GIVE_UP_AFTER, 1]
    assert done(killer, gone, last) == [False, False, True]
