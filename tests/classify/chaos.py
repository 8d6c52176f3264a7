"""Train classifiers on a cluster that loses a worker, then a node: python -m tests.classify.chaos RUN.

RUN holds its config, its few-shot set and its dataset. A process of its own, for the tests' process has joined another
Ray. Prints one JSON line of what happened.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import suppress

import psutil
import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster

from datadream.classify.stage import ClassifierJob, train_classifiers
from datadream.config import ExperimentConfig, parse_config
from datadream.data.few_shot import FewShotSet
from datadream.run.layout import CONFIG, FEW_SHOT, classifier_checkpoint, classifier_marker
from datadream.run.store import RunStore
from datadream.runtime.session import connected
from tests.processes import kill_a_worker_after, train_workers

FIRST, LOSES_WORKER, LOSES_NODE = "zero-shot", "real", "real+synthetic"
# Its CPU is the data tasks', and when these are done, another place for a worker.
HEAD = {"num_cpus": 1, "include_dashboard": False}


def write_run(store: RunStore, few_shot: FewShotSet, config: ExperimentConfig) -> None:
    store.write_json(CONFIG, config.model_dump(mode="json"))
    store.write_json(FEW_SHOT, few_shot.to_json())


def raylet_of(node: Node) -> psutil.Process:
    """The process whose children a node's workers are."""
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def lose(node: Node) -> None:
    """All of its processes at once, as when a machine loses its power."""
    raylet = raylet_of(node)
    for process in (raylet, *raylet.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # those that end with their raylet
            process.kill()


def wait_for(thread: threading.Thread, store: RunStore, name: str) -> None:
    while thread.is_alive() and not store.exists(name):
        time.sleep(0.005)


def main(run: str) -> None:
    store = RunStore(run)
    config = parse_config(store.read_json(CONFIG))
    job = ClassifierJob(store, FewShotSet.from_json(store.read_json(FEW_SHOT)), config, store)
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.3"  # as for a Ray that datadream starts
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    failed: list[str] = []

    def train() -> None:
        try:
            with connected(config.cluster) as workers:
                train_classifiers(store, [job], workers)
        except Exception as error:
            failed.append(repr(error))

    # Nodes are added and removed on the main thread: they install signal handlers.
    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    killed_at = kill_a_worker_after(store, classifier_marker(FIRST), classifier_checkpoint(LOSES_WORKER, "all"))
    wait_for(thread, store, classifier_marker(LOSES_WORKER))
    # Found before, and stopped: the training would be over before its node is dead.
    workers = train_workers()
    wait_for(thread, store, classifier_checkpoint(LOSES_NODE, "all"))
    for worker in workers:
        worker.suspend()
    # After the worker's loss one of the two may have been started on the head's node, which must stay.
    lost = next((node for node in nodes if raylet_of(node).pid in {worker.ppid() for worker in workers}), nodes[0])
    lose(lost)
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.resume()
    cluster.remove_node(lost, allow_graceful=False)
    thread.join()
    told = {"failed": failed, "killed_at": killed_at}
    print(json.dumps(told))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
