"""The cluster's nodes: which of them live, how many workers fit them, and whether they see the run's folder."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyarrow.fs
import ray
from ray._private.state import available_resources_per_node  # ray.available_resources() knows only sums
from ray.exceptions import RayError

from datadream.run.layout import SCRATCH
from datadream.run.store import RunStore
from datadream.runtime.workers import CPUS_FOR_DATA_TASKS, Workers

log = logging.getLogger(__name__)

SECONDS_TO_ANSWER = 5.0
"""A node whose raylet takes no TCP connection within this time counts as dead. Ray itself takes 30 s and more to see
that a machine is lost, and until then waits for workers that it places there."""
SECONDS_TO_PROBE = 60.0
"""A node that cannot run a task that needs no CPU within this time is not asked about the run's folder: whatever is
wrong with it will show when it works."""
SECONDS_TO_SETTLE = 5.0
"""How long what a stage held may take to be free for the next; after that others hold it."""
SECONDS_BETWEEN_LOOKS = 0.5

NODE_LABEL = "ray.io/node-id"
PROBE = "shared"
"""A file in a stage's scratch folder by which workers see that they look at the driver's run and not at their own
disk under the same path."""

Node = dict[str, Any]
Resources = Mapping[str, float]


def living_nodes() -> list[Node]:
    """Nodes that Ray takes for alive, without those that it is about to lose: a spot machine gets notice."""
    draining = _draining()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]


def answering_nodes() -> list[Node]:
    """Living nodes whose raylet takes connections; all of them where none does, as where the driver reaches none."""
    living = living_nodes()
    # All at once: each that is silent takes SECONDS_TO_ANSWER.
    with ThreadPoolExecutor(max(1, len(living))) as threads:
        answers = list(threads.map(_answers, living))
    for node, answered in zip(living, answers, strict=True):
        if not answered and any(answers):
            log.warning("node %s does not answer: going on without it", node["NodeManagerAddress"])
    return [node for node, answered in zip(living, answers, strict=True) if answered or not any(answers)]


def free_on(nodes: Sequence[Node], workers: Workers) -> dict[str, Resources]:
    """What each node has left for `workers`, by id: what others use is not there for us."""
    if workers.alone:
        return {node["NodeID"]: node["Resources"] for node in nodes}
    free = available_resources_per_node()
    return {node["NodeID"]: free.get(node["NodeID"], {}) for node in nodes}


def hardware(workers: Workers) -> dict[str, Any]:
    """What does the work, without any host's name: workers, what each has, and nodes."""
    nodes, kind = living_nodes(), "accelerator_type:"
    gpus = {name.removeprefix(kind) for node in nodes for name in node["Resources"] if name.startswith(kind)}
    cpus = f"{workers.threads} CPU" + ("" if workers.threads == 1 else "s")
    each = " or ".join(sorted(gpus)) or "GPU" if workers.use_gpu else cpus
    return {"workers": workers.count, "each": each, "nodes": len(nodes)}


def workers_now(workers: Workers, tell: Callable[[str], None], suspects: Collection[str] = ()) -> Workers:
    """As many of these workers as were asked for, or as the nodes that answer have room for.

    `suspects` are ids of nodes that are kept off for as long as others can hold a worker. What the stage before held
    takes a moment to be free again, and on a cluster others may hold the rest: waits for room for `workers.least`, for
    as long as it takes, and tells `tell` what for.
    """
    without = to_avoid(suspects, workers)
    nodes = [node for node in answering_nodes() if node["NodeID"] not in without]
    settled = time.monotonic() + SECONDS_TO_SETTLE
    while True:
        could, room = (workers.room_in(among) for among in (_totals(nodes), [*free_on(nodes, workers).values()]))
        most = could if workers.grows else min(workers.count, could)
        if room > 0 and (room >= most or (room >= workers.least and time.monotonic() > settled)):
            return replace(workers, count=min(room, most))
        tell(shortage(workers, nodes))
        time.sleep(SECONDS_BETWEEN_LOOKS)
        without = to_avoid(suspects, workers)  # the others may leave meanwhile
        nodes = [node for node in living_nodes() if node["NodeID"] not in without]


def workers_to_add(
    workers: Workers, there: Mapping[str, int], n_units: int, starting: Collection[str] = ()
) -> dict[str, Workers]:
    """Workers to add, by node id, to those that are `there`, for a stage that has `n_units` units left.

    As many as were asked for; where nobody asked, as many as the cluster can hold, which grows when nodes join. A node
    gets as many as it has room for, and none while others are `starting` there, which hold nothing yet.
    """
    nodes = living_nodes()
    free = free_on(nodes, workers)
    most = max(1, workers.room_in(_totals(nodes))) if workers.grows else workers.count
    wanted = min(most, n_units) - sum(there.values())
    if not workers.alone:
        # The nodes' rooms together may be one more than this, which leaves a CPU for Ray Data's tasks.
        wanted = min(wanted, workers.room_in(list(free.values())))
    added: dict[str, Workers] = {}
    rooms = {node: workers.room_on(resources) for node, resources in free.items()}
    # The largest rooms first, so that few groups hold all workers: each is a Ray Train run, whose start takes seconds.
    # Ids break ties, or two looks at the same nodes could choose differently.
    for node, room in sorted(rooms.items(), key=lambda item: (-item[1], item[0])):
        may_have_more = node not in there or not (workers.alone or node in starting)
        count = min(room, wanted) if may_have_more else 0
        if count > 0:
            added[node] = replace(workers, count=count)
            wanted -= count
    return added


