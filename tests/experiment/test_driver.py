"""The one driver of a run: who may start, what it writes before any work, and what it counts."""

import os
import threading
from contextlib import AbstractContextManager

import pytest

from datadream import recipes
from datadream.adapt.stage import AdapterUnit, adapter_units
from datadream.cli import main
from datadream.config import ExperimentConfig
from datadream.experiment import driver as driver_module
from datadream.experiment.checks import RefusedError
from datadream.experiment.driver import Driver, driving
from datadream.experiment.experiment import Experiment
from datadream.run.config_record import recorded_config
from datadream.run.layout import ADAPTER_INDEX, CONFIG, DATASET, FEW_SHOT, INTAKE, LOCK, SCRATCH, adapter_marker
from datadream.run.lock import RunLock
from datadream.run.store import RunStore
from datadream.runtime.tracking import Tracking
from datadream.runtime.workers import Workers

SMALL = {"generate.images_per_class": 6, "generate.chunk_size": 3, "cluster.device": "cpu", "tracking.to": []}
JOINED = Workers(1, 1, False, slots=3)
"""One worker that was asked for in a session that holds three."""


def experiment(run: str, **changes) -> Experiment:
    return Experiment(recipes.digits(**SMALL | changes), run)


def adapters_of(started: Experiment) -> list[AdapterUnit]:
    (cell,) = started.cells
    return adapter_units(cell.store.url, cell.plan.adapters, cell.config.adapt)


def driver_of(started: Experiment, workers: Workers = JOINED) -> Driver:
    """A driver without a lock, Ray or listeners."""
    return Driver(
        started.config,
        started.store,
        started.cells,
        adapters_of(started),
        workers,
        Tracking(()),
        listeners=(),
        hardware={"workers": 1, "each": "1 CPU", "nodes": 1},
    )


def start(started: Experiment) -> AbstractContextManager[Driver]:
    return driving(started.config, started.store, started.cells, adapters=[])


def commit_adapters(store: RunStore, labels) -> None:
    for label in labels:
        store.write_json(adapter_marker(f"class-{label:05d}"), {})


def test_spare_are_the_workers_that_no_missing_adapter_needs(tmp_path):
    started = experiment(str(tmp_path))
    assert driver_of(started).spare_workers().count == 2
    assert driver_of(started, Workers(3, 1, False, slots=3)).spare_workers() is None
    commit_adapters(started.store, range(8))  # two are missing
    assert driver_of(started, Workers(5, 1, False, slots=5, grows=True)).spare_workers() == Workers(
        3, 1, False, slots=5
    )
    commit_adapters(started.store, (8, 9))
    assert driver_of(started).spare_workers() is None


def test_nobody_is_spare_where_cores_are_shared_or_all_train_one_adapter(tmp_path):
    sharing = Workers(1, 1, False, slots=3, alone=True)
    assert driver_of(experiment(str(tmp_path)), sharing).spare_workers() is None
    assert driver_of(experiment(str(tmp_path), method="datadream-dset")).spare_workers() is None


def test_chunks_are_ready_once_their_adapter_is_there_and_until_they_are_generated(tmp_path):
    started = experiment(str(tmp_path))
    driver = driver_of(started)
    assert driver.ready_chunks() == []
    commit_adapters(started.store, (1, 4))
    started.store.write_json("chunks/00004-000003.json", {})
    assert [unit.payload.chunk_id for unit in driver.ready_chunks()] == [
        "00001-000000",
        "00001-000003",
        "00004-000000",
    ]


def test_of_images_to_choose_from_only_those_are_ready_that_are_asked_for_in_any_case(tmp_path):
    started = experiment(str(tmp_path), **{"generate.select.label_top_k": 1})
    commit_adapters(started.store, (1,))
    assert len(started.cells[0].chunks) > 20
    assert [unit.payload.chunk_id for unit in driver_of(started).ready_chunks()] == ["00001-000000", "00001-000003"]


