"""Processes that tests start, wait for and end: Ray's workers, daemons, and the ports that these listen at."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

from datadream.run.store import RunStore

RAYS_AGENTS = ("ray::RuntimeEnvAgent", "ray::DashboardAgent")
"""They write no run, and notice only after a minute that their raylet was killed."""


def ray_workers(kind: str) -> list[psutil.Process]:
    """Those that work on what `kind` names, of our own descendants only: others may use Ray on this machine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if f"ray::{kind}" in " ".join(process.cmdline()):
                found.append(process)
    return found


def train_workers() -> list[psutil.Process]:
    """Ray Train's."""
    return ray_workers("RayTrainWorker")


def kill_a_worker_after(store: RunStore, *names: str) -> float:
    """Kill one as soon as all files are there; returns the time.

    Finding the workers takes a while, in which much can happen: they are looked for once the first file is there.
    """
    workers = []
    for name in names:
        while not store.exists(name):
            time.sleep(0.005)
        workers = workers or train_workers()
    workers[0].kill()
    return time.time()


def wait_until_gone(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Wait for processes whose driver was killed, which may write until they are gone."""
    processes = list(processes)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if any(agent in " ".join(process.cmdline()) for agent in RAYS_AGENTS):
                process.kill()
    alive = psutil.wait_procs(processes, timeout=seconds)[1]
    assert not alive, [process.name() for process in alive]


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def ended(process: subprocess.Popen) -> None:
    """End a process, by force where it does not by itself."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(happened: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)
