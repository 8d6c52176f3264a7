"""Ray's worker processes, and their violent deaths."""

from __future__ import annotations

import time

import psutil

from datadream.run_store import RunStore


def train_workers() -> list[psutil.Process]:
    """Ray Train's, of our own descendants only: others may train on this machine."""
    processes = psutil.Process().children(recursive=True)
    return [process for process in processes if "RayTrainWorker" in " ".join(process.cmdline())]


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
