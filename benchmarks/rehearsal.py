"""ImageNet's shape, rehearsed: a thousand classes of 16 photos through all stages, as jobs on a cluster of four nodes
with an object store. A node is killed and another joins, and the job is stopped once and submitted again.

    python -m benchmarks.rehearsal --classes 1000

The photos are tiny patterns, and the embedded backbone takes few steps, so that what is measured is what the machinery
costs: seconds of the stages, the share of the workers' time that is lost, the driver's memory and requests to the
store. The nodes share this machine's cores. Prints tables; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import yaml
from PIL import Image
from ray._private.node import Node
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient

from benchmarks.compare import machine
from benchmarks.object_store import ObjectStore, object_store
from benchmarks.rehearsal_figures import as_tables, figures
from benchmarks.samples import Samples, mib
from datadream import recipes

ROOT = Path(__file__).parents[1]
NODES = 4
SHOTS, TESTED = 16, 1
"""Photos of a class, to train on and to test with."""
PIXELS = 32
NODE_DIES_AT, NODE_JOINS_AT, JOB_STOPS_AT = 0.3, 0.5, 0.5
"""Shares of the adapters, twice, and of the chunks of images."""
SECONDS_TO_START = 120.0
SECONDS_FOR_A_JOB = 3 * 3600.0
SECONDS_BETWEEN_LOOKS = 0.5
PHOTOS_AT_ONCE = 1000


def write_photos(url: str, n_classes: int) -> None:
    """Train and test folders of photos, each class with a pattern of its own under noise."""
    fs = fsspec.filesystem("s3")
    encoded: dict[str, bytes] = {}
    for label in range(n_classes):
        rng = np.random.default_rng(label)
        pattern = rng.integers(0, 256, (4, 4, 3)).repeat(PIXELS // 4, 0).repeat(PIXELS // 4, 1)
        for number in range(SHOTS + TESTED):
            part = "train" if number < SHOTS else "test"
            noise = rng.integers(-40, 40, (PIXELS, PIXELS, 3))
            file = io.BytesIO()
            Image.fromarray((pattern + noise).clip(0, 255).astype(np.uint8)).save(file, "png")
            encoded[f"{url}/{part}/thing {label:04d}/{number:02d}.png"] = file.getvalue()
        if len(encoded) >= PHOTOS_AT_ONCE or label == n_classes - 1:
            fs.pipe(encoded)
            encoded.clear()


def config(photos: str) -> dict[str, Any]:
    """Every stage as short as it can be."""
    changes = {
        "data.source": photos,
        "data.n_shots": SHOTS,
        "adapt.steps_per_class": 1,
        "generate.images_per_class": 2,
        "generate.steps": 2,
        "generate.images_per_shard": 500,
        "classify.settings": ["zero-shot", "real+synthetic"],
        "classify.steps": 40,
        "classify.eval_every": 40,
        "classify.folds": 0,
        "cluster.device": "cpu",
    }
    return recipes.digits(**changes).model_dump(mode="json")


@contextmanager
def cluster() -> Iterator[tuple[Cluster, JobSubmissionClient]]:
    """Nodes of one CPU each and a head with the job server, whose CPU is Ray Data's."""
    # Such a cluster asks for no token, and a driver that has one would refuse to answer it.
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.3"
    # Any free port for the head's agent, as other nodes have: on its usual one another Ray of this machine may listen,
    # and the job server then finds no agent.
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_agent_listen_port": None}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        for number in range(NODES):
            add_node(nodes, number)
        yield nodes, JobSubmissionClient(f"http://{nodes.webui_url}")
    finally:
        nodes.shutdown()


def add_node(nodes: Cluster, number: int) -> None:
    # Of nodes that share a folder on one machine, each would unpack what a job ships over what others work in.
    nodes.add_node(num_cpus=1, runtime_env_dir_name=f"runtime_resources_{number}")


