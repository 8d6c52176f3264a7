"""Many adapters on real Ray: the files that one process would make, and what fails stops nothing else."""

import os
import posixpath
import shutil

import pytest
import torch

from datadream import recipes
from datadream.adapt.artifacts import commit_adapter
from datadream.adapt.stage import AdapterUnit, PhotosOf, adapter_units, load_trainer, train_adapters
from datadream.data.datasets import open_source
from datadream.data.few_shot import sample_shots
from datadream.methods import METHODS
from datadream.methods.base import AdapterSpec, TrainingPhoto
from datadream.run.layout import ADAPTER_WORKERS, FAILED_ADAPTERS, adapter_weights
from datadream.run.store import RunStore
from datadream.runtime.workers import Workers

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


def units_of(store: RunStore, config, n: int = 4) -> list[AdapterUnit]:
    few_shot = sample_shots(open_source("digits").dataset(), 2, 0, config.data.prompt)
    return adapter_units(store.url, METHODS["datadream-cls"](few_shot, config).adapters[:n], config.adapt)


def weights(store: RunStore, made: list[AdapterUnit]) -> list[bytes]:
    return [store.read_bytes(adapter_weights(unit.payload.adapter_id)) for unit in made]


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> RunStore:
    """The same groups, trained in this process."""
    store = RunStore(str(tmp_path_factory.mktemp("one")))
    trainer = load_trainer(config, torch.device("cpu"))
    source, made = open_source("digits"), units_of(store, config)
    for group in (made[:2], made[2:]):
        photos = [PhotosOf(unit.payload, source) for unit in group]
        for unit, trained in zip(group, trainer.train([unit.payload for unit in group], photos), strict=True):
            commit_adapter(store, unit.payload, trained, config)
    return store


@pytest.mark.soak
@pytest.mark.usefixtures("local_ray")
def test_two_workers_make_the_same_files_skip_what_is_committed_and_outlive_a_failure(undisturbed, config, tmp_path):
    store = RunStore(str(tmp_path))
    made = units_of(store, config)
    first = posixpath.dirname(made[0].marker)
    shutil.copytree(undisturbed.path(first), store.path(first))
    before = os.stat(store.path(made[0].marker)).st_mtime_ns
    lost = AdapterSpec("lost", (TrainingPhoto("digits/none", "a photo"),), 1, 0)
    with pytest.raises(RuntimeError, match=r"1 of 5 adapters failed:\n  lost: invalid literal"):
        train_adapters(store, [*made, *adapter_units(store.url, [lost], config.adapt)], config, TWO)
    assert not store.exists("adapters/lost")
    assert store.read_json(FAILED_ADAPTERS)[0].startswith("lost: invalid literal")
    assert os.stat(store.path(made[0].marker)).st_mtime_ns == before
    assert weights(store, made) == weights(undisturbed, made)
    assert sorted(path.name for path in os.scandir(store.root)) == ["adapters", "stages"]
    usage = store.read_json(ADAPTER_WORKERS)
    assert usage["workers"] in (1, 2)  # one may have done all before the other was there
    assert 0 < usage["busy_seconds"] <= usage["seconds"]
    marker = store.read_json(made[1].marker)
    assert marker["steps"] == 6
    assert marker["rank"] == 16
