"""The cluster's nodes: which of them live, how many workers fit them, and whether they see the run's folder."""

from __future__ import annotations

import logging
import socket
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyarrow.fs
import ray
from ray.exceptions import RayError

from datadream.run.layout import SCRATCH
from datadream.run.store import RunStore
from datadream.runtime.workers import Workers

log = logging.getLogger(__name__)

SECONDS_TO_ANSWER = 5.0
"""A node whose raylet takes no TCP connection within this time counts as dead. Ray itself takes 30 s and more to see
that a machine is lost, and until then waits for workers that it places there."""
SECONDS_TO_PROBE = 60.0
"""A node that cannot run a task that needs no CPU within this time is not asked about the run's folder: whatever is
wrong with it will show when it works."""

NODE_LABEL = "ray.io/node-id"
PROBE = "shared"
"""A file in a stage's scratch folder by which workers see that they look at the driver's run and not at their own
disk under the same path."""

Node = dict[str, Any]


def living_nodes() -> list[Node]:
    """Nodes that Ray takes for alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def answering_nodes() -> list[Node]:
    """Living nodes whose raylet takes connections; all of them where none does, as where the driver reaches none."""
    living = living_nodes()
    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(_answers, living))
    for node, answered in zip(living, answers, strict=True):
        if not answered and any(answers):
            log.warning("node %s does not answer: going on without it", node["NodeManagerAddress"])
    return [node for node, answered in zip(living, answers, strict=True) if answered or not any(answers)]


def rooms(workers: Workers, nodes: Sequence[Node]) -> dict[str, int]:
    """How many workers of this size each node can hold, by id, the roomiest first."""
    resource, size = ("GPU", 1) if workers.use_gpu else ("CPU", workers.threads)
    found = {node["NodeID"]: int(node["Resources"].get(resource, 0)) // size for node in nodes}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def hardware(workers: Workers) -> dict[str, Any]:
    """What does the work, without any host's name: workers, what each has, and nodes."""
    nodes, kind = living_nodes(), "accelerator_type:"
    gpus = {name.removeprefix(kind) for node in nodes for name in node["Resources"] if name.startswith(kind)}
    cpus = f"{workers.threads} CPU" + ("" if workers.threads == 1 else "s")
    each = " or ".join(sorted(gpus)) or "GPU" if workers.use_gpu else cpus
    return {"workers": workers.count, "each": each, "nodes": len(nodes)}


def workers_now(workers: Workers, without: Collection[str] = ()) -> Workers:
    """As many of these workers as were asked for, or as the nodes that answer can hold, at least one.

    `without` are ids of nodes that are left out.
    """
    nodes = [node for node in answering_nodes() if node["NodeID"] not in without]
    cpus, gpus = (int(sum(node["Resources"].get(name, 0) for node in nodes)) for name in ("CPU", "GPU"))
    room = min(workers.slots_in(cpus, gpus), sum(rooms(workers, nodes).values()))
    return replace(workers, count=max(1, room if workers.grows else min(workers.count, room)))


def workers_to_add(workers: Workers, there: Mapping[str, int], n_units: int) -> dict[str, Workers]:
    """Workers to add, by node id, to those that are `there`, for a stage that has `n_units` units left.

    As many as were asked for; where nobody asked, as many as the cluster can hold, which grows when nodes join. A node
    gets workers when it has none, as many as fit it.
    """
    nodes = living_nodes()
    if workers.grows:
        cpus, gpus = (int(sum(node["Resources"].get(name, 0) for node in nodes)) for name in ("CPU", "GPU"))
        workers = replace(workers, count=max(1, workers.slots_in(cpus, gpus)))
    wanted = min(workers.count, n_units) - sum(there.values())
    added: dict[str, Workers] = {}
    for node, room in rooms(workers, nodes).items():
        count = min(room, wanted) if node not in there else 0
        if count > 0:
            added[node] = replace(workers, count=count)
            wanted -= count
    return added


def to_avoid(suspects: Collection[str]) -> set[str]:
    """Ids of nodes to keep off: all that had a host's fault since they last did a unit, as long as there are others.

    For stages that start all their workers anew after a fault, so that one is enough.
    """
    return set(suspects) if {node["NodeID"] for node in living_nodes()} - set(suspects) else set()


def avoiding(node_ids: Collection[str]) -> dict[str, Any]:
    """Ray options that keep tasks, actors and Ray Train's workers off these nodes."""
    return {"label_selector": {NODE_LABEL: f"!in({','.join(sorted(node_ids))})"}} if node_ids else {}


def beside_driver() -> dict[str, Any]:
    """Options of a small actor that must outlive any other node: it lives on the driver's, and takes no CPU."""
    return {"num_cpus": 0, "label_selector": {NODE_LABEL: ray.get_runtime_context().get_node_id()}}


def address_of(node_id: str) -> str:
    """What people call a node."""
    return next((node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == node_id), node_id)


@contextmanager
def scratch(store: RunStore) -> Iterator[str]:
    """A folder of the run for the length of a block, relative to it, with a probe file that workers look for."""
    folder = SCRATCH + uuid.uuid4().hex[:8]
    store.write_bytes(f"{folder}/{PROBE}", b"")
    try:
        yield folder
    finally:
        if store.exists(folder):
            store.fs.rm(store.path(folder), recursive=True)


def train_storage(store: RunStore, folder: str) -> dict[str, Any]:
    """Storage arguments of a Ray Train run.

    Ray Train insists on shared storage even where, as here, our own markers are the only record of what is done.
    """
    filesystem = None if store.is_local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store.fs))
    return {"storage_path": store.path(folder), "storage_filesystem": filesystem}


def check_sees_run(run_url: str, folder: str) -> None:
    """Raises FileNotFoundError, a host's fault, on a node that has another folder at the run's path."""
    store = RunStore(run_url)
    if not store.exists(f"{folder}/{PROBE}"):
        raise FileNotFoundError(
            f"the run's folder {store.url!r} is not the driver's here. Put it where all nodes see it, on a shared "
            "file system or an object store."
        )


def check_shared(store: RunStore) -> None:
    """Look at the run's folder from every node before any work; raises ValueError naming nodes that do not see it."""
    nodes = living_nodes()
    if len(nodes) < 2:
        return
    with scratch(store) as folder:
        look = ray.remote(num_cpus=0, max_retries=0)(check_sees_run)
        # By place in the list: several nodes may share an address.
        selectors = [{NODE_LABEL: node["NodeID"]} for node in nodes]
        looks = [look.options(label_selector=selector).remote(store.url, folder) for selector in selectors]
        ray.wait(looks, num_returns=len(looks), timeout=SECONDS_TO_PROBE)
        answered = zip(nodes, looks, strict=True)
        blind = [node["NodeManagerAddress"] for node, answer in answered if _is_blind(answer)]
    if blind:
        raise ValueError(
            f"run {store.url!r} is another folder on {len(blind)} of {len(nodes)} nodes ({', '.join(blind[:5])}). "
            "Use a --run that all nodes see: a shared file system or an object store such as s3://."
        )


def _is_blind(answer: ray.ObjectRef) -> bool:
    try:
        ray.get(answer, timeout=0)
    except FileNotFoundError:  # Ray raises an error that is both its own and the task's
        return True
    except RayError:  # no answer in time, or the node is gone
        return False
    return False


def _answers(node: Node) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True
