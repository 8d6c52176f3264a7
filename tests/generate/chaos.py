"""Generate and publish on a cluster of nodes that come and go: python -m tests.generate.chaos PIPELINE RUN SEED STAGE.

The driver dies in the middle of a STAGE, generating or publishing.

A process of its own, for the tests' process has joined another Ray. It starts the drivers, which it also kills, and
prints one JSON line of what happened.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from datadream import recipes
from datadream.config import ExperimentConfig
from datadream.generate.stage import chunk_units, generate_chunks, publish_dataset
from datadream.run.cell import Cell
from datadream.run.layout import CHUNKS
from datadream.run.lock import RunLock
from datadream.run.store import RunStore
from datadream.runtime.session import connected
from datadream.runtime.workers import Workers
from tests.processes import ray_workers

FORMATS = ("parquet", "webdataset")
N_CLASSES, IMAGES_PER_CLASS, CHUNK_SIZE, STEPS = 10, 6, 2, 8  # N_CLASSES: the digits'
# What dies beside the driver, in this order, each at a number of committed chunks that the seed says. Workers are
# samplers and the tasks that encode.
KILLS = ("worker", "replaced node", "worker", "worker", "worker", "worker", "worker", "worker", "node")
SECONDS_BETWEEN_LOOKS = 0.05


def config(pipeline: str, dataset_format: str) -> ExperimentConfig:
    changes = {
        "diffusion.model": pipeline,
        "data.n_shots": 2,
        "generate.images_per_class": IMAGES_PER_CLASS,
        "generate.steps": STEPS,
        "generate.chunk_size": CHUNK_SIZE,
        "generate.images_per_shard": 7,
        "generate.dataset_format": dataset_format,
        "cluster.device": "cpu",
    }
    return recipes.digits(**changes)


def drive(pipeline: str, run: str) -> None:
    """A driver."""
    store, settings = RunStore(run), config(pipeline, FORMATS[0])
    with RunLock(store), connected(settings.cluster) as workers:
        generate_and_publish(store, pipeline, workers)


def generate_and_publish(store: RunStore, pipeline: str, workers: Workers) -> None:
    """Generate what is missing, and publish it in each format."""
    first = cell_of(store, pipeline, FORMATS[0])
    generate_chunks(store, chunk_units(first.chunks), first.config, workers)
    for dataset_format in FORMATS:
        cell = cell_of(store, pipeline, dataset_format)
        for chunk in first.chunks:
            for name in (chunk.file, chunk.marker):
                if not cell.store.exists(name):
                    cell.store.write_bytes(name, store.read_bytes(name))
        publish_dataset(cell)


def cell_of(store: RunStore, pipeline: str, dataset_format: str) -> Cell:
    """A run holds one dataset: the first format is published in the run itself, others in sub-folders."""
    own = store if dataset_format == FORMATS[0] else store.child(dataset_format)
    return Cell(config(pipeline, dataset_format), own)


class Chaos:
    """A cluster of two nodes, one driver at a time, and their deaths."""

    def __init__(self, pipeline: str, run: str, seed: int, stage: str) -> None:
        self._rng, self._store, self._stage = random.Random(seed), RunStore(run), stage
        self._command = [sys.executable, "-m", "tests.generate.chaos", "drive", pipeline, run]
        self._n_chunks = len(cell_of(self._store, pipeline, FORMATS[0]).chunks)
        # Nodes are added and removed on the main thread: they install signal handlers.
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self._nodes = [self._cluster.add_node(num_cpus=1) for _ in range(2)]
        self._kill = {
            "worker": self._kill_worker,
            "driver": self._kill_driver,
            "node": self._kill_node,
            "replaced node": self._replace_node,
        }
        self._killed: list[tuple[str, int, float]] = []
        self._start_driver()

    def run(self) -> dict[str, Any]:
        """What was killed, at how many chunks and seconds, and how it ended."""
        began = time.monotonic()
        for moment, what in self._moments():
            self._wait_for(moment)
            if self._driver.poll() is None:
                self._killed.append((what, self._n_committed(), round(time.monotonic() - began, 1)))
                self._kill[what]()
        code = self._driver.wait()
        self._cluster.shutdown()
        seconds = round(time.monotonic() - began, 1)
        return {"killed": self._killed, "exit_code": code, "seconds": seconds}

    def _moments(self) -> Iterator[tuple[Callable[[], Any], str]]:
        """When to kill what: at so many chunks, and perhaps once while shards are written."""
        kills = list(KILLS)
        if self._stage == "generating":
            kills.insert(len(kills) // 2, "driver")
        counts = sorted(self._rng.sample(range(1, self._n_chunks - 5), len(kills)))
        for count, what in zip(counts, kills, strict=True):
            yield lambda count=count: self._n_committed() >= count and ray_workers("Map"), what
        if self._stage == "publishing":
            yield lambda: self._store.exists("dataset/data"), "driver"

    def _n_committed(self) -> int:
        return len(self._store.markers(CHUNKS))

    def _wait_for(self, reached: Callable[[], Any]) -> None:
        while self._driver.poll() is None and not reached():
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _start_driver(self) -> None:
        environment = os.environ | {"RAY_ADDRESS": self._cluster.address}
        self._driver = subprocess.Popen(self._command, env=environment, stdout=subprocess.DEVNULL)

    def _kill_worker(self) -> None:
        with suppress(psutil.NoSuchProcess, IndexError):  # a task may end meanwhile
            self._rng.choice(ray_workers("Map")).kill()

    def _kill_driver(self) -> None:
        self._driver.kill()
        self._driver.wait()
        self._start_driver()

    def _kill_node(self) -> None:
        self._cluster.remove_node(self._nodes.pop(self._rng.randrange(len(self._nodes))), allow_graceful=False)

    def _replace_node(self) -> None:
        self._kill_node()
        self._nodes.append(self._cluster.add_node(num_cpus=1))


if __name__ == "__main__":
    if sys.argv[1] == "drive":
        drive(*sys.argv[2:])
    else:
        print(json.dumps(Chaos(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]).run()))
