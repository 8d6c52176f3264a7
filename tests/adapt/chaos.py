"""Train adapters on a cluster of nodes that come and go: python -m tests.adapt.chaos PIPELINE RUN SEED.

A process of its own, for the tests' process has joined another Ray. Prints one JSON line of what happened.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from datadream import recipes
from datadream.adapt.stage import AdapterUnit, adapter_units, train_adapters
from datadream.config import ExperimentConfig
from datadream.data.datasets import open_source
from datadream.data.few_shot import sample_shots
from datadream.methods import METHODS
from datadream.run.store import RunStore
from datadream.runtime.session import connected
from tests.processes import train_workers

N_ADAPTERS, STEPS = 8, 40


def config(pipeline: str) -> ExperimentConfig:
    changes = {
        "diffusion.model": pipeline,
        "data.n_shots": 2,
        "adapt.steps_per_class": STEPS,
        "adapt.batch_size": 2,
        "adapt.adapters_per_step": 1,
        "cluster.lease_seconds": 20.0,
        "cluster.device": "cpu",
    }
    return recipes.digits(**changes)


def units(store: RunStore, settings: ExperimentConfig) -> list[AdapterUnit]:
    few_shot = sample_shots(open_source("digits").dataset(), 2, 0, settings.data.prompt)
    specs = METHODS["datadream-cls"](few_shot, settings).adapters[:N_ADAPTERS]
    return adapter_units(store.url, specs, settings.adapt)


def main(pipeline: str, run: str, seed: int) -> None:
    rng, store, settings = random.Random(seed), RunStore(run), config(pipeline)
    made = units(store, settings)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    failed: list[str] = []

    def train() -> None:
        try:
            with connected(settings.cluster) as workers:
                train_adapters(store, made, settings, workers)
        except Exception as error:
            failed.append(repr(error))

    # Nodes are added and removed on the main thread: they install signal handlers.
    thread = threading.Thread(target=train, daemon=True)
    thread.start()

    def wait_for(n: int) -> None:
        while thread.is_alive() and sum(store.exists(unit.marker) for unit in made) < n:
            time.sleep(0.02)

    wait_for(1)
    survivors = train_workers()
    survivors.pop(rng.randrange(len(survivors))).kill()
    wait_for(3)
    undisturbed = all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in survivors)
    cluster.remove_node(rng.choice(nodes), allow_graceful=False)
    cluster.add_node(num_cpus=1)
    wait_for(5)
    rng.choice(train_workers()).kill()
    thread.join()
    committed = [unit.payload.adapter_id for unit in made if store.exists(unit.marker)]
    told = {"failed": failed, "committed": committed, "nodes": len(ray.nodes()), "undisturbed": undisturbed}
    print(json.dumps(told))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], str(Path(sys.argv[2])), int(sys.argv[3]))
