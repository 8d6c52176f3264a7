"""Join or start Ray, and decide how many workers of which size a stage gets."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from datadream.config import ClusterConfig
from datadream.run.store import RunStore
from datadream.runtime.credentials import credentials
from datadream.runtime.workers import Workers

SECONDS_TO_ANSWER = 5.0
ATTEMPTS_TO_JOIN = 4
"""Of a second each where the cluster answers and refuses, as without its token; Ray's own 20 take minutes."""
MINUTES_TO_WAIT = 15.0
"""A cloud's GPU machine with a large image takes about ten minutes to join."""
JOB_FOLDERS = "/working_dir_files/_ray_pkg_"
"""In the path of every folder into which Ray unpacks what a job ships."""


def check_lasting(store: RunStore) -> None:
    """Raises ValueError where a run would lie in a job's copy of the working directory, which Ray removes after it."""
    if store.is_local and JOB_FOLDERS in store.root:
        raise ValueError(
            f"run {store.url!r} lies in the job's copy of the working directory, which does not outlive the job. "
            "Give --run a URL or an absolute path that every node reaches."
        )


def check_workers(config: ClusterConfig) -> None:
    """Refuse what can never be held, before any work starts and without starting Ray; raises ValueError.

    A cluster that is not joined yet says what it holds when it is (see `connected`); here it only has to answer.
    """
    if _joined():
        _cluster_room(config)
    elif (address := _address(config)) is None:
        gpus = _local_gpus(config)
        workers = Workers(1, config.threads_per_worker, _use_gpu(config, gpus))
        _check_room(config, workers, workers.room_in([{"CPU": _local_cpus(), "GPU": gpus}]), "this machine")
    else:
        _check_answers(address, "cluster.address" if config.address else "$RAY_ADDRESS")


def room(config: ClusterConfig) -> tuple[Workers, str]:
    """The workers that a run may come to have, and what a GPU of theirs is called; asks for no nodes.

    Raises ValueError when the cluster cannot be joined, or can never hold the workers asked for.
    """
    address = _address(config)
    if not _joined() and address is None:
        workers = _own_workers(config, _local_gpus(config))
        if not workers.use_gpu:
            return workers, ""
        import torch

        return workers, torch.cuda.get_device_name()
    import ray

    from datadream.runtime.nodes import hardware

    with ExitStack() as stack:
        if not _joined() and address is not None:
            _check_answers(address, "cluster.address" if config.address else "$RAY_ADDRESS")
            stack.callback(ray.shutdown)  # before the start, which may fail half-way
            _start(config)
        workers, most, _ = _cluster_room(config)
        return replace(workers, count=config.workers or max(1, most)), hardware(workers)["each"]


@contextmanager
def connected(
    config: ClusterConfig,
    meanwhile: Callable[[], None] = lambda: None,
    n_units: int | None = None,
    locations: Iterable[str] = (),
) -> Iterator[Workers]:
    """Ray for the length of a block: the session that is there, a cluster's, or one of our own, then shut down.

    `meanwhile` is called while Ray starts, which for 3 s is waiting for other processes; what it raises is raised. An
    autoscaling cluster is asked for `n_units` workers, or as many as the config says if these are fewer. Workers of a
    cluster that is joined get the driver's credentials for `locations` (see `credentials`).
    Raises ValueError when the cluster cannot be joined, or can never hold the workers asked for.
    """
    import ray

    ours = not ray.is_initialized()
    with ExitStack() as stack:
        if ours:
            stack.callback(ray.shutdown)  # before the start, which may fail half-way
        with ThreadPoolExecutor(1) as thread:
            other = thread.submit(meanwhile)
            # On this thread and not on that one: Ray's processes die with the thread that started them.
            if ours:
                _start(config, locations)
            other.result()
        if ours and _address(config) is None:
            yield _own_workers(config, int(ray.cluster_resources().get("GPU", 0)))
            return
        from datadream.runtime.autoscaling import asked_for, await_nodes

        workers, most, minutes = _cluster_room(config)
        # Asked for until the block ends: an autoscaler takes away what nobody uses or asks for.
        if minutes or config.max_workers:
            # Mostly nobody says what may come: what there is work for is asked for, and comes as far as it may.
            wanted = config.workers or config.max_workers or n_units or most
            wanted = wanted if n_units is None else min(wanted, n_units)
            stack.enter_context(asked_for(workers, max(wanted, config.min_workers)))
        slots = workers.room_in(await_nodes(workers, minutes))
        # Where too few came in time, what is there decides; else `workers` may count on nodes that are yet to come.
        _check_room(config, workers, slots if slots < config.min_workers else max(slots, most), "the cluster")
        yield replace(workers, count=config.workers or slots, slots=slots, grows=config.workers is None)


