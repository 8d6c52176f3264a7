"""Workers fit the cluster, or it says so before Ray starts."""

import os
import re
import secrets
import socket
import subprocess
import sys

import pytest
import ray

from datadream.config import ClusterConfig
from datadream.run.store import RunStore
from datadream.runtime import autoscaling
from datadream.runtime.failures import LostPeerError
from datadream.runtime.ray_errors import lost_a_worker
from datadream.runtime.session import check_lasting, check_workers, connected
from datadream.runtime.workers import Workers
from tests.ray_nodes import ray_nodes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("workers=5000, device='cpu'", "cluster.workers is 5000 with 1 CPU each, but this machine can hold "),
        ("device='cuda'", "cluster.device is 'cuda', but this machine has no GPU"),
    ],
)
def test_what_this_machine_can_never_hold_is_refused_without_starting_ray(config, message):
    """In another process, because this one may have joined a Ray."""
    code = (
        "import sys\n"
        "from datadream.config import ClusterConfig\n"
        "from datadream.runtime.session import check_workers\n"
        "try:\n"
        f"    check_workers(ClusterConfig({config}))\n"
        "except ValueError as error:\n"
        "    print(error, 'ray' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.startswith(message)
    assert said.endswith("False\n")


@pytest.mark.parametrize("named_by", ["cluster.address", "$RAY_ADDRESS"])
def test_an_address_where_no_ray_answers_is_refused_at_once(named_by, monkeypatch):
    """A stale RAY_ADDRESS in a shell's profile would make Ray try for minutes."""
    monkeypatch.setattr("datadream.runtime.session._joined", lambda: False)
    with socket.socket() as taken:  # bound, and not listening: it refuses, and nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        config = ClusterConfig(address=address) if named_by == "cluster.address" else ClusterConfig()
        with pytest.raises(ValueError, match=rf"^{re.escape(named_by)} is '{address}', but no Ray answers there"):
            check_workers(config)


JOIN = """
import os
import ray
from datadream.config import ClusterConfig
from datadream.runtime.session import connected

class Actor:
    def answer(self):
        return "answered with " + os.environ["AWS_ACCESS_KEY_ID"]

with connected(ClusterConfig(device="cpu"), locations=["s3://bucket/run"]):
    print(ray.get(ray.remote(Actor).options(num_cpus=0).remote().answer.remote(), timeout=60))
"""


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_who_has_a_token_joins_clusters_that_ask_for_it_and_others(mode, tmp_path, monkeypatch):
    (tmp_path / "token").write_text(secrets.token_hex(16))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with ray_nodes(2) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.delenv("RAY_AUTH_MODE")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the driver's key")
        said = subprocess.run([sys.executable, "-c", JOIN], capture_output=True, text=True, timeout=120)
    assert said.stdout.splitlines()[-1:] == ["answered with the driver's key"], said.stderr


def test_a_session_is_joined_and_left_running(local_ray):
    with connected(ClusterConfig(workers=2, device="cpu")) as workers:
        # Three would fit: one of four CPUs is the data tasks'.
        assert workers == Workers(2, 1, False, slots=3)
    with connected(ClusterConfig(device="cpu")) as workers:
        assert workers == Workers(3, 1, False, slots=3, grows=True)
    with connected(ClusterConfig(device="cpu", threads_per_worker=2)) as workers:
        assert workers == Workers(1, 2, False, slots=1, grows=True)
    assert ray.is_initialized()


def test_what_the_cluster_cannot_hold_is_refused(local_ray):
    config = ClusterConfig(workers=4, device="cpu")
    with pytest.raises(ValueError, match="cluster.workers is 4 with 1 CPU each, but the cluster can hold 3"):
        check_workers(config)
    with pytest.raises(ValueError, match="the cluster can hold 3"), connected(config):
        pass
    with pytest.raises(ValueError, match="cluster.workers is 1 with 4 CPU each, but the cluster can hold 0"):
        check_workers(ClusterConfig(threads_per_worker=4, device="cpu"))


def test_a_cluster_that_does_not_say_what_may_come_starts_with_the_least(local_ray):
    """As KubeRay's: three fit those nodes that are there, and the fourth may be on its way."""
    with connected(ClusterConfig(workers=4, device="cpu", wait_minutes=1)) as workers:
        assert (workers.count, workers.slots, workers.least) == (4, 3, 1)
    few = connected(ClusterConfig(workers=5, min_workers=4, device="cpu", wait_minutes=0.01))
    with pytest.raises(ValueError, match="cluster.workers is 5 with 1 CPU each, but the cluster can hold 3"), few:
        pass


def test_an_address_of_ray_client_is_refused(monkeypatch):
    monkeypatch.setattr("datadream.runtime.session._joined", lambda: False)
    with pytest.raises(
        ValueError, match=r"^cluster.address is 'ray://head:10001', an address of Ray Client.*job subm"
    ):
        check_workers(ClusterConfig(address="ray://head:10001"))


def test_gpus_that_may_come_are_waited_for_and_not_replaced_by_cpus(local_ray, monkeypatch):
    """Stable Diffusion used to run on the CPUs of a head whose GPU nodes were still to be started."""
    monkeypatch.setattr(autoscaling, "possible_nodes", lambda: [{"CPU": 8, "GPU": 2}] * 3)
    check_workers(ClusterConfig(workers=6))
    with pytest.raises(ValueError, match="cluster.workers is 7 with a GPU each, but the cluster can hold 6"):
        check_workers(ClusterConfig(workers=7))
    impatient = connected(ClusterConfig(device="auto", wait_minutes=0))
    with pytest.raises(ValueError, match="cluster.device is 'cuda', but the cluster has no GPU"), impatient:
        pass


def test_fewer_workers_than_are_waited_for_are_refused():
    for knob in ("workers", "max_workers"):
        with pytest.raises(ValueError, match=f"min_workers is 3, but {knob} is 2"):
            ClusterConfig(min_workers=3, **{knob: 2})


def test_workers_are_no_more_than_units():
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


def test_a_run_in_a_jobs_copy_of_the_working_directory_is_refused():
    """Ray removes it with the job."""
    shipped = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0123456789abcdef/runs/mine"
    with pytest.raises(ValueError, match=f"'{shipped}' lies in the job's copy of the working directory"):
        check_lasting(RunStore(shipped))
    check_lasting(RunStore("/mnt/shared/runs/mine"))
