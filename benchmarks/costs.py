"""Does the plan's arithmetic hold? Units that sleep, on 1, 2 and 4 workers, against what `datadream plan` would say.

    python -m benchmarks.costs

Units of unequal length, as a table of runs has them, are leased as adapters are, or mapped as chunks of images are.
They sleep, so that four workers are as good as four machines' on two cores: it shows what queue, leases and rounds
cost, and nothing of the constants. What starting takes is told apart: processes that start together share this
machine's cores. `--way queue` leases them to threads, from the same queue without Ray around it. Each point is printed
when it is measured; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray

from benchmarks.compare import machine
from datadream.costs.stages import queue_seconds
from datadream.run.store import RunStore
from datadream.runtime.failures import Failure, Ledger
from datadream.runtime.map_units import Mapped, run_mapped
from datadream.runtime.unit import Unit
from datadream.runtime.work_queue import Group, WorkQueue
from datadream.runtime.worker_groups import Heartbeat, Leased, run_leased
from datadream.runtime.workers import Workers

WORKERS = (1, 2, 4)


class Sleeper:
    """Sleeps in place of training adapters."""

    def __init__(self, load_from: Any, device: Any) -> None:
        pass

    def group_size(self, most: int) -> int:
        return 1

    def work(self, group: Group[float], heartbeat: Heartbeat | None = None) -> Mapping[int, Failure]:
        for unit in group.units:
            sleep(unit)
        return {}


def sleep(unit: Unit[float]) -> None:
    time.sleep(unit.payload)
    unit.store.write_json(unit.marker, {})


def load_sleeper(load_from: Any, device: Any) -> Callable[[Unit[float]], None]:
    return sleep


def time_leased(units: list[Unit[float]], store: RunStore, workers: Workers) -> float:
    """Seconds from the first lease to the end, of the mean worker."""
    how = Leased(Sleeper, None, 1, 1, 120)
    _, usage = run_leased(store, units, [False] * len(units), how, workers, lambda progress: None)
    return usage["seconds"] / usage["workers"]


def time_queue(units: list[Unit[float]], store: RunStore, workers: Workers) -> float:
    """As `time_leased`, with threads in place of Ray's workers and a lock in place of the actor's turns."""
    queue, turn, sleeper = WorkQueue(units, [False] * len(units), 120), threading.Lock(), Sleeper(None, None)

    def lease_and_work(worker: str) -> None:
        while True:
            with turn:
                group = queue.lease(worker, worker, 1)
            if group is None:
                return
            failures = sleeper.work(group)
            with turn:
                queue.finish(worker, worker, group, failures)

    with ThreadPoolExecutor(workers.count) as threads:
        list(threads.map(lease_and_work, map(str, range(workers.count))))
    usage = queue.usage()
    return usage["seconds"] / usage["workers"]


def time_mapped(units: list[Unit[float]], store: RunStore, workers: Workers) -> float:
    """Seconds from the start of the first unit to the end of the last."""
    how, began = Mapped(load=load_sleeper, load_from=None, what="sleeping"), float("inf")
    for done in run_mapped(store, units, how, workers, Ledger()):
        began = min(began, time.monotonic() - done.busy_seconds)
    return time.monotonic() - began


WAYS = {"leased": time_leased, "mapped": time_mapped, "queue": time_queue}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a unit, on average")
    parser.add_argument("--way", choices=WAYS, default="leased")
    arguments = parser.parse_args()
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.3"
    if arguments.way != "queue":
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        ray.init(address="local", num_cpus=max(WORKERS) + 1, **quiet)
    spread = max(arguments.units - 1, 1)
    lengths = [arguments.seconds * (0.5 + number / spread) for number in range(arguments.units)]
    measured = []
    for count in WORKERS:
        with tempfile.TemporaryDirectory() as folder:
            store = RunStore(str(Path(folder) / "run"))
            units = [
                Unit(
                    run_url=store.url, name=f"unit {n}", marker=f"units/{n}.json", payload=each, size=round(100 * each)
                )
                for n, each in enumerate(lengths)
            ]
            workers, began = Workers(count, 1, use_gpu=False, slots=count), time.monotonic()
            seconds = WAYS[arguments.way](units, store, workers)
            wall, planned = time.monotonic() - began, queue_seconds(lengths, count)
        row = {"workers": count, "planned": planned, "measured": seconds, "start": wall - seconds}
        measured.append({name: round(value, 2) for name, value in row.items()})
        print(measured[-1], flush=True)
    about = {"benchmark": "costs", "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    print(json.dumps(about | vars(arguments) | {"points": measured}))
    ray.shutdown()


if __name__ == "__main__":
    main()
