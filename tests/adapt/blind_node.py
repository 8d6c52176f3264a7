"""Train adapters on three nodes of which one has another home folder, without the photos in it:
python -m tests.adapt.blind_node PIPELINE RUN HOME.

A process of its own, for the tests' process has joined another Ray. Prints one JSON line of what was said and done.
"""

from __future__ import annotations

import json
import logging
import os
import sys

import ray
from ray.cluster_utils import Cluster

from datadream import recipes
from datadream.adapt.stage import adapter_units, train_adapters
from datadream.config import ExperimentConfig
from datadream.methods import METHODS
from datadream.run.cell import Cell
from datadream.run.store import RunStore
from datadream.runtime.session import connected

SOURCE = "~/photos"


def config(pipeline: str) -> ExperimentConfig:
    changes = {
        "data.source": SOURCE,
        "data.n_shots": 1,
        "diffusion.model": pipeline,
        "adapt.steps_per_class": 30,
        "adapt.batch_size": 2,
        "adapt.adapters_per_step": 1,
        "cluster.device": "cpu",
    }
    return recipes.digits(**changes)


class Said(logging.Handler):
    """What the log says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(pipeline: str, run: str, home: str) -> None:
    settings, store = config(pipeline), RunStore(run)
    os.environ["HOME"] = home
    cell = Cell(settings, store)
    units = adapter_units(store.url, METHODS["datadream-cls"](cell.few_shot, settings).adapters, settings.adapt)
    said = Said()
    logging.getLogger("datadream").addHandler(said)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    # One CPU of all is the data tasks', so that one node stays idle at first: not this one, which is the roomiest.
    cluster.add_node(num_cpus=2, env_vars={"HOME": f"{home}/elsewhere"})
    for _ in range(2):
        cluster.add_node(num_cpus=1, env_vars={"HOME": home})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    error = ""
    try:
        with connected(settings.cluster) as workers:
            train_adapters(store, units, settings, workers)
    except RuntimeError as caught:
        error = str(caught)
    done = [unit.name for unit in units if store.exists(unit.marker)]
    print(json.dumps({"done": done, "units": [unit.name for unit in units], "error": error, "said": said.lines}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
