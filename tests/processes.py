"""Ray's worker processes, and their violent deaths."""

from __future__ import annotations

import time
from collections.abc import Iterable
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
