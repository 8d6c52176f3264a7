"""Map units on a cluster that a node joins meanwhile: python -m tests.runtime.growing RUN.

Every unit waits until units were begun on two nodes, so that without the node that joins none is ever done. A process
of its own, for the tests' process has joined another Ray.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from datadream.config import ClusterConfig
from datadream.run.store import RunStore
from datadream.runtime.failures import Ledger
from datadream.runtime.map_units import Mapped, run_mapped
from datadream.runtime.session import connected
from datadream.runtime.unit import Unit

N_UNITS = 6
SECONDS_TO_JOIN = 120.0


def load(run: str, device: object) -> Callable[[Unit], str]:
    begun = Path(run) / "begun"
    begun.mkdir(exist_ok=True)

    def work(unit: Unit) -> str:
        node = ray.get_runtime_context().get_node_id()
        (begun / node).touch()
        deadline = time.monotonic() + SECONDS_TO_JOIN
        while len(list(begun.iterdir())) < 2:
            if time.monotonic() > deadline:
                raise ValueError("the node that joined was not used")
            time.sleep(0.1)
        return node

    return work


def main(run: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    store, ledger = RunStore(run), Ledger()
    units = [Unit(run_url=run, name=f"unit {i}", marker=f"{i}.json", payload=None) for i in range(N_UNITS)]
    done: list[str] = []

    def drive() -> None:
        with connected(ClusterConfig(device="cpu")) as workers:
            how = Mapped(load=load, load_from=run, what="waiting")
            done.extend(row.value for row in run_mapped(store, units, how, workers, ledger))

    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    while not (Path(run) / "begun").exists() or not list((Path(run) / "begun").iterdir()):
        time.sleep(0.1)
    # On the main thread: adding nodes installs signal handlers.
    cluster.add_node(num_cpus=1)
    thread.join()
    assert not ledger.given_up, ledger.given_up
    assert len(done) == N_UNITS
    assert len(set(done)) == 2
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
