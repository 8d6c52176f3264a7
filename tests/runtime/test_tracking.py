"""What trackers show of a run, read back with their own libraries."""

import json
import time
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from datadream import recipes
from datadream.run.store import RunStore
from datadream.runtime import tracking as tracking_module
from datadream.runtime.progress import Progress, Reporter
from datadream.runtime.tracking import Tracking, check_trackers, tracked

ROWS = [{"adapter_id": "class-00000", "last_loss": 0.5}, {"adapter_id": "class-00001", "last_loss": 0.25}]

PRIVATE = {
    "data.source": "sftp://alice:s3cret@host.example/home/alice/photos",
    "diffusion.model": "/home/alice/models/sd",
    "cluster.address": "ray://host.example:10001",
}


def told_of(folder: Path) -> list[str]:
    """Words of PRIVATE in the files of a tracker."""
    data = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return [word for word in ("alice", "s3cret", "host.example") if word.encode() in data]


@pytest.fixture
def store(tmp_path, monkeypatch) -> RunStore:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking_module, "SECONDS_BETWEEN_POINTS", -1.0)
    return RunStore(str(tmp_path / "run"))


def follow(tracking: Tracking) -> None:
    """A stage that says twice how far it is, and an adapter table."""
    for done in (10, 20):
        tracking.hear(Progress("adapt", "adapter", total=20, done=done, facts={"loss": 1 / done, "phase": "warm-up"}))
    tracking.table("adapters", ROWS)


def events(folder: str) -> list[Event]:
    """A TFRecord is a length of 8 bytes, 4 of its hash, the data, 4 of their hash."""
    (path,) = Path(folder).iterdir()
    data, found = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_tensorboard_is_the_default_of_a_folder(store):
    with tracked(recipes.digits(), store) as tracking:
        follow(tracking)
    values = [(event.step, value) for event in events(store.path("tensorboard")) for value in event.summary.value]
    assert [(step, value.tag, pytest.approx(value.simple_value)) for step, value in values[:4]] == [
        (10, "adapt/loss", 0.1),
        (10, "adapt/adapters_per_second", 0.0),
        (20, "adapt/loss", 0.05),
        (20, "adapt/adapters_per_second", 0.0),
    ]
    assert b"| class-00001 | 0.25 |" in values[4][1].tensor.string_val[0]


def test_an_object_store_has_no_default():
    with tracked(recipes.digits(), RunStore("memory://tracking")) as tracking:
        tracking.table("adapters", ROWS)
    assert not RunStore("memory://tracking").exists("tensorboard")


def test_what_cannot_be_is_refused(store):
    with pytest.raises(ValueError, match=r"has 'tensorboard', which writes to folders, but the run is at 'memory:"):
        check_trackers(recipes.digits(**{"tracking.to": ["tensorboard"]}), RunStore("memory://tracking"))


def test_a_tracker_that_fails_stops_nothing(caplog):
    class Broken:
        def table(self, name, rows):
            raise OSError("no server")

    Tracking([Broken()]).table("adapters", ROWS)
    assert "a tracker failed: OSError: no server" in caplog.text


def test_a_tracker_that_cannot_start_stops_nothing(store, monkeypatch, caplog):
    def broken(config, store):
        raise OSError("not logged in")

    monkeypatch.setitem(tracking_module.TRACKERS, "wandb", broken)
    with tracked(recipes.digits(**{"tracking.to": ["wandb", "tensorboard"]}), store) as tracking:
        tracking.table("adapters", ROWS)
    assert "a tracker failed: OSError: not logged in" in caplog.text
    assert events(store.path("tensorboard"))


def test_curves_have_a_point_now_and_then_and_the_last_one(monkeypatch):
    class Notes:
        def __init__(self):
            self.points = []

        def scalars(self, values, step):
            self.points.append((step, values.get("adapt/loss")))

    monkeypatch.setattr(tracking_module, "SECONDS_BETWEEN_POINTS", 3600.0)
    notes = Notes()
    with Reporter("adapt", 3, "adapter", [Tracking([notes])]) as reporter:
        for done in (1, 2, 3):
            reporter.update(done, loss=1 / done)
    assert notes.points == [(0, None), (3, 1 / 3)]


def test_a_tracker_that_fails_is_left_alone_for_a_while(monkeypatch, caplog):
    """Its server may take minutes to be found away, in which the stage would look after nothing else."""
    now, told = [100.0], []

    class Away:
        def scalars(self, values, step):
            told.append(step)
            raise ConnectionError("no route")

    monkeypatch.setattr("datadream.runtime.tracking.time.monotonic", lambda: now[0])
    tracking = Tracking([Away()])
    for step in range(20):
        tracking.hear(Progress("adapt", "step", 20, step))
        now[0] += 6
    assert told == [0, 10]
    assert caplog.text.count("a tracker failed: ConnectionError: no route") == 2


def test_a_tracker_that_fails_does_not_silence_the_others(caplog):
    class Broken:
        def scalars(self, values, step):
            raise OSError("no server")

    class Works(Broken):
        heard = 0

        def scalars(self, values, step):
            self.heard += 1

    works = Works()
    Tracking([Broken(), works]).hear(Progress("adapt", "adapter", 2, 1))
    assert works.heard == 1
    assert "a tracker failed: OSError: no server" in caplog.text


def test_mlflow_has_one_run_that_goes_on(store, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{store.path('mlruns')}")
    config = recipes.digits(**PRIVATE | {"tracking.to": ["mlflow"], "tracking.project": "ours"})
    for _ in range(2):
        with tracked(config, store) as tracking:
            follow(tracking)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("ours").experiment_id])
    assert run.data.params["adapt.rank"] == "16"
    assert run.data.params["data.source"] == "photos"
    assert not told_of(Path(store.path("mlruns")))
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "adapt/loss")][:2] == [
        (10, 0.1),
        (20, 0.05),
    ]
    (table,) = Path(store.root).rglob("adapters.json")
    assert json.loads(table.read_text())["data"][1] == ["class-00001", 0.25]


def test_wandb_writes_one_run(store, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    # W&B by itself records the command line, host and user.
    monkeypatch.setattr("sys.argv", ["datadream", "run", f"data.source={PRIVATE['data.source']}"])
    with tracked(recipes.digits(**PRIVATE | {"tracking.to": ["wandb"]}), store) as tracking:
        print(f"console {PRIVATE['data.source']}")
        follow(tracking)
    (run,) = Path.cwd().glob("wandb/offline-run-*/*.wandb")
    # W&B's own process writes on after the run is finished.
    deadline = time.monotonic() + 20
    while not (b"adapt/loss" in run.read_bytes() and b"adapters" in run.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not told_of(run.parent)
