"""Join or start Ray, and decide how many workers of which size a stage gets."""

from __future__ import annotations

import logging
import os
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow.fs

from datadream.config import ClusterConfig
from datadream.run.layout import SCRATCH
from datadream.run.store import RunStore

if TYPE_CHECKING:
    import torch
    from ray.train import FailureConfig

log = logging.getLogger(__name__)

# Train workers hold their CPUs for a whole stage; Ray Data's tasks beside them need at least one more, or both wait
# forever.
CPUS_FOR_DATA_TASKS = 1

SECONDS_TO_ANSWER = 5.0
"""A node that takes no connection for so long is done without."""

NODE_LABEL = "ray.io/node-id"


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of a stage."""

    count: int
    threads: int
    use_gpu: bool
    slots: int = 1
    """Workers that the cluster could hold, had nobody asked for fewer."""
    grows: bool = False
    """Whether nodes that join later are used: on a cluster, where nobody asked for a number of workers."""
    shares_cores: bool = False
    """Whether another stage's workers would run on the same cores: Ray's CPUs are only tickets on a Ray of our own."""

    def at_most(self, n_tasks: int) -> Workers:
        """No more workers than there are tasks for."""
        return replace(self, count=max(1, min(self.count, n_tasks)))

    @property
    def resources(self) -> dict[str, float]:
        """Ray resources of one worker."""
        return {"CPU": 1, "GPU": 1} if self.use_gpu else {"CPU": self.threads}


def check_workers(config: ClusterConfig) -> None:
    """Refuse what can never be held, before any work starts and without starting Ray; raises ValueError.

    A cluster that is not joined yet answers when it is (see `connected`).
    """
    if _joined():
        _check_fits(config, *_cluster_size(), "the cluster")
    elif _address(config) is None:
        _check_fits(config, _local_cpus(), _local_gpus(config), "this machine")


@contextmanager
def connected(config: ClusterConfig) -> Iterator[Workers]:
    """Ray for the length of a block: the session that is there, a cluster's, or one of our own, then shut down.

    Raises ValueError when the cluster can never hold the workers asked for.
    """
    import ray

    ours = not ray.is_initialized()
    if ours:
        _start(config)
    try:
        yield _workers(config, own=ours and _address(config) is None)
    finally:
        if ours:
            ray.shutdown()


def workers_to_add(workers: Workers, there: Mapping[str, int], n_tasks: int) -> dict[str, Workers]:
    """Workers to add, by node id, to those that are `there`, for a stage that has `n_tasks` tasks left.

    As many as were asked for; where nobody asked, as many as the cluster can hold, which grows when nodes join. A node
    gets workers when it has none, as many as fit it.
    """
    rooms = _node_rooms(workers)
    wanted = min(_wanted(workers), n_tasks) - sum(there.values())
    added: dict[str, Workers] = {}
    for node, room in rooms.items():
        count = min(room, wanted) if node not in there else 0
        if count > 0:
            added[node] = replace(workers, count=count)
            wanted -= count
    return added


def workers_now(workers: Workers) -> Workers:
    """As many of these workers as were asked for, or as the nodes that answer can hold.

    Ray takes a while to see that a machine is lost, and would wait for it. That no node answers says nothing of any.
    """
    import ray

    living = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(_answers, living))
    nodes = [node for node, answered in zip(living, answers, strict=True) if answered] or living
    for node in living:
        if node not in nodes:
            log.warning("node %s does not answer: going on without it", node["NodeManagerAddress"])
    cpus, gpus = (int(sum(node["Resources"].get(name, 0) for node in nodes)) for name in ("CPU", "GPU"))
    room = min(_slots(workers, cpus, gpus), sum(_rooms(workers, nodes).values()))
    return replace(workers, count=max(1, room if workers.grows else min(workers.count, room)))


def beside_driver() -> dict[str, Any]:
    """Options of a small actor that must outlive any other node: it lives on the driver's, and takes no CPU."""
    import ray

    return {"num_cpus": 0, "label_selector": {NODE_LABEL: ray.get_runtime_context().get_node_id()}}


@contextmanager
def train_storage(store: RunStore) -> Iterator[dict[str, Any]]:
    """Storage arguments of a Ray Train run: a folder that every node reaches, gone afterwards.

    Ray Train insists on shared storage even where, as here, our own markers are the only record of what is done.
    """
    folder = SCRATCH + uuid.uuid4().hex[:8]
    path = store.path(folder)
    filesystem = None if store.is_local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store.fs))
    try:
        yield {"storage_path": path, "storage_filesystem": filesystem}
    finally:
        if store.exists(folder):
            store.fs.rm(path, recursive=True)


def failure_text(error: Exception) -> str:
    """What the workers that failed said, not Ray's account of it."""
    failures = getattr(error, "worker_failures", {})
    said = [f"{type(failures[rank]).__name__}: {failures[rank]}" for rank in sorted(failures)]
    return " / ".join(dict.fromkeys(said)) or str(error)


def shared_worker_device(use_gpu: bool) -> torch.device:
    """The device of a Ray Train worker that has a process group with the others.

    For their sake Ray shows it all GPUs of its node, and says which one is its own.
    """
    import torch

    if not (use_gpu and torch.cuda.is_available()):
        return torch.device("cpu")
    import ray.train.torch

    device = ray.train.torch.get_device()
    torch.cuda.set_device(device)
    return device


def collective_backend(workers: Workers) -> str:
    """torch.distributed's backend for them. The driver's own devices say nothing of the workers'."""
    return "nccl" if workers.use_gpu else "gloo"


