"""Many adapters on real Ray: the same files for any number of workers, and a dead worker costs only what it held."""

import os
import posixpath
import shutil
import threading
import time

import psutil
import pytest

from datadream import recipes
from datadream.adapt.fan_out import AdapterJob, AdapterQueue, train_adapters
from datadream.cluster import Workers
from datadream.data.datasets import open_source
from datadream.data.few_shot import draw
from datadream.methods import METHODS
from datadream.methods.base import AdapterSpec, TrainingPhoto
from datadream.run_store import RunStore, adapter_weights

ONE, TWO = Workers(1, 1, False), Workers(2, 1, False)


@pytest.fixture(scope="module")
def config(pipeline_folder):
    changes = {
        "diffusion.model": str(pipeline_folder),
        "data.n_shots": 2,
        "adapt.steps_per_class": 6,
        "adapt.batch_size": 2,
    }
    return recipes.digits(**changes)


def jobs(store: RunStore, config, n: int = 4) -> list[AdapterJob]:
    few_shot = draw(open_source("digits").dataset(), 2, 0, config.data.prompt)
    return [AdapterJob(store.url, spec) for spec in METHODS["datadream-cls"](few_shot, config).adapters[:n]]


def weights(store: RunStore, made: list[AdapterJob]) -> list[bytes]:
    return [store.read_bytes(adapter_weights(job.spec.adapter_id)) for job in made]


@pytest.fixture(scope="module")
def undisturbed(local_ray, config, tmp_path_factory) -> RunStore:
    """A run whose adapters one worker trained."""
    store = RunStore(str(tmp_path_factory.mktemp("one")))
    train_adapters(store, jobs(store, config), config, ONE)
    assert sorted(path.name for path in os.scandir(store.root)) == ["adapters"]
    return store


def test_two_workers_make_the_same_files_and_skip_what_is_committed(undisturbed, config, tmp_path):
    store = RunStore(str(tmp_path))
    made = jobs(store, config)
    first = posixpath.dirname(made[0].marker)
    shutil.copytree(undisturbed.path(first), store.path(first))
    before = os.stat(store.path(made[0].marker)).st_mtime_ns
    train_adapters(store, made, config, TWO)
    assert os.stat(store.path(made[0].marker)).st_mtime_ns == before
    assert weights(store, made) == weights(undisturbed, made)
    marker = store.read_json(made[1].marker)
    assert marker["steps"] == 6
    assert marker["rank"] == 16


def test_a_killed_worker_is_replaced_and_the_result_is_the_same(undisturbed, config, tmp_path):
    store = RunStore(str(tmp_path))
    made = jobs(store, config)
    killed: list[int] = []
    threading.Thread(target=_kill_a_worker_after_first_commit, args=(store, made, killed), daemon=True).start()
    train_adapters(store, made, config, TWO)
    assert killed
    assert weights(store, made) == weights(undisturbed, made)


def _kill_a_worker_after_first_commit(store: RunStore, made: list[AdapterJob], killed: list[int]) -> None:
    while not any(job.is_committed() for job in made):
        time.sleep(0.02)
    # Only our own descendants: others may train on this machine.
    children = psutil.Process().children(recursive=True)
    worker = next(child for child in children if "RayTrainWorker" in " ".join(child.cmdline()))
    worker.kill()
    killed.append(worker.pid)


def test_a_failing_adapter_does_not_stop_the_others_and_is_told_with_its_cause(local_ray, config, tmp_path):
    store = RunStore(str(tmp_path))
    made = jobs(store, config, 2)
    lost = AdapterSpec("lost", (TrainingPhoto("digits/none", "a photo"),), 1, 0)
    with pytest.raises(RuntimeError, match=r"1 of 3 adapters failed: lost: invalid literal"):
        train_adapters(store, [AdapterJob(store.url, lost), *made], config, ONE)
    assert all(job.is_committed() for job in made)
    assert not store.exists("adapters/lost")


def test_queue_gives_a_replaced_worker_what_its_predecessor_held():
    specs = [AdapterJob("run", AdapterSpec(f"a{i}", (), 1, 0)) for i in range(3)]
    queue = AdapterQueue(specs)
    assert queue.lease(0) == specs[0]
    assert queue.lease(1) == specs[1]
    queue.report(0, 5)
    assert queue.finished_steps() == 5
    assert queue.lease(0) == specs[0]
    assert queue.finished_steps() == 0
    queue.finish(0, 10)
    assert queue.lease(0) == specs[2]
    queue.finish(1, 10)
    queue.finish(0, 10)
    assert queue.lease(0) is None
    assert queue.finished_steps() == 30
