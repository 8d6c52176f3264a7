"""A Ray cluster for the length of a block, in a process of its own: python -m tests.ray_nodes CPUS [CPUS ...].

The tests' process may have joined another Ray. Prints the address, and ends with its standard input.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ray.cluster_utils import Cluster


@contextmanager
def ray_nodes(*cpus: int) -> Iterator[str]:
    """The address of a cluster with a node of so many CPUs each; the first is the head."""
    command = [sys.executable, "-m", "tests.ray_nodes", *map(str, cpus)]
    # It asks for no token, which Ray has it do where another test's server left one on the machine.
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        lines = iter(process.stdout.readline, "")
        yield next(line.split()[1] for line in lines if line.startswith("address "))


def main(cpus: list[int]) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus[0], "include_dashboard": False})
    for count in cpus[1:]:
        cluster.add_node(num_cpus=count)
    print("address", cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(list(map(int, sys.argv[1:])))
