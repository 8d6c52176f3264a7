"""A small plan: two shots and four images of each of ten classes."""

import pytest

from datadream import recipes
from datadream.data.datasets import open_source
from datadream.data.few_shot import sample_shots


@pytest.fixture(scope="module")
def config(pipeline_folder):
    changes = {"diffusion.model": str(pipeline_folder), "generate.images_per_class": 4, "generate.steps": 2}
    return recipes.digits(method="is-synth", **changes | {"generate.chunk_size": 3, "generate.images_per_shard": 15})


@pytest.fixture(scope="module")
def few_shot(config):
    return sample_shots(open_source("digits").dataset(), 2, 0, config.data.prompt)
