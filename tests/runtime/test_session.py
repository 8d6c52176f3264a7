"""Workers fit the cluster, or it says so before Ray starts."""

import subprocess
import sys

import pytest

from datadream.config import ClusterConfig
from datadream.runtime import session as cluster
from datadream.runtime.collectives import LostPeerError
from datadream.runtime.session import Workers, check_workers, connected, lost_a_worker, workers_now


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("workers=5000, device='cpu'", "cluster.workers is 5000 with 1 CPU each, but this machine can hold "),
        ("device='cuda'", "cluster.device is 'cuda', but this machine has no GPU"),
    ],
)
def test_what_this_machine_can_never_hold(config, message):
    code = f"from datadream import cluster, config; cluster.check_workers(config.ClusterConfig({config}))"
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert message in ended.stderr.splitlines()[-1]


def test_joins_a_session_and_leaves_it_running(local_ray):
    import ray

    with connected(ClusterConfig(workers=2, device="cpu")) as workers:
        assert (workers.count, workers.threads, workers.use_gpu, workers.grows) == (2, 1, False, False)
    assert workers_now(Workers(5, 1, False)).count == 3, "nodes were lost, and one of four CPUs is the data tasks'"
    with connected(ClusterConfig(device="cpu")) as workers:
        assert (workers.count, workers.slots, workers.grows) == (3, 3, True)
    assert ray.is_initialized()
    with pytest.raises(ValueError, match="the cluster can hold 3"):
        check_workers(ClusterConfig(workers=4, device="cpu"))
    with pytest.raises(ValueError, match="the cluster can hold 3"), connected(ClusterConfig(workers=4, device="cpu")):
        pass


def test_nodes_that_do_not_answer_are_done_without_unless_none_does(local_ray, monkeypatch, caplog):
    import ray

    (here,) = ray.nodes()
    gone = here | {"NodeID": "gone", "NodeManagerAddress": "nowhere"}
    monkeypatch.setattr(ray, "nodes", lambda: [here, gone])
    monkeypatch.setattr(cluster, "_answers", lambda node: node is here)
    assert workers_now(Workers(5, 1, False)).count == 3
    assert "node nowhere does not answer" in caplog.text
    # As where the driver cannot reach any.
    monkeypatch.setattr(cluster, "_answers", lambda node: False)
    assert workers_now(Workers(5, 1, False)).count == 5


def test_at_most():
    assert Workers(8, 1, False).at_most(3).count == 3
    assert Workers(2, 1, False).at_most(0).count == 1


def test_what_ray_ended_is_told_from_what_failed():
    from ray.exceptions import ObjectLostError, RayTaskError
    from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
    from ray.train.v2.api.preemption import PreemptionInfo

    assert lost_a_worker(ControllerError(RuntimeError()))
    assert lost_a_worker(PreemptionError(PreemptionInfo(None, {})))
    assert lost_a_worker(WorkerGroupError("failed", {1: LostPeerError()}))
    decoded = ObjectLostError("0" * 56, None, "")
    assert lost_a_worker(WorkerGroupError("failed", {0: LostPeerError(), 1: decoded}))
    raised = RayTaskError("decode", "", ValueError("no such photo"))
    assert not lost_a_worker(WorkerGroupError("failed", {0: raised}))
    assert not lost_a_worker(WorkerGroupError("failed", {0: ValueError("no such photo")}))
    assert not lost_a_worker(WorkerGroupError("failed", {0: ValueError("no such photo"), 1: LostPeerError()}))
