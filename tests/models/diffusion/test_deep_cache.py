"""Reused blocks are not computed, and the steps between are close to those that compute everything."""

import copy

import pytest
import torch

from datadream.models.diffusion.deep_cache import DeepCache
from datadream.models.diffusion.pipeline import load_pipeline


@pytest.fixture(scope="module")
def unet(pipeline_folder):
    return load_pipeline(str(pipeline_folder), None, torch.device("cpu"), torch.float32).unet


def inputs(n: int, seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(n, 4, 8, 8, generator=rng),
        "encoder_hidden_states": torch.randn(n, 24, 32, generator=rng),
    }


@torch.no_grad()
def test_inner_blocks_run_at_every_other_step_and_the_rest_sees_what_they_gave(unet):
    cached = copy.deepcopy(unet)
    cache, middles = DeepCache(cached, interval=2), []
    cached.mid_block.resnets[0].register_forward_hook(lambda *_: middles.append(1))
    given = inputs(2, seed=0)
    expected = unet(timestep=500, **given).sample
    for number in range(4):
        with cache.step(number, 2):
            # The same input again, so that a reused feature is the one that would be computed.
            torch.testing.assert_close(cached(timestep=500, **given).sample, expected, rtol=1e-4, atol=1e-5)
    assert len(middles) == 2
    with cache.step(1, 2):
        other = cached(timestep=500, **inputs(2, seed=1)).sample
    assert (other - unet(timestep=500, **inputs(2, seed=1)).sample).abs().max() > 1e-3


@torch.no_grad()
def test_nothing_is_reused_of_another_image_or_of_a_batch_of_another_size(unet):
    cached = copy.deepcopy(unet)
    cache = DeepCache(cached, interval=2)
    for number, n in ((0, 2), (1, 4)):
        given = inputs(n, seed=number)
        with cache.step(number, n):
            found = cached(timestep=500, **given).sample
        torch.testing.assert_close(found, unet(timestep=500, **given).sample, rtol=1e-4, atol=1e-5)
    cache.forget()
    with cache.step(1, 4):
        found = cached(timestep=500, **inputs(4, seed=3)).sample
    torch.testing.assert_close(found, unet(timestep=500, **inputs(4, seed=3)).sample, rtol=1e-4, atol=1e-5)
