"""Workers, drivers and nodes die: what is published is what an undisturbed run publishes, byte by byte."""

import json
import subprocess
import sys

import pytest

from datadream.hashing import sha256
from datadream.run.layout import adapter_marker, adapter_weights
from datadream.run.lock import RunLock
from datadream.run.store import RunStore
from datadream.runtime.workers import Workers
from tests.generate import chaos
from tests.models.adapters import random_adapter
from tests.object_store import s3_server

WATCHDOG_SECONDS = 400


def write_adapters(store: RunStore, adapters: list[bytes]) -> None:
    for label, weights in enumerate(adapters):
        store.write_bytes(adapter_weights(f"class-{label:05d}"), weights)
        store.write_json(adapter_marker(f"class-{label:05d}"), {"weights_sha256": sha256(weights)})


def files(store: RunStore, folder: str) -> dict[str, bytes]:
    """All that a listing shows there."""
    root = store.path(folder)
    return {path[len(root) + 1 :]: store.fs.cat_file(path) for path in store.fs.find(root)}


def published(store: RunStore, pipeline_folder, dataset_format: str) -> dict[str, bytes]:
    return files(chaos.cell_of(store, str(pipeline_folder), dataset_format).store, "dataset")


@pytest.fixture(scope="module")
def adapters(pipeline_folder):
    return [random_adapter(pipeline_folder, seed=label) for label in range(chaos.N_CLASSES)]


@pytest.fixture(scope="module")
def undisturbed(local_ray, pipeline_folder, adapters, tmp_path_factory):
    """The published folder in each format."""
    store = RunStore(str(tmp_path_factory.mktemp("undisturbed")))
    write_adapters(store, adapters)
    chaos.generate_and_publish(store, str(pipeline_folder), Workers(2, 1, False))
    return {name: published(store, pipeline_folder, name) for name in chaos.FORMATS}


@pytest.fixture(
    params=[
        pytest.param(("local", "generating"), marks=pytest.mark.soak, id="local"),
        pytest.param(("s3", "publishing"), marks=pytest.mark.slow, id="s3"),
    ]
)
def store_and_stage(request, tmp_path):
    """Where the run lies, and when its driver dies."""
    where, stage = request.param
    if where == "local":
        yield RunStore(str(tmp_path / "run")), stage
        return
    with s3_server() as url:
        yield RunStore(f"{url}/run"), stage


@pytest.mark.timeout(WATCHDOG_SECONDS + 60)
def test_whatever_dies_the_published_bytes_are_those_of_an_undisturbed_run(
    undisturbed, store_and_stage, adapters, pipeline_folder
):
    store, stage = store_and_stage
    write_adapters(store, adapters)
    command = [sys.executable, "-m", "tests.generate.chaos", str(pipeline_folder), store.url, "0", stage]
    process = subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG_SECONDS, check=True)
    # Ray may print after it.
    told = json.loads(next(line for line in process.stdout.splitlines() if line.startswith('{"killed"')))
    assert told["exit_code"] == 0
    assert len(told["killed"]) == 10, told
    assert {what for what, *_ in told["killed"]} == {"worker", "driver", "node", "replaced node"}
    for name in chaos.FORMATS:
        assert published(store, pipeline_folder, name) == undisturbed[name]
    chunks = chaos.cell_of(store, str(pipeline_folder), "parquet").chunks
    named = {f"{chunk.chunk_id}.{suffix}" for chunk in chunks for suffix in ("json", "parquet")}
    with RunLock(store):
        pass  # what the last of the killed was writing stays until somebody starts again
    assert set(files(store, "chunks")) == named
    assert not [path for path in store.fs.find(store.root) if path.endswith(".tmp")]