class Clock:
    """Each look at it is ten seconds later."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 10
        return self.now


def test_the_seconds_of_starts_that_fail_are_added(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("1 of 10 adapters failed")

    monkeypatch.setattr(driver_module, "time", Clock())
    monkeypatch.setattr(driver_module, "train_adapters", fail)
    started = experiment(str(tmp_path))
    for seconds in (10, 20):
        with pytest.raises(RuntimeError, match="1 of 10 adapters failed"):
            driver_of(started).adapt()
        assert started.store.read_json("stages/adapt.json")["seconds"] == seconds


@pytest.fixture
def beside(monkeypatch, tmp_path) -> Driver:
    """A driver with two spare workers and one adapter that is there; training waits until these have been asked."""
    monkeypatch.setattr(driver_module, "SECONDS_BETWEEN_LOOKS", 0)
    monkeypatch.setattr(driver_module, "publish_dataset", lambda *_: None)
    started = experiment(str(tmp_path))
    commit_adapters(started.store, (1,))
    started.store.write_json(ADAPTER_INDEX, [])
    return driver_of(started)


def test_images_that_cannot_be_generated_beside_training_are_left_for_later(beside, monkeypatch, caplog):
    """Whatever it is, the training that holds the session goes on."""
    asked, calls = threading.Event(), []

    def generate(store, units, config, workers, listeners) -> None:
        calls.append((len(units), workers.count))
        asked.set()
        if len(calls) == 1:
            raise OSError("no space left")

    monkeypatch.setattr(driver_module, "generate_chunks", generate)
    monkeypatch.setattr(driver_module, "train_adapters", lambda *_: asked.wait(60))
    beside.adapt_and_generate()
    assert calls == [(2, 2), (20, 1)]
    assert caplog.messages == ["to be generated again once the adapters are trained: no space left"]


def test_when_training_fails_those_who_generate_end_before_the_lock_is_released(beside, monkeypatch, tmp_path):
    asked = threading.Event()

    def generate(*_: object) -> None:
        asked.set()
        for number in range(100):
            RunStore(str(tmp_path)).write_json(f"written/{number}.json", {})

    def train(*_: object) -> None:
        asked.wait(60)
        raise RuntimeError("1 of 10 adapters failed")

    monkeypatch.setattr(driver_module, "generate_chunks", generate)
    monkeypatch.setattr(driver_module, "train_adapters", train)
    with pytest.raises(RuntimeError, match="1 of 10 adapters failed"):
        beside.adapt_and_generate()
    assert len(list((tmp_path / "written").iterdir())) == 100


def test_a_second_driver_is_refused_and_told_of_the_first(tmp_path, capsys):
    store = RunStore(str(tmp_path / "run"))
    with RunLock(store):
        before = store.read_json(LOCK)
        assert main(["adapt", store.url, "--recipe", "digits", "cluster.device=cpu"]) == 2
        assert store.read_json(LOCK)["token"] == before["token"]
        assert store.files("") == {LOCK}
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"run '{store.url}' is being written by" in line
    for part in (f"process {os.getpid()} on {before['host']}", f"{store.root}/{LOCK}"):
        assert part in line


def test_the_lock_of_a_table_covers_its_cells(tmp_path):
    """A single start of a cell, such as to look closer at it, is another driver."""
    grid = {"grid.seeds": [0, 1], "method": "none", "classify.settings": ["zero-shot"]}
    table = experiment(str(tmp_path), **grid)
    with (
        RunLock(table.cells[1].store),
        pytest.raises(RefusedError, match="none-k4-seed1' is being written by"),
        start(table),
    ):
        pass
    assert table.store.files("") == set()


def test_images_of_another_plan_are_refused_and_nothing_is_written(local_ray, tmp_path):
    started = experiment(str(tmp_path))
    started.store.write_json(DATASET, {"plan": "0" * 64})
    with pytest.raises(RefusedError, match="holds a dataset folder of other images"), start(started):
        pass
    assert started.store.files("") == {DATASET}


def test_a_cluster_that_is_too_small_is_refused_and_nothing_is_written(local_ray, tmp_path):
    started = experiment(str(tmp_path), **{"cluster.workers": 4})
    with pytest.raises(RefusedError, match="cluster.workers is 4 with 1 CPU each"), start(started):
        pass
    assert started.store.files("") == set()


def test_a_driver_records_config_and_shots_holds_the_lock_and_sweeps(local_ray, tmp_path):
    started = experiment(str(tmp_path))
    (tmp_path / f"{SCRATCH}dead").mkdir()
    (tmp_path / "chunks").mkdir()
    (tmp_path / "chunks" / ".0.json.1.tmp").write_bytes(b"half")
    with start(started):
        assert started.store.files("") == {CONFIG, INTAKE, FEW_SHOT, LOCK}
        assert recorded_config(started.store) == started.config
    assert started.store.files("") == {CONFIG, INTAKE, FEW_SHOT}


def test_a_report_beside_a_driver_needs_no_lock_and_sweeps_nothing(tmp_path):
    """It used to remove the temporary files of the driver, whose renames then failed."""
    started = experiment(str(tmp_path))
    temporaries = {f"{SCRATCH}live/shared", "chunks/.0.json.1.tmp"}
    with RunLock(started.store):
        for name in temporaries:
            started.store.write_bytes(name, b"half")
        assert started.report() == []
        found = started.store.files("")
    assert temporaries | {LOCK, "metrics.json", "report/index.html"} <= found


def test_a_config_is_checked_once(tmp_path, monkeypatch):
    calls: list[ExperimentConfig] = []
    monkeypatch.setattr("datadream.experiment.experiment.check_inputs", lambda config, *_: calls.append(config))
    started = experiment(str(tmp_path))
    started.check()
    started.check()
    assert calls == [started.config]
