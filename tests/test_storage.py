"""Runs on a cluster whose object store throttles, goes away and comes back, or stays away; and two runs at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datadream import recipes
from datadream.run.store import RunStore
from tests.object_store import ObjectStore, object_store
from tests.processes import ended
from tests.ray_nodes import ray_nodes
from tests.tiny_clip import save_tiny_clip

pytestmark = pytest.mark.timeout(1200)

SECONDS_AWAY = 25.0
SECONDS_FOR_A_RUN = 500.0
FEW_HEARTBEATS = "import sys; from datadream.run import lock; lock.LOST_HEARTBEATS = 2; "
MAIN = "from datadream.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Three nodes; two runs of two workers find room, and beside them Ray Data's tasks."""
    with ray_nodes(1, 2, 2) as address:
        yield address


@pytest.fixture(scope="module")
def config(pipeline_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    changes = {
        "diffusion.model": str(pipeline_folder),
        "data.n_shots": 2,
        "adapt.steps_per_class": 20,
        "adapt.batch_size": 2,
        "adapt.adapters_per_step": 1,
        "generate.images_per_class": 6,
        "generate.chunk_size": 2,
        "generate.steps": 10,
        "generate.images_per_shard": 25,
        "classify.model": f"local-dir:{save_tiny_clip(folder / 'clip')}",
        "classify.settings": ["real+synthetic"],
        "classify.steps": 60,
        "cluster.workers": 2,
        "cluster.checkpoint_steps": 10,
        "cluster.device": "cpu",
    }
    (folder / "config.yaml").write_text(recipes.digits(**changes).model_dump_json())  # JSON is YAML
    return folder / "config.yaml"


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@contextmanager
def started(config: Path, run: str, address: str, code: str = f"import sys; {MAIN}") -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", code, "run", "--config", str(config), "--run", run]
    # The cluster asks for no token, and a driver that has one would refuse to answer it.
    environment = os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    try:
        yield process
    finally:
        ended(process)


def finish(process: subprocess.Popen) -> None:
    said = process.communicate(timeout=SECONDS_FOR_A_RUN)[1]
    assert process.returncode == 0, said


def wait_for(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_FOR_A_RUN
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def bytes_of(run: str) -> dict[str, bytes]:
    """What must not depend on what went wrong."""
    store = RunStore(run)
    names = set().union(*map(store.files, ("adapters", "chunks", "dataset", "classifier")))
    kept = (name for name in names if name.endswith((".safetensors", ".parquet")) or name.startswith("chunks/"))
    return {name: store.read_bytes(name) for name in kept} | {"metrics.json": store.read_bytes("metrics.json")}


@pytest.fixture(scope="module")
def quiet(config, address, tmp_path_factory) -> dict[str, bytes]:
    run = str(tmp_path_factory.mktemp("quiet") / "run")
    with started(config, run, address) as process:
        finish(process)
    return bytes_of(run)


@pytest.mark.soak
def test_two_users_at_once_on_one_cluster_get_what_each_gets_alone(config, address, quiet, tmp_path):
    runs = [str(tmp_path / user) for user in ("ann", "bob")]
    with started(config, runs[0], address) as one, started(config, runs[1], address) as other:
        finish(one)
        finish(other)
    assert bytes_of(runs[0]) == bytes_of(runs[1]) == quiet


@pytest.mark.slow
def test_a_store_that_refuses_one_request_in_twenty_changes_nothing(config, address, quiet, store):
    store.busy_share = 0.05
    with started(config, f"{store.url}/run", address) as process:
        finish(process)
    assert store.refused > 20
    store.busy_share = 0.0
    assert bytes_of(f"{store.url}/run") == quiet


@pytest.mark.slow
def test_a_store_that_is_away_for_25_seconds_changes_nothing(config, address, quiet, store):
    run = RunStore(f"{store.url}/run")
    with started(config, run.url, address) as process:
        for sign in ("adapters/class-00000/adapter.json", "chunks", "classifier/real+synthetic/checkpoints"):
            wait_for(process, lambda sign=sign: run.exists(sign))
            port = store.port
            store.stop()
            time.sleep(SECONDS_AWAY)
            store.start(port)
        finish(process)
    assert bytes_of(run.url) == quiet


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_run_with_one_line(config, address, store):
    run = RunStore(f"{store.url}/run")
    with started(config, run.url, address, FEW_HEARTBEATS + MAIN) as process:
        wait_for(process, lambda: run.exists("adapters/class-00000/adapter.json"))
        store.stop()
        said = process.communicate(timeout=SECONDS_FOR_A_RUN)[1]
    assert process.returncode == 1, said
    (line,) = [line for line in said.splitlines() if line.startswith("datadream: the run's storage")]
    assert "could not be reached for" in line
    assert "the same command goes on from there" in said.splitlines()[-1]


@pytest.mark.slow
def test_a_store_that_is_not_there_is_one_line_before_work(config, address, store):
    store.stop()
    with started(config, f"{store.url}/run", address) as process:
        said = process.communicate(timeout=SECONDS_FOR_A_RUN)[1]
    assert process.returncode == 2, said
    assert len([line for line in said.splitlines() if line.startswith("datadream: ")]) == 1
    assert "Could not connect to the endpoint URL" in said