def lost_a_worker(error: Exception) -> bool:
    """Whether a Ray Train run ended because a process or a node died, and not by an error of its code.

    That a node is gone may be heard first from a worker elsewhere that exchanged tensors with it.
    """
    from ray.exceptions import RayError, RayTaskError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
    from ray.train.v2.api.exceptions import ControllerError, PreemptionError

    from datadream.runtime.collectives import LostPeerError

    lost = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError, RayError)
    workers = getattr(error, "worker_failures", {}).values()
    ended_by_ray = isinstance(error, (ControllerError, PreemptionError, RayError))
    only_heard = bool(workers) and all(isinstance(failure, LostPeerError) for failure in workers)
    # A RayTaskError is what our own code raised.
    is_lost = [isinstance(failure, lost) and not isinstance(failure, RayTaskError) for failure in workers]
    return ended_by_ray or only_heard or any(is_lost)


def failures_are_ours() -> FailureConfig:
    """Ray Train would wait for a lost machine's return, while a worker group starts too: who starts it decides."""
    from ray.train import FailureConfig

    return FailureConfig(controller_failure_limit=0, max_preemption_failures=0)


def _start(config: ClusterConfig) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A stage's own progress line says what matters; Ray's per-operator log lines would bury it.
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = _address(config)
    if address is None:
        # How long Ray Train may take to see that a worker ended: seconds matter where a stage takes a minute.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
        # "local": not whatever Ray somebody else runs on this machine.
        ray.init(address="local", num_cpus=_local_cpus(), **quiet)
    else:
        ray.init(address=address, **quiet)


def _workers(config: ClusterConfig, own: bool) -> Workers:
    """The workers of a Ray of our own, which is this machine, or of a cluster."""
    cpus, gpus = _cluster_size()
    _check_fits(config, cpus, gpus, "the cluster")
    workers = Workers(config.workers or 1, config.threads_per_worker, _use_gpu(config, gpus))
    slots = max(1, _cores() // workers.threads) if own and not workers.use_gpu else _cluster_slots(workers)
    asked = config.workers is not None
    workers = replace(
        workers,
        count=config.workers or slots,
        slots=slots,
        grows=not (own or asked),
        shares_cores=own and not workers.use_gpu,
    )
    _check_nodes(config, workers)
    return workers


def _cluster_slots(workers: Workers) -> int:
    """Workers that the cluster can hold now, one at least."""
    return max(1, _slots(workers, *_cluster_size()))


def _slots(workers: Workers, cpus: int, gpus: int) -> int:
    return gpus if workers.use_gpu else (cpus - CPUS_FOR_DATA_TASKS) // workers.threads


def _wanted(workers: Workers) -> int:
    return _cluster_slots(workers) if workers.grows else workers.count


def _check_nodes(config: ClusterConfig, workers: Workers) -> None:
    """A worker lives on one node, so that the cluster's sum of CPUs is not enough."""
    room = sum(_node_rooms(workers).values())
    if room < (config.workers or 1):
        raise ValueError(
            f"cluster.threads_per_worker is {workers.threads}, but the nodes can hold {room} workers of that size. "
            "Lower it, or cluster.workers."
        )


def _check_fits(config: ClusterConfig, cpus: int, gpus: int, where: str) -> None:
    if config.device == "cuda" and gpus == 0:
        raise ValueError(
            f"cluster.device is 'cuda', but {where} has no GPU. Use cluster.device=cpu, or join a cluster that has."
        )
    wanted = config.workers or 1
    if _use_gpu(config, gpus):
        room, size = gpus, "a GPU each"
    else:
        room, size = (cpus - CPUS_FOR_DATA_TASKS) // config.threads_per_worker, f"{config.threads_per_worker} CPU each"
    if wanted > room:
        raise ValueError(
            f"cluster.workers is {wanted} with {size}, but {where} can hold {room}. Lower it, "
            "or unset it to use what there is."
        )


def _use_gpu(config: ClusterConfig, gpus: int) -> bool:
    return config.device == "cuda" or (config.device == "auto" and gpus > 0)


def _cluster_size() -> tuple[int, int]:
    """CPUs and GPUs of the Ray that is joined."""
    import ray

    total = ray.cluster_resources()
    return int(total.get("CPU", 0)), int(total.get("GPU", 0))


def living_nodes() -> set[str]:
    """Ids of the nodes that are there now."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _node_rooms(workers: Workers) -> dict[str, int]:
    """How many workers of this size each living node can hold, the roomiest first."""
    import ray

    return _rooms(workers, [node for node in ray.nodes() if node["Alive"]])


def _rooms(workers: Workers, nodes: list[dict[str, Any]]) -> dict[str, int]:
    resource, size = ("GPU", 1) if workers.use_gpu else ("CPU", workers.threads)
    rooms = {node["NodeID"]: int(node["Resources"].get(resource, 0)) // size for node in nodes}
    return dict(sorted(rooms.items(), key=lambda item: (-item[1], item[0])))


def _answers(node: dict[str, Any]) -> bool:
    """Whether a node's raylet takes connections."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True


def _address(config: ClusterConfig) -> str | None:
    return config.address or os.environ.get("RAY_ADDRESS")


def _joined() -> bool:
    # Importing Ray takes a second; where nobody did, nobody joined.
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _local_gpus(config: ClusterConfig) -> int:
    if config.device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def _local_cpus() -> int:
    # Twice the cores: Ray's CPUs are tickets, and decoding beside a training worker is how the cores stay busy.
    return max(4, 2 * _cores())
