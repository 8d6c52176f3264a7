"""Join or start Ray, and decide how many workers of which size a stage gets."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from datadream.config import ClusterConfig
from datadream.runtime.workers import CPUS_FOR_DATA_TASKS, Workers

SECONDS_TO_ANSWER = 5.0


def check_workers(config: ClusterConfig) -> None:
    """Refuse what can never be held, before any work starts and without starting Ray; raises ValueError.

    A cluster that is not joined yet says what it holds when it is (see `connected`); here it only has to answer.
    """
    if _joined():
        _check_fits(config, *_cluster_size(), "the cluster")
    elif (address := _address(config)) is None:
        _check_fits(config, _local_cpus(), _local_gpus(config), "this machine")
    else:
        _check_answers(address, "cluster.address" if config.address else "$RAY_ADDRESS")


@contextmanager
def connected(config: ClusterConfig, meanwhile: Callable[[], None] = lambda: None) -> Iterator[Workers]:
    """Ray for the length of a block: the session that is there, a cluster's, or one of our own, then shut down.

    `meanwhile` is called while Ray starts, which for 3 s is waiting for other processes; what it raises is raised.
    Raises ValueError when the cluster can never hold the workers asked for.
    """
    import ray

    ours = not ray.is_initialized()
    try:
        with ThreadPoolExecutor(1) as thread:
            other = thread.submit(meanwhile)
            # On this thread and not on that one: Ray's processes die with the thread that started them.
            if ours:
                _start(config)
            other.result()
        yield _workers(config, own=ours and _address(config) is None)
    finally:
        if ours:
            ray.shutdown()


def _start(config: ClusterConfig) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's native code writes to the terminal what no user can act on: every pool of actors logs an error about its
    # constructor's arguments (ray-project/ray#53727).
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # A stage's own progress line says what matters; Ray's per-operator log lines would bury it.
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Ray takes SIGTERM for itself, to end the process with a native stack and without the caller's last words.
    on_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    address = _address(config)
    if address is None:
        # How long Ray Train may take to see that a worker ended: seconds matter where a stage takes a minute.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
        # "local": not whatever Ray somebody else runs on this machine.
        ray.init(address="local", num_cpus=_local_cpus(), **quiet)
    else:
        ray.init(address=address, **quiet)
    if on_main and before is not None:
        signal.signal(signal.SIGTERM, before)


def _check_answers(address: str, named_by: str) -> None:
    """Raises ValueError where nothing listens: Ray itself would try for minutes, and then not say who named it."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # such as auto
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise ValueError(
            f"{named_by} is {address!r}, but no Ray answers there ({reason}). Start one, or unset it to use this "
            "machine."
        ) from None


def _workers(config: ClusterConfig, own: bool) -> Workers:
    """The workers of a Ray of our own, which is this machine, or of a cluster."""
    cpus, gpus = _cluster_size()
    _check_fits(config, cpus, gpus, "the cluster")
    workers = Workers(config.workers or 1, config.threads_per_worker, _use_gpu(config, gpus))
    slots = max(1, _cores() // workers.threads if own and not workers.use_gpu else workers.slots_in(cpus, gpus))
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


def _check_nodes(config: ClusterConfig, workers: Workers) -> None:
    """A worker lives on one node, so that the cluster's sum of CPUs is not enough."""
    from datadream.runtime.nodes import living_nodes, rooms

    room = sum(rooms(workers, living_nodes()).values())
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
    # In a Ray that we start, num_cpus is a quota: twice the cores, so that decoding runs beside training workers and
    # the cores stay busy.
    return max(4, 2 * _cores())
