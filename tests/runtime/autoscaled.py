"""A head without CPUs, and an autoscaler that may start two nodes: python -m tests.runtime.autoscaled RUN.

The units wait until they were begun on both nodes. Prints one JSON line: among others, the nodes that lived meanwhile,
and once the request was withdrawn. A process of its own, which kills the Ray that it starts and no other.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from datadream.config import ClusterConfig
from datadream.run.store import RunStore
from datadream.runtime.session import connected
from datadream.runtime.unit import Unit
from datadream.runtime.worker_groups import Leased, run_leased
from tests.processes import wait_until

N_UNITS = 4
MOST_NODES = 2
SECONDS_TO_JOIN = 150.0
FAKE = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
"""Under its own name Ray reads a file of defaults that its wheel lacks (2.60)."""
COMMANDS = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
CPUS = 2


class Worker:
    def group_size(self, most: int) -> int:
        return most

    def work(self, group, heartbeat) -> dict:
        begun = Path(group.units[0].run_url) / "begun"
        begun.mkdir(exist_ok=True)
        (begun / ray.get_runtime_context().get_node_id()).touch()
        wait_until(lambda: len(list(begun.iterdir())) == MOST_NODES, SECONDS_TO_JOIN)
        for unit in group.units:
            unit.store.write_json(unit.marker, {})
        return {}


def load(_, device) -> Worker:
    return Worker()


def start_head(folder: str) -> tuple[subprocess.Popen, str]:
    with socket.socket() as free:
        free.bind(("", 0))
        address = f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": CPUS}, "node_config": {}, "min_workers": 0, "max_workers": MOST_NODES},
    }
    provider = {"type": "external", "module": FAKE, "gcs_address": address}
    provider |= {"launch_multiple": True, "disable_node_updaters": True, "head_node_id": FAKE_HEAD_NODE_ID}
    config = {
        "cluster_name": "fake",
        "max_workers": MOST_NODES,
        "idle_timeout_minutes": 0.1,
        "provider": provider,
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        **{f"{name}_commands": [] for name in COMMANDS},
        **{"auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [], "rsync_filter": []},
        **{"rsync_exclude": [], "file_mounts_sync_continuously": False},
    }
    Path(folder, "autoscaling.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"]
    command += [f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
    command += [f"--autoscaling-config={folder}/autoscaling.json", f"--temp-dir={folder}"]
    environment = os.environ | {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    with open(Path(folder, "head.log"), "w") as log:
        head = subprocess.Popen(command, env=environment, start_new_session=True, stdout=log, stderr=log)
    return head, address


def n_workers() -> int:
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())


def main(run: str) -> None:
    store = RunStore(run)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        head, address = start_head(folder)
        try:
            wait_until(lambda: _answers(address), SECONDS_TO_JOIN)
            units = [Unit(run_url=run, name=f"unit {i}", marker=f"{i}.json", payload=None) for i in range(N_UNITS)]
            # As many are asked for as there are units, which its autoscaler starts as far as it may.
            config = ClusterConfig(address=address, device="cpu", wait_minutes=2)
            with connected(config, n_units=N_UNITS) as workers:
                how = Leased(load, None, 1, 1, 60.0)
                failures, _ = run_leased(store, units, [False] * N_UNITS, how, workers, lambda _: None)
                meanwhile = n_workers()
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            wait_until(lambda: n_workers() == 0, SECONDS_TO_JOIN)
            done = sum(store.exists(unit.marker) for unit in units)
            print(json.dumps({"done": done, "failures": len(failures), "nodes": [meanwhile, n_workers()]}))
            ray.shutdown()
        finally:
            os.killpg(head.pid, signal.SIGKILL)


def _answers(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1])
