"""A driver on a cluster whose second node has another home folder: python -m tests.runtime.two_homes HOME COMMAND...

Runs `datadream COMMAND...`. A process of its own, for the tests' process has joined another Ray.
"""

from __future__ import annotations

import os
import sys

import ray
from ray.cluster_utils import Cluster

from datadream.cli import main as datadream


def main(home: str, *command: str) -> int:
    os.environ["HOME"] = home
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2, env_vars={"HOME": f"{home}/elsewhere"})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        return datadream(command)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
