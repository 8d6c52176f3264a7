"""Ray's worker processes, and their violent deaths."""

from __future__ import annotations

import time

import psutil

from datadream.run_store import RunStore


def train_workers() -> list[psutil.Process]:
    """Ray Train's, of our own descendants only: others may train on this machine."""
    processes = psutil.Process().children(recursive=True)
    return [process for process in processes if "RayTrainWorker" in " ".join(process.cmdline())]


def kill_a_worker_after(store: RunStore, name: str) -> float:
    """Kill one as soon as a file is there; returns the time."""
    while not store.exists(name):
        time.sleep(0.01)
    train_workers()[0].kill()
    return time.time()
