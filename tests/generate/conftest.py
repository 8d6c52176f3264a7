"""A small plan: two shots and four images of each of ten classes."""

import pytest

from datadream import recipes
from datadream.data.datasets import open_source
from datadream.data.few_shot import sample_shots


@pytest.fixture(scope="module")
def config(pipeline_folder):
    changes = {
        "diffusion.model": str(pipeline_folder),
        "data.n_shots": 2,
        "generate.images_per_class": 4,
        "generate.steps": 2,
        "generate.chunk_size": 3,
        "generate.images_per_shard": 15,
    }
    return recipes.digits(method="is-synth", **changes)


@pytest.fixture(scope="module")
def few_shot(config):
    return sample_shots(open_source("digits").dataset(), config.data.n_shots, config.seed, config.data.prompt)
