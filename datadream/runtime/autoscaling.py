"""Clusters that start machines when somebody asks: what they may come to hold, asking for it, and waiting for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray
from ray.autoscaler.sdk import request_resources

from datadream.runtime.nodes import Resources, living_nodes
from datadream.runtime.progress import polled
from datadream.runtime.workers import CPUS_FOR_DATA_TASKS, Workers

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_REQUESTS = 60.0
"""The cluster has one request for all of its users: the last one counts, so ours is repeated."""
MOST_ASKED = 1_000
"""Workers; an autoscaler finds a node for each in turn, and does it anew every few seconds."""
MOST_NODES = 10_000
"""Nodes of a group whose number nobody has bounded."""


def possible_nodes() -> list[Resources]:
    """The nodes that the autoscaler may start, by what each holds; none where there is no autoscaler that says so, and
    neither KubeRay's nor that of `ray up` does in Ray 2.60."""
    # Private: what Ray offers tells of nodes that are there, not of those that may come.
    config = ray._private.state.state.get_cluster_config()
    if config is None:
        return []
    found: list[Resources] = []
    for group in config.node_group_configs:
        found += [dict(group.resources)] * (MOST_NODES if group.max_count < 0 else group.max_count)
    return found


@contextmanager
def asked_for(workers: Workers, count: int) -> Iterator[None]:
    """Ask the autoscaler for room for `count` workers, for the length of a block."""
    bundles: list[dict[str, float]] = [workers.resources] * min(count, MOST_ASKED)
    # Workers on GPUs take no CPU, so that the CPUs of their nodes are left for Ray Data's tasks.
    if not workers.use_gpu:
        bundles.append({"CPU": CPUS_FOR_DATA_TASKS})

    def ask() -> None:
        request_resources(bundles=bundles)

    ask()
    try:
        with polled(ask, SECONDS_BETWEEN_REQUESTS):
            yield
    finally:
        # The request outlives its driver: not withdrawn, it would keep the nodes up when the run is over.
        request_resources(bundles=[])


def await_nodes(workers: Workers, minutes: float) -> Sequence[Resources]:
    """What the nodes hold, as soon as they hold `workers.least` workers or `minutes` are over."""
    deadline, told = time.monotonic() + 60 * minutes, float("-inf")
    while True:
        nodes: list[Resources] = [node["Resources"] for node in living_nodes()]
        room, moment = workers.room_in(nodes), time.monotonic()
        if room >= workers.least or moment >= deadline:
            return nodes
        if moment - told > SECONDS_BETWEEN_LINES:
            told = moment
            log.info(
                "waiting for nodes: %d of at least %d workers fit those that are there (%.0f min left)",
                room,
                workers.least,
                (deadline - moment) / 60,
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)