def submit(jobs: JobSubmissionClient, entrypoint: str) -> str:
    """`ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml`; returns the job's id."""
    shipped = {"working_dir": str(ROOT)} | yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            return jobs.submit_job(entrypoint=entrypoint, runtime_env=shipped)
        except RuntimeError as error:  # the job server answers before it can start a job
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(SECONDS_BETWEEN_LOOKS)


def lose(nodes: Cluster, node: Node) -> None:
    """All of a node's processes at once, as when a machine loses its power."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in (raylet, *raylet.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # those that end with their raylet
            process.kill()
    nodes.remove_node(node, allow_graceful=False)


def driver_mib() -> int | None:
    """Memory of the job's driver; None while there is none."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            if process.cmdline()[1:2] == ["jobs/run.py"]:
                return round(mib(process.memory_info().rss))
    return None


class Rehearsal:
    """One run, its jobs, and what happens to them."""

    def __init__(self, nodes: Cluster, jobs: JobSubmissionClient, store: ObjectStore, config: Path, n: int) -> None:
        self._nodes, self._jobs, self._store, self._n = nodes, jobs, store, n
        self._entrypoint = f"{sys.executable} jobs/run.py --config {config} --run {store.url}/run"
        self.happened: list[tuple[float, str]] = []
        self._job = ""

    def run(self) -> None:
        self._submit()
        self._wait_until(lambda: self._share("run/adapters/*/adapter.json") >= NODE_DIES_AT)
        self._happens("a node was killed")
        lose(self._nodes, next(iter(self._nodes.worker_nodes)))
        self._wait_until(lambda: self._share("run/adapters/*/adapter.json") >= NODE_JOINS_AT)
        add_node(self._nodes, NODES)
        self._happens("a node joined")
        self._wait_until(lambda: self._share("run/chunks/*.json") >= JOB_STOPS_AT)
        self._happens("the job was stopped")
        self._jobs.stop_job(self._job)
        self._wait_until(lambda: self._jobs.get_job_status(self._job).is_terminal())
        self._submit()
        self._wait_until(lambda: self._jobs.get_job_status(self._job).is_terminal())
        self._happens("the job was done")
        if self._jobs.get_job_status(self._job) != JobStatus.SUCCEEDED:
            raise RuntimeError(self._jobs.get_job_logs(self._job))

    def _submit(self) -> None:
        self._job = submit(self._jobs, self._entrypoint)
        self._happens("a job was submitted")

    def _share(self, pattern: str) -> float:
        return len(self._store.written(pattern)) / self._n

    def _happens(self, what: str) -> None:
        self.happened.append((time.time(), what))
        print(time.strftime("%H:%M:%S"), what, flush=True)

    def _wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS_FOR_A_JOB
        while not reached():
            status = self._jobs.get_job_status(self._job)
            if time.monotonic() > deadline or (status.is_terminal() and not reached()):
                raise RuntimeError(f"the job is {status}:\n{self._jobs.get_job_logs(self._job)}")
            time.sleep(SECONDS_BETWEEN_LOOKS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    n = parser.parse_args().classes
    with tempfile.TemporaryDirectory() as folder, object_store() as store:
        write_photos(f"{store.url}/photos", n)
        (Path(folder) / "config.yaml").write_text(json.dumps(config(f"{store.url}/photos")))  # JSON is YAML
        store.requests.clear()
        with cluster() as (nodes, jobs), Samples(driver_mib) as memory:
            rehearsal = Rehearsal(nodes, jobs, store, Path(folder) / "config.yaml", n)
            rehearsal.run()
        measured = figures(store, NODES)
    held = [sample for sample in memory.taken if sample is not None]
    measured["driver_mib"] = {"half_way": held[len(held) // 2], "most": max(held)}
    began = rehearsal.happened[0][0]
    measured |= {"classes": n}
    measured["happened"] = [[round(moment - began, 1), what] for moment, what in rehearsal.happened]
    print(as_tables(measured))
    print(json.dumps({"benchmark": "rehearsal", "date": time.strftime("%Y-%m-%d"), "machine": machine()} | measured))


if __name__ == "__main__":
    main()
