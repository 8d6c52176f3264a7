"""The preservation loss: samples that plain diffusers makes with the base generator, weighted beside the photos."""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline

from datadream.adapt.prior_preservation import GUIDANCE, STEPS, sample_priors
from datadream.hashing import derive_seed
from datadream.models.diffusion.lora import StackedLora
from tests.adapt.test_train_shared import CONFIG, SPEC, assert_close, pipeline, train, train_by  # noqa: F401 - fixtures

WEIGHTED = CONFIG.model_copy(update={"prior_weight": 1.0, "prior_images": 2, "steps_per_class": 3})


def test_samples_are_those_of_the_plain_pipeline(pipeline, pipeline_folder):  # noqa: F811
    adapted = copy.deepcopy(pipeline)
    lora = StackedLora(adapted, 2, 4, True)
    for row in range(2):
        lora.reset(row, row)
    prior, _ = sample_priors(adapted, [SPEC, SPEC], WEIGHTED, 32)
    assert len(prior.latents) == len(prior.prompts) == 4
    plain = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    generator = torch.Generator().manual_seed(derive_seed(SPEC.seed, "prior", prior.prompts[3], 1))
    expected = plain(
        prior.prompts[3], generator=generator, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="latent"
    ).images[0]
    torch.testing.assert_close(prior.latents[3], expected, rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_photos_and_the_weighted_samples(train):  # noqa: F811
    first = [
        train(WEIGHTED.model_copy(update={"prior_weight": weight, "steps_per_class": 1})).losses[0]
        for weight in (0.0, 1.0, 3.0)
    ]
    assert first[1] > first[0]
    assert first[2] - first[0] == pytest.approx(3 * (first[1] - first[0]), rel=1e-4)


def test_ranks_share_the_generating(train):  # noqa: F811
    assert_close(train_by(train, 2, WEIGHTED)[0].weights, train(WEIGHTED).weights)
