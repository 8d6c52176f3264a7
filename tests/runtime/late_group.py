"""Leased units on a cluster that a node joins as the last of them end: python -m tests.runtime.late_group RUN.

The units wait until the group of the node that joined has asked for room, so that they end while it starts. A process
of its own, for the tests' process has joined another Ray. Prints one JSON line of what is left on the cluster.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from datadream.config import ClusterConfig
from datadream.run.store import RunStore
from datadream.runtime.session import connected
from datadream.runtime.unit import Unit
from datadream.runtime.worker_groups import Leased, run_leased
from tests.processes import wait_until

N_UNITS = 4
SECONDS_TO_JOIN = 120.0
SECONDS_TO_TELL = 15.0
"""Ray's own account of what is free lags behind."""


class Worker:
    """Ends when it is told to."""

    def group_size(self, most: int) -> int:
        return most

    def work(self, group, heartbeat) -> dict:
        folder = Path(group.units[0].run_url)
        (folder / "begun").touch()
        deadline = time.monotonic() + SECONDS_TO_JOIN
        while not (folder / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        for unit in group.units:
            unit.store.write_json(unit.marker, {})
        return {}


def load(_, device) -> Worker:
    return Worker()


def left() -> dict[str, object]:
    held = {name: ray.cluster_resources().get(name, 0) - ray.available_resources().get(name, 0) for name in ("CPU",)}
    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    living = [actor["ActorClassName"] for actor in actors().values() if actor["State"] != "DEAD"]
    trains = [name for name in living if "PlacementGroup" in name or "Train" in name]
    return {"held": held["CPU"], "groups": len(groups), "actors": trains}


def main(run: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    store = RunStore(run)
    units = [Unit(run_url=run, name=f"unit {i}", marker=f"{i}.json", payload=None) for i in range(N_UNITS)]
    ended: list[float] = []

    def drive() -> None:
        with connected(ClusterConfig(device="cpu")) as workers:
            run_leased(store, units, [False] * N_UNITS, Leased(load, None, 1, 1, 60.0), workers, lambda _: None)
            ended.append(time.monotonic())
            deadline = time.monotonic() + SECONDS_TO_TELL
            while (rest := left()) != {"held": 0, "groups": 0, "actors": []} and time.monotonic() < deadline:
                time.sleep(0.2)
            print(json.dumps(rest | {"seconds_to_end": round(ended[0] - released, 1)}))

    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    wait_until((Path(run) / "begun").exists, SECONDS_TO_JOIN)
    before = len(placement_group_table())
    # On the main thread: adding nodes installs signal handlers.
    cluster.add_node(num_cpus=2)
    wait_until(lambda: len(placement_group_table()) > before, SECONDS_TO_JOIN)
    released = time.monotonic()
    (Path(run) / "go").touch()
    thread.join()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
