"""The cluster's nodes: how many workers fit those that answer, which to keep off, and who sees the run's folder."""

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
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
    scratch,
    shortage,
    to_avoid,
    workers_now,
    workers_to_add,
)
from datadream.runtime.workers import Workers

FIVE = Workers(5, 1, False)
GROWING = Workers(1, 1, False, grows=True)


def node(name: str, cpus: float = 4, alive: bool = True, **resources: float) -> dict:
    """As ray.nodes() tells of one."""
    held = {"CPU": cpus} | resources
    return {"NodeID": name, "NodeManagerAddress": f"address of {name}", "Alive": alive, "Resources": held}


def no_wait(shortage: str) -> None:
    raise AssertionError(f"waits for {shortage}")


def counts(added: dict[str, Workers]) -> dict[str, int]:
    return {name: workers.count for name, workers in added.items()}


@pytest.fixture
def cluster(monkeypatch):
    """Say of which nodes the cluster is, which do not answer or are being drained, and what others use."""

    def consists_of(
        *nodes: dict, silent: tuple[str, ...] = (), draining: tuple[str, ...] = (), used: Sequence[dict] = ({},)
    ) -> None:
        looks = itertools.chain(used, itertools.repeat(used[-1]))

        def free() -> dict:
            taken = next(looks)
            return {
                node["NodeID"]: {
                    name: held - taken.get(node["NodeID"], {}).get(name, 0) for name, held in node["Resources"].items()
                }
                for node in nodes
            }

        monkeypatch.setattr(ray, "nodes", lambda: list(nodes))
        monkeypatch.setattr(nodes_module, "_answers", lambda node: node["NodeID"] not in silent)
        monkeypatch.setattr(nodes_module, "_draining", lambda: draining)
        monkeypatch.setattr(nodes_module, "available_resources_per_node", free)
        monkeypatch.setattr(nodes_module, "SECONDS_BETWEEN_LOOKS", 0.01)
        monkeypatch.setattr(nodes_module, "SECONDS_TO_SETTLE", 0.05)

    return consists_of


def test_workers_are_those_that_were_asked_for_or_those_that_fit(cluster):
    cluster(node("a", 4), node("b", 4))
    assert workers_now(FIVE, no_wait).count == 5
    assert workers_now(GROWING, no_wait).count == 7, "one of eight CPUs is the data tasks'"
    assert workers_now(FIVE, no_wait, suspects={"a"}).count == 3


def test_a_worker_lives_on_one_node(cluster):
    cluster(node("a", 3), node("b", 3), node("c", 1))
    assert workers_now(Workers(5, 2, False), no_wait).count == 2


def test_a_worker_on_a_gpu_needs_no_cpu(cluster):
    """Two CPUs for four GPUs used to leave all four waiting for ever."""
    gpus = Workers(1, 1, True, grows=True)
    cluster(node("head", 0), node("a", 2, GPU=4), node("b", 1, GPU=1), node("c", 1, GPU=0.5))
    assert workers_now(gpus, no_wait).count == 5
    assert counts(workers_to_add(gpus, {}, 100)) == {"a": 4, "b": 1}
    assert gpus.resources == {"GPU": 1}


def test_what_others_use_is_waited_for_and_said(cluster):
    """Sized by what there is in all, a stage beside another user's run never started."""
    busy, rest = {"a": {"CPU": 4}}, {"a": {"CPU": 2}}
    told: list[str] = []
    cluster(node("a", 4), used=[busy] * 6 + [rest])
    assert workers_now(GROWING, told.append).count == 1
    assert set(told) == {"2 CPUs: 0 of 4 are free"} | ({"2 CPUs: 2 of 4 are free"} & set(told))
    cluster(node("a", 4), used=[busy] * 6 + [rest] * 20 + [{}])
    assert workers_now(replace(GROWING, least=3), told.append).count == 3
    cluster(node("a", 4), used=[busy])
    assert workers_to_add(GROWING, {}, 100) == {}
    assert shortage(replace(GROWING, least=2), [node("a", 4)]) == "3 CPUs: 0 of 4 are free"
    assert workers_now(replace(GROWING, alone=True), no_wait).count == 3, "in a Ray of our own all is ours"


