"""Many adapters on real Ray: the files that one process would make, and what fails stops nothing else."""

import os
import posixpath
import shutil

import pytest
import torch

from datadream import recipes
from datadream.adapt.artifacts import commit_adapter
from datadream.adapt.stage import FAILED_ADAPTERS, WORKER_USAGE, train_adapters
from datadream.adapt.worker import PhotosOf, load_trainer
from datadream.data.datasets import open_source
from datadream.data.few_shot import draw
from datadream.methods import METHODS
from datadream.methods.base import AdapterSpec, TrainingPhoto
from datadream.run.layout import adapter_weights
from datadream.run.store import RunStore
from datadream.runtime.session import Workers
from datadream.runtime.work_queue import AdapterJob

TWO = Workers(2, 1, False)


@pytest.fixture(scope="module")
def config(pipeline_folder):
    changes = {
        "diffusion.model": str(pipeline_folder),
        "data.n_shots": 2,
        "adapt.steps_per_class": 6,
        "adapt.batch_size": 2,
        "adapt.adapters_per_step": 2,
    }
    return recipes.digits(**changes)


def jobs(store: RunStore, config, n: int = 4) -> list[AdapterJob]:
    few_shot = draw(open_source("digits").dataset(), 2, 0, config.data.prompt)
    return [AdapterJob(store.url, spec, 6) for spec in METHODS["datadream-cls"](few_shot, config).adapters[:n]]


def weights(store: RunStore, made: list[AdapterJob]) -> list[bytes]:
    return [store.read_bytes(adapter_weights(job.spec.adapter_id)) for job in made]


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> RunStore:
    """The same groups, trained in this process."""
    store = RunStore(str(tmp_path_factory.mktemp("one")))
    trainer = load_trainer(config, torch.device("cpu"))
    source, made = open_source("digits"), jobs(store, config)
    for group in (made[:2], made[2:]):
        photos = [PhotosOf(job.spec, source) for job in group]
        for job, trained in zip(group, trainer.train([job.spec for job in group], photos), strict=True):
            commit_adapter(job, trained, config)
    return store


@pytest.mark.usefixtures("local_ray")
def test_two_workers_make_the_same_files_skip_what_is_committed_and_outlive_a_failure(undisturbed, config, tmp_path):
    store = RunStore(str(tmp_path))
    made = jobs(store, config)
    first = posixpath.dirname(made[0].marker)
    shutil.copytree(undisturbed.path(first), store.path(first))
    before = os.stat(store.path(made[0].marker)).st_mtime_ns
    lost = AdapterSpec("lost", (TrainingPhoto("digits/none", "a photo"),), 1, 0)
    with pytest.raises(RuntimeError, match=r"1 of 5 adapters failed:\n  lost: invalid literal"):
        train_adapters(store, [*made, AdapterJob(store.url, lost, 6)], config, TWO)
    assert not store.exists("adapters/lost")
    assert store.read_json(FAILED_ADAPTERS)[0].startswith("lost: invalid literal")
    assert os.stat(store.path(made[0].marker)).st_mtime_ns == before
    assert weights(store, made) == weights(undisturbed, made)
    assert sorted(path.name for path in os.scandir(store.root)) == ["adapters", "stages"]
    usage = store.read_json(WORKER_USAGE)
    assert usage["workers"] in (1, 2)  # one may have done all before the other was there
    assert 0 < usage["busy_seconds"] <= usage["seconds"]
    marker = store.read_json(made[1].marker)
    assert marker["steps"] == 6
    assert marker["rank"] == 16
