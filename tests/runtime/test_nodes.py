"""The cluster's nodes: how many workers fit those that answer, which to keep off, and who sees the run's folder."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from datadream.run.layout import SCRATCH
from datadream.run.store import RunStore
from datadream.runtime import nodes as nodes_module
from datadream.runtime.nodes import (
    avoiding,
    check_sees_run,
    check_shared,
    rooms,
    scratch,
    to_avoid,
    workers_now,
    workers_to_add,
)
from datadream.runtime.workers import Workers

FIVE = Workers(5, 1, False)
GROWING = Workers(1, 1, False, grows=True)


def node(name: str, cpus: float = 4, alive: bool = True) -> dict:
    """As ray.nodes() tells of one."""
    return {"NodeID": name, "NodeManagerAddress": f"address of {name}", "Alive": alive, "Resources": {"CPU": cpus}}


@pytest.fixture
def cluster(monkeypatch):
    """Say of which nodes the cluster is, and which do not answer."""

    def consists_of(*nodes: dict, silent: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(ray, "nodes", lambda: list(nodes))
        monkeypatch.setattr(nodes_module, "_answers", lambda node: node["NodeID"] not in silent)

    return consists_of


def test_workers_are_those_that_were_asked_for_or_those_that_fit(cluster):
    cluster(node("a", 4), node("b", 4))
    assert workers_now(FIVE).count == 5
    assert workers_now(GROWING).count == 7, "one of eight CPUs is the data tasks'"
    assert workers_now(FIVE, without={"a"}).count == 3
    assert workers_now(FIVE, without={"a", "b"}).count == 1


def test_a_worker_lives_on_one_node(cluster):
    cluster(node("a", 3), node("b", 3), node("c", 1))
    two_each = Workers(5, 2, False)
    assert rooms(two_each, nodes_module.living_nodes()) == {"a": 1, "b": 1, "c": 0}
    assert workers_now(two_each).count == 2


def test_dead_and_silent_nodes_hold_nobody_unless_all_are_silent(cluster, caplog):
    """Where the driver reaches none, as behind a firewall, the silence of all says nothing."""
    caplog.set_level(logging.WARNING)
    nodes = node("a"), node("b"), node("c", alive=False)
    cluster(*nodes, silent=("b",))
    assert workers_now(FIVE).count == 3
    assert caplog.messages == ["node address of b does not answer: going on without it"]
    cluster(*nodes, silent=("a", "b"))
    assert workers_now(FIVE).count == 5
    assert len(caplog.messages) == 1


def test_a_node_that_is_left_gets_workers_and_one_that_has_some_gets_no_more(cluster):
    cluster(node("a", 2), node("b", 4), node("c", 1))
    counts = {name: workers.count for name, workers in workers_to_add(FIVE, {}, 100).items()}
    assert counts == {"b": 4, "a": 1}
    counts = {name: workers.count for name, workers in workers_to_add(FIVE, {"b": 2}, 100).items()}
    assert counts == {"a": 2, "c": 1}
    assert workers_to_add(FIVE, {"b": 2}, n_units=2) == {}
    grown = workers_to_add(GROWING, {"b": 4}, 100)
    assert {name: workers.count for name, workers in grown.items()} == {"a": 2}


def test_suspects_are_avoided_as_long_as_there_are_others(cluster):
    cluster(node("a"), node("b"), node("c", alive=False))
    assert to_avoid({"a"}) == {"a"}
    assert to_avoid({"a", "b"}) == set()
    assert to_avoid(()) == set()


def test_a_task_keeps_off_the_nodes_that_are_avoided(local_ray):
    (here,) = nodes_module.living_nodes()
    where = ray.remote(num_cpus=0)(lambda: ray.get_runtime_context().get_node_id())
    assert ray.get(where.options(**avoiding(["gone"])).remote()) == here["NodeID"]
    assert avoiding([]) == {}
    nowhere = where.options(**avoiding([here["NodeID"], "gone"])).remote()
    assert ray.wait([nowhere], timeout=1) == ([], [nowhere])
    ray.cancel(nowhere)


def test_scratch_space_has_a_probe_and_is_gone_whatever_happens(tmp_path):
    store = RunStore(str(tmp_path))
    with scratch(store) as folder:
        assert folder.startswith(SCRATCH)
        check_sees_run(store.url, folder)
        with pytest.raises(FileNotFoundError, match=f"the run's folder '{tmp_path}/other' is not the driver's here"):
            check_sees_run(f"{store.url}/other", folder)
    with pytest.raises(KeyError), scratch(store):
        raise KeyError("x")
    assert store.files("") == set()


def test_one_node_sees_its_own_run_and_nothing_is_written(local_ray, tmp_path):
    check_shared(RunStore(str(tmp_path / "run")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.soak
def test_a_run_that_a_node_has_elsewhere_is_refused_before_any_work(tmp_path):
    """Its workers would commit to their own disk: "trained, but not there", start after start."""
    (tmp_path / "elsewhere").mkdir()
    knobs = ["--recipe", "digits", "cluster.device=cpu"]
    command = [sys.executable, "-m", "tests.runtime.two_homes", str(tmp_path), "run", "file://~/run", *knobs]
    # Without what a Ray of the tests' own process has set: it asks for a token that lies in the other home.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert ended.returncode == 2, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("datadream:")]
    assert "run 'file://~/run' is another folder on 1 of 2 nodes (" in line
    assert "Use a --run that all nodes see: a shared file system or an object store" in line
    assert not [path for path in Path(tmp_path).rglob("*") if path.is_file()]
