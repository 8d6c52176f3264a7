"""A thousand adapters on a simulated cluster of four nodes: how much of the workers' time is lost, and to what.

    python -m benchmarks.scale --adapters 1000 --steps 4

The last line is one JSON object. Workers share this machine's cores, so the wall time is not that of four machines;
what scheduling costs is the same.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from benchmarks.compare import machine
from benchmarks.samples import Samples, mib
from datadream import recipes
from datadream.adapt.stage import AdapterUnit, adapter_units, train_adapters
from datadream.config import ExperimentConfig
from datadream.data.datasets import open_source
from datadream.methods.base import AdapterSpec, TrainingPhoto
from datadream.run.layout import ADAPTER_GROUP, ADAPTER_WORKERS
from datadream.run.store import RunStore
from datadream.runtime.session import connected
from datadream.runtime.work_queue import WorkQueue

NODES = 4
"""Simulated ones; more would wait for this machine's cores rather than for the queue."""
CALLS = 3000
"""To the queue, timed as a whole: one alone is too short to time."""
WORKERS = (1, 2, 4, 8, 64, 512)
"""Of the clusters that the model is asked about."""


def write_photos(root: Path, n: int) -> None:
    """One real photo for each of n classes."""
    source = open_source("digits")
    pool = source.dataset().pool
    for number in range(n):
        folder = root / f"class {number:04d}"
        folder.mkdir(parents=True)
        source.read(pool[number % len(pool)].key).save(folder / "0.png")


def units_of(store: RunStore, n: int, config: ExperimentConfig) -> list[AdapterUnit]:
    photos = [TrainingPhoto(f"class {number:04d}/0.png", "a photo of a digit") for number in range(n)]
    specs = [AdapterSpec(f"class-{number:05d}", (photo,), 1, number) for number, photo in enumerate(photos)]
    return adapter_units(store.url, specs, config.adapt)


def time_cluster(config: ExperimentConfig, run: Path, n: int) -> dict[str, Any]:
    """Train n adapters on workers of four nodes."""
    store = RunStore(str(run))
    with Samples(psutil.Process().memory_info) as memory, connected(config.cluster) as workers:
        started = time.monotonic()
        train_adapters(store, units_of(store, n, config), config, workers)
        seconds = time.monotonic() - started
    usage, size = store.read_json(ADAPTER_WORKERS), store.read_json(ADAPTER_GROUP)["adapters_per_step"]
    driver = [round(mib(info.rss)) for info in memory.taken]
    return {
        "adapters": n,
        "steps": config.adapt.steps_per_class,
        "side_by_side": size,
        "workers": usage["workers"],
        "wall_seconds": round(seconds, 1),
        "start_seconds": round(seconds - usage["seconds"] / usage["workers"], 1),
        "busy_seconds_per_group": round(usage["busy_seconds"] / math.ceil(n / size), 3),
        "share_lost_to_scheduling": round(1 - usage["busy_seconds"] / usage["seconds"], 4),
        "driver_mib": {"half_way": driver[len(driver) // 2], "end": driver[-1]},
    }


def time_queue(config: ExperimentConfig, n: int) -> dict[str, float]:
    """Seconds of a call to the queue, one after the other, and of one among many at once."""
    units = units_of(RunStore("memory://queue"), n, config)
    queue = ray.remote(WorkQueue).options(num_cpus=0).remote(units, [False] * n, 60)
    ray.get(queue.lease.remote("0", "x", 1))
    started = time.perf_counter()
    for _ in range(CALLS):
        ray.get(queue.report.remote("x", 1, 0.5))
    alone = (time.perf_counter() - started) / CALLS
    started = time.perf_counter()
    ray.get([queue.report.remote("x", 1, 0.5) for _ in range(CALLS)])
    return {"call_seconds": alone, "busy_call_seconds": (time.perf_counter() - started) / CALLS}


def model(n: int, size: int, workers: int, start: float, group: float, call: float) -> float:
    """Wall seconds: every worker starts, then rounds of groups, each with a lease and a result to tell."""
    return start + math.ceil(math.ceil(n / size) / workers) * (group + 2 * call)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=NODES)
    arguments = parser.parse_args()
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.3"
    # One CPU is left to Ray Data's tasks, which this stage has none of: the head's.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(arguments.nodes):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        write_photos(photos, arguments.adapters)
        changes = {"data.source": str(photos), "adapt.steps_per_class": arguments.steps, "cluster.device": "cpu"}
        config = recipes.digits(**changes)
        measured = time_cluster(config, Path(folder) / "run", arguments.adapters)
    calls = time_queue(config, arguments.adapters)
    known = (measured["adapters"], measured["side_by_side"])
    costs = (measured["start_seconds"], measured["busy_seconds_per_group"], calls["call_seconds"])
    result = {
        "benchmark": "scale",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "measured": measured,
        "queue": calls,
        "model_wall_seconds": {
            str(count): round(model(*known, count, *costs), 1) for count in sorted({*WORKERS, measured["workers"]})
        },
    }
    print(json.dumps(result))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