def shortage(workers: Workers, nodes: Sequence[Node]) -> str:
    """What workers that find no room wait for, as in "2 CPUs: 0 of 4 are free"."""
    name = "GPU" if workers.use_gpu else "CPU"
    size = workers.least if workers.use_gpu else workers.threads * workers.least + CPUS_FOR_DATA_TASKS
    free, total = (
        sum(node.get(name, 0) for node in among) for among in (free_on(nodes, workers).values(), _totals(nodes))
    )
    return f"{size} {name}{'s' if size > 1 else ''}: {free:g} of {total:g} are free"


def _totals(nodes: Sequence[Node]) -> list[Resources]:
    return [node["Resources"] for node in nodes]


def to_avoid(suspects: Collection[str], workers: Workers | None) -> set[str]:
    """Ids of nodes to keep off: all that had a host's fault since they last did a unit, as long as others can hold one
    of the `workers`, or without these a task of one CPU; a head that offers nothing cannot.

    For stages that start all their workers anew after a fault, so that one is enough.
    """
    others = _totals([node for node in living_nodes() if node["NodeID"] not in suspects])
    room = workers.room_in(others) if workers else sum(int(node.get("CPU", 0)) for node in others)
    return set(suspects) if room > 0 else set()


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
    # A name of its own: a stage on spare workers runs beside another one.
    folder = SCRATCH + uuid.uuid4().hex[:8]
    store.write_bytes(f"{folder}/{PROBE}", b"")
    try:
        yield folder
    finally:
        try:
            if store.exists(folder):
                store.fs.rm(store.path(folder), recursive=True)
        except Exception as error:  # every file system has its own; somebody may still write there
            # It fails nothing that is done, and hides no other error: whoever drives the run next sweeps it.
            log.warning("%s stays for now: %s", store.url_of(folder), str(error) or type(error).__name__)


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


def check_shared(store: RunStore, inputs: Mapping[str, str]) -> None:
    """Look at the run's folder and at local `inputs`, by knob, from every node before any work.

    Raises ValueError that names what is missing or another folder elsewhere, and the nodes.
    """
    nodes = living_nodes()
    if len(nodes) < 2:
        return
    with scratch(store) as folder:
        # Without a CPU, so that a node whose CPUs others hold answers as well.
        look = ray.remote(num_cpus=0, max_retries=0)(_unseen)
        signatures = {knob: (path, _signature(path)) for knob, path in inputs.items()}
        # By place in the list: several nodes may share an address.
        selectors = [{NODE_LABEL: node["NodeID"]} for node in nodes]
        looks = [look.options(label_selector=selector).remote(store.url, folder, signatures) for selector in selectors]
        ray.wait(looks, num_returns=len(looks), timeout=SECONDS_TO_PROBE)
        unseen: list[list[str]] = []
        for answer in looks:
            try:
                unseen.append(ray.get(answer, timeout=0))
            except RayError:  # no answer in time, or the node is gone
                unseen.append([])
    for what in ("run", *inputs):
        if blind := [node["NodeManagerAddress"] for node, names in zip(nodes, unseen, strict=True) if what in names]:
            place = store.url if what == "run" else inputs[what]
            raise ValueError(
                f"{what} {place!r} is another one, or not there, on {len(blind)} of {len(nodes)} nodes "
                f"({', '.join(blind[:5])}). Use a place that all nodes see: a shared file system or an object store "
                "such as s3://."
            )


def _unseen(run_url: str, folder: str, signatures: Mapping[str, tuple[str, Sequence[str]]]) -> list[str]:
    """What of these a node does not see as the driver does."""
    unseen = [knob for knob, (path, signature) in signatures.items() if _signature(path) != signature]
    try:
        check_sees_run(run_url, folder)
    except FileNotFoundError:
        unseen.append("run")
    return unseen


def _signature(path: str) -> list[str]:
    """Tells a folder from another at the same path: what is in it."""
    if os.path.isdir(path):
        return sorted(os.listdir(path))
    return [str(os.path.getsize(path))] if os.path.exists(path) else ["nothing"]


def _draining() -> Collection[str]:
    return ray._private.state.state.get_draining_nodes()


def _answers(node: Node) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True
