"""Compiled blocks stay compiled over all batch sizes that a worker meets."""

from copy import deepcopy

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch._dynamo.utils import counters

from datadream.config import GenerateConfig
from datadream.generate.denoise import Denoiser
from datadream.models.diffusion.compile import compile_blocks

LIMIT_WORDS = "recompile limit"


@pytest.fixture
def unet() -> UNet2DConditionModel:
    """Four levels, as Stable Diffusion 2.1 has, and thin."""
    torch.manual_seed(0)
    down, up = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 24, 32),
        down_block_types=(*down, "DownBlock2D"),
        up_block_types=("UpBlock2D", *up),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=[1, 2, 3, 4],
        cross_attention_dim=16,
        use_linear_projection=True,
    ).eval()


@pytest.mark.slow
def test_no_batch_size_of_a_chunk_is_given_up(unet):
    """torch keeps 8 graphs unless it is told otherwise: the second size used to run uncompiled without a word."""
    torch._dynamo.reset()
    counters.clear()
    scheduler, settings = DDIMScheduler(clip_sample=False), GenerateConfig(steps=3, guidance_interval=(0.0, 0.5))
    plain, compiled = (Denoiser(each, scheduler, settings) for each in (deepcopy(unet), unet))
    compile_blocks(unet, backend="eager")
    prompts, graphs = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)), []
    for size in (13, 25, 50, 7, 13, 25, 50, 7):
        latents = torch.randn(size, 4, 8, 8, generator=torch.Generator().manual_seed(size))
        scheduler.set_timesteps(3)
        expected, found = (each.denoise(latents, scheduler.timesteps, prompts, []) for each in (plain, compiled))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert not [reason for reason in counters["unimplemented"] if LIMIT_WORDS in str(reason).lower()]
    assert graphs[3] == graphs[-1] <= 40
