"""Clusters that start machines when somebody asks: what they may come to hold, asking for it, and waiting for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray
from ray._raylet import GcsClient
from ray.autoscaler.sdk import request_resources
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.exceptions import RayError

from datadream.runtime.nodes import Resources, living_nodes
from datadream.runtime.progress import polled
from datadream.runtime.workers import CPUS_FOR_DATA_TASKS, Workers

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_ANSWERS = 5.0
SECONDS_TO_REFUSE = 15.0
"""An autoscaler looks at requests every 5 s; what it has not refused by then it grants."""
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


class Request:
    """What an autoscaler is asked for: room for as many workers as it may start of those that are wanted.

    For a request of which it may not start all, Ray 2.60's autoscaler starts nothing, and says so in its state alone.
    So the largest that it does not refuse is searched for, by halves.
    """

    def __init__(self, workers: Workers, wanted: int) -> None:
        self._workers = workers
        self._granted, self._refused = 0, min(wanted, MOST_ASKED) + 1
        """The largest number that was not refused, and the smallest that was."""
        self._count, self._asked = self._refused - 1, float("-inf")
        """What is asked for, and since when."""
        self._bundles: list[dict[str, float]] = []
        self._gcs = GcsClient(address=ray.get_runtime_context().gcs_address)

    def ask(self) -> None:
        self._bundles = [self._workers.resources] * self._count
        # Workers on GPUs take no CPU, so that the CPUs of their nodes are left for Ray Data's tasks.
        if not self._workers.use_gpu:
            self._bundles.append({"CPU": CPUS_FOR_DATA_TASKS})
        _ask_for(self._bundles)
        self._asked = time.monotonic()

    def look(self) -> None:
        """Ask for fewer or more, by what became of the last request."""
        # Repeated at every look: a cluster has one request for all of its users, of which the last counts. From the
        # first Ray Train or Ray Data on, Ray's AutoscalingCoordinator sends its own every 20 s, mostly an empty one.
        _ask_for(self._bundles)
        since, n_refused = time.monotonic() - self._asked, self._n_refused()
        is_refused = n_refused == len(self._bundles)
        if n_refused is None or (since < SECONDS_TO_REFUSE and not is_refused):
            return
        if is_refused:
            self._refused = min(self._refused, self._count)
            # What seemed granted was not answered yet: an autoscaler takes its time to start.
            if self._granted >= self._count:
                self._granted = 0
        else:
            self._granted = max(self._granted, self._count)
        is_found = self._refused - self._granted <= 1
        count = max(1, self._granted if is_found else (self._granted + self._refused) // 2)
        if count != self._count:
            self._count = count
            self.ask()

    def _n_refused(self) -> int | None:
        """Bundles of the request that the autoscaler found to be more than it may start; the state may be an older
        one's, which this number tells. 0 where none says so, as without an autoscaler; None where Ray does not answer.
        """
        reply = GetClusterStatusReply()
        try:
            reply.ParseFromString(self._gcs.get_cluster_status(timeout_s=SECONDS_BETWEEN_ANSWERS))
        except RayError:
            return None
        refused = reply.autoscaling_state.infeasible_cluster_resource_constraints
        return sum(bundle.count for constraint in refused for bundle in constraint.resource_requests)


@contextmanager
def asked_for(workers: Workers, count: int) -> Iterator[None]:
    """Ask the autoscaler for room for `count` workers, or as many as it may start, for the length of a block."""
    request = Request(workers, count)
    request.ask()
    # The request outlives its driver: not withdrawn, it would keep the nodes up when the run is over.
    try:
        with polled(request.look, SECONDS_BETWEEN_ANSWERS):
            try:
                yield
            finally:
                # At once: the look that is waited for below may wait for Ray, and a job that is stopped has 3 s.
                _ask_for([])
    finally:
        _ask_for([])  # that look may have repeated it


def _ask_for(bundles: list[dict[str, float]]) -> None:
    try:
        request_resources(bundles=bundles)
    except Exception as error:  # Ray's store is away, as while a head starts anew; the next look asks again
        log.warning("the autoscaler cannot be asked: %s", str(error).partition("\n")[0])


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
