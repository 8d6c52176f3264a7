"""Workers fit the cluster, or it says so before Ray starts."""

import pytest

from datadream.cluster import Workers, check_local, connected
from datadream.config import ClusterConfig


def test_more_workers_than_this_machine_can_hold():
    with pytest.raises(ValueError, match=r"cluster.workers is 5000 with 1 CPU each, but .* can hold \d+"):
        check_local(ClusterConfig(workers=5000, device="cpu"))


def test_cuda_without_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match="has no GPU"):
        check_local(ClusterConfig(device="cuda"))


def test_joins_a_session_and_leaves_it_running(local_ray):
    import ray

    with connected(ClusterConfig(workers=2, device="cpu")) as workers:
        assert workers == Workers(count=2, threads=1, use_gpu=False)
    assert ray.is_initialized()
    with pytest.raises(ValueError, match="the cluster can hold 3"), connected(ClusterConfig(workers=4, device="cpu")):
        pass


def test_at_most():
    assert Workers(8, 1, False).at_most(3).count == 3
    assert Workers(2, 1, False).at_most(0).count == 1