def test_a_folder_that_cannot_be_removed_hides_nothing(tmp_path, monkeypatch, caplog):
    """A controller that is late may write there yet, and network file systems refuse to empty what is open."""
    store = RunStore(str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise OSError("Directory not empty")

    def interrupted() -> None:
        with scratch(store):
            monkeypatch.setattr(store.fs, "rm", refuse)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "stays for now: Directory not empty" in caplog.text


def test_what_the_stage_before_held_is_given_a_moment(cluster):
    cluster(node("a", 4), used=[{"a": {"CPU": 3}}, {"a": {"CPU": 1}}, {}])
    assert workers_now(GROWING, lambda _: None).count == 3


def test_a_suspect_is_kept_off_no_longer_than_there_are_others(cluster, monkeypatch):
    """The others are full, and leave: nothing but the suspect is there."""
    a, b = node("a", 4), node("b", 4)
    cluster(a, b, used=[{"b": {"CPU": 4}}])
    shown = iter([[a, b]] * 6)
    monkeypatch.setattr(ray, "nodes", lambda: next(shown, [a]))
    told: list[str] = []
    assert workers_now(GROWING, told.append, suspects={"a"}).count == 3
    assert told


def test_a_node_that_is_drained_is_as_good_as_gone(cluster):
    cluster(node("a", 4), node("b", 4), draining=("b",))
    assert workers_now(GROWING, no_wait).count == 3
    assert counts(workers_to_add(GROWING, {}, 100)) == {"a": 3}


def test_dead_and_silent_nodes_hold_nobody_unless_all_are_silent(cluster, caplog):
    """Where the driver reaches none, as behind a firewall, the silence of all says nothing."""
    caplog.set_level(logging.WARNING)
    nodes = node("a"), node("b"), node("c", alive=False)
    cluster(*nodes, silent=("b",))
    assert workers_now(FIVE, no_wait).count == 3
    assert caplog.messages == ["node address of b does not answer: going on without it"]
    cluster(*nodes, silent=("a", "b"))
    assert workers_now(FIVE, no_wait).count == 5
    assert len(caplog.messages) == 1


def test_a_node_that_is_left_gets_workers_and_one_that_has_room_again_gets_more(cluster):
    cluster(node("a", 2), node("b", 4), node("c", 1))
    assert counts(workers_to_add(FIVE, {}, 100)) == {"b": 4, "a": 1}
    used = [{"b": {"CPU": 2}}]
    cluster(node("a", 2), node("b", 4), node("c", 1), used=used)
    assert counts(workers_to_add(FIVE, {"b": 2}, 100, starting=["b"])) == {"a": 2, "c": 1}
    assert counts(workers_to_add(FIVE, {"b": 2}, 100)) == {"a": 2, "b": 1}
    assert workers_to_add(FIVE, {"b": 2}, n_units=2) == {}
    cluster(node("a", 2), node("b", 4), node("c", 1), used=[{"b": {"CPU": 4}}])
    assert counts(workers_to_add(GROWING, {"b": 4}, 100)) == {"a": 2}


def test_suspects_are_avoided_as_long_as_there_are_others(cluster):
    cluster(node("a"), node("b"), node("c", alive=False))
    for workers in (FIVE, None):
        assert to_avoid({"a"}, workers) == {"a"}
        assert to_avoid({"a", "b"}, workers) == set()
        assert to_avoid((), workers) == set()


def test_a_head_that_offers_nothing_is_no_other_node(cluster):
    """Kept off all nodes with GPUs, a stage waited for ever for room on the head."""
    on_gpus = Workers(2, 1, True)
    cluster(node("head", GPU=0), node("a", GPU=1), node("b", GPU=1))
    assert to_avoid({"a"}, on_gpus) == {"a"}
    assert to_avoid({"a", "b"}, on_gpus) == set()
    cluster(node("head", cpus=0), node("a"))
    assert to_avoid({"a"}, FIVE) == to_avoid({"a"}, None) == set()


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
    check_shared(RunStore(str(tmp_path / "run")), {})
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
    assert "run 'file://~/run' is another one, or not there, on 1 of 2 nodes (" in line
    assert "Use a place that all nodes see: a shared file system or an object store" in line
    assert not [path for path in Path(tmp_path).rglob("*") if path.is_file()]