def _start(config: ClusterConfig, locations: Iterable[str] = ()) -> None:
    import ray

    from datadream.runtime.train_controller import SECONDS_TO_FIND_ROOM

    # Ray Train's own 60 s are longer than an abort waits: a controller would be killed in them, and leave its
    # placement group behind (see `abort`).
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(SECONDS_TO_FIND_ROOM))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's native code writes to the terminal what no user can act on: every pool of actors logs an error about its
    # constructor's arguments (ray-project/ray#53727).
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # What Ray still says of its nodes comes in colours, also where no terminal is.
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
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
        # Nobody knows of a dashboard that lives as long as a command; with ray[default] it would take ten processes.
        ray.init(address="local", num_cpus=_local_cpus(), include_dashboard=False, **quiet)
    else:
        found = credentials(locations)
        _join(address, quiet | ({"runtime_env": {"env_vars": found}} if found else {}))
    if on_main and before is not None:
        signal.signal(signal.SIGTERM, before)


def _check_answers(address: str, named_by: str) -> None:
    """Raises ValueError where nothing listens: Ray itself would try for minutes, and then not say who named it."""
    if address.startswith("ray://"):
        raise ValueError(
            f"{named_by} is {address!r}, an address of Ray Client, which cannot tell what the nodes hold. Start the "
            "command on the cluster with `ray job submit`, or use the head's own address, such as head:6379."
        )
    host, _, port = address.rpartition(":")
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


def _join(address: str, options: dict[str, Any]) -> None:
    """Raises ValueError in one line where Ray refuses, which no second try would change."""
    import ray
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray.exceptions import RayError

    # Ray 2.60 looks for the file of a token, which it writes at its first start on a machine, only where the address
    # is "auto", and else asks for minutes without it. A driver that has one refuses to answer a cluster that has none.
    if _asks_for_token(address):
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(ATTEMPTS_TO_JOIN))
    try:
        ray.init(address=address, **options)
    except (RuntimeError, ConnectionError, ValueError, RayError) as error:
        said = " ".join(str(error).split())
        if "version mismatch" in said.lower():
            raise ValueError(f"the Ray at {address!r} is another: {said}") from error
        raise ValueError(
            f"the Ray at {address!r} cannot be joined: {said} Where it asks for a token, name the token's file by "
            "$RAY_AUTH_TOKEN_PATH and set RAY_AUTH_MODE=token."
        ) from error


def _asks_for_token(address: str) -> bool:
    """Whether a cluster refuses who shows no token; taken for granted of addresses that are no host and port."""
    from ray._raylet import GcsClient
    from ray.exceptions import AuthenticationError

    if not address.rpartition(":")[2].isdecimal() or "://" in address:
        return True
    try:
        GcsClient(address=address)
    except AuthenticationError:
        return True
    except Exception:  # what is wrong is for the joining to say
        return False
    return False


def _own_workers(config: ClusterConfig, gpus: int) -> Workers:
    """The workers of a Ray of our own, which is this machine."""
    workers = Workers(1, config.threads_per_worker, _use_gpu(config, gpus), alone=True)
    slots = max(1, gpus if workers.use_gpu else _cores() // workers.threads)
    return replace(workers, count=config.workers or slots, slots=slots)


def _cluster_room(config: ClusterConfig) -> tuple[Workers, int, float]:
    """A worker of the cluster that is joined, how many of these it may come to hold, and the minutes to wait for them.

    Raises ValueError when that is too few, unless nobody knows what may come.
    """
    from datadream.runtime.autoscaling import possible_nodes
    from datadream.runtime.nodes import living_nodes

    there, possible = [node["Resources"] for node in living_nodes()], possible_nodes()
    # With those that may come: a head without GPUs must not make the stage settle on its CPUs.
    gpus = int(sum(node.get("GPU", 0) for node in [*there, *possible]))
    workers = Workers(1, config.threads_per_worker, _use_gpu(config, gpus), least=config.min_workers)
    minutes = config.wait_minutes
    if minutes is None:
        minutes = MINUTES_TO_WAIT if possible else 0.0
    most = max(workers.room_in(there), workers.room_in(possible))
    if minutes == 0 or possible:
        _check_room(config, workers, most, "the cluster")
    else:  # nobody says how many may come: those that are asked for
        most = max(most, config.workers or 0)
    return workers, most, minutes


def _check_room(config: ClusterConfig, workers: Workers, room: int, where: str) -> None:
    """Raises ValueError where there is no room for one worker, or for those that somebody asked for."""
    if workers.use_gpu and room == 0:
        raise ValueError(
            f"cluster.device is 'cuda', but {where} has no GPU. Use cluster.device=cpu, or join a cluster that has."
        )
    size = "a GPU each" if workers.use_gpu else f"{workers.threads} CPU each"
    for knob, wanted in (("workers", config.workers or 1), ("min_workers", config.min_workers)):
        if wanted > room:
            raise ValueError(
                f"cluster.{knob} is {wanted} with {size}, but {where} can hold {room}. Lower it, use smaller "
                "cluster.threads_per_worker, or wait for more nodes with cluster.wait_minutes."
            )


def _use_gpu(config: ClusterConfig, gpus: int) -> bool:
    return config.device == "cuda" or (config.device == "auto" and gpus > 0)


def _address(config: ClusterConfig) -> str | None:
    return config.address or os.environ.get("RAY_ADDRESS")


def _joined() -> bool:
    # Importing Ray takes a second; where nobody did, nobody joined.
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _cores() -> int:
    # Those that this process may use: containers and schedulers give fewer than the machine has.
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
