"""Guidance that does nothing twice predicts what the plain UNet predicts."""

import copy

import pytest
import torch

from datadream.models.diffusion.guidance import KeptPrompts, SharedPrefix
from datadream.models.diffusion.pipeline import load_pipeline


@pytest.fixture(scope="module")
def pipeline(pipeline_folder):
    return load_pipeline(str(pipeline_folder), None, torch.device("cpu"), torch.float32)


@pytest.fixture
def unet(pipeline):
    return copy.deepcopy(pipeline.unet)


def latents_and_prompts(pipeline, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = [
        pipeline.tokenizer(text, padding="max_length", return_tensors="pt").input_ids for text in ("", "a photo")
    ]
    with torch.no_grad():
        prompts = pipeline.text_encoder(torch.cat(tokens))[0]
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(0)), prompts


@torch.no_grad()
def test_equal_halves_and_kept_prompts_change_nothing(pipeline, unet):
    latents, prompts = latents_and_prompts(pipeline, 3)
    both, time = torch.cat([latents, latents]), torch.tensor(500)
    expected = pipeline.unet(both, time, prompts.repeat_interleave(3, dim=0)).sample
    KeptPrompts(unet)
    prefix = SharedPrefix(unet)
    for _ in range(2):
        with prefix.halved():
            found = unet(both, time, prompts).sample
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_prefix_sees_one_half_and_the_prompts_are_projected_once(pipeline, unet):
    latents, prompts = latents_and_prompts(pipeline, 3)
    kept, prefix = KeptPrompts(unet), SharedPrefix(unet)
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    queries, keys = [], []
    block.attn1.to_q.register_forward_pre_hook(lambda module, inputs: queries.append(len(inputs[0])))
    block.attn2.to_k.register_forward_pre_hook(lambda module, inputs: keys.append(len(inputs[0])))
    for _ in range(3):
        with prefix.halved():
            unet(torch.cat([latents, latents]), torch.tensor(500), prompts)
    assert queries == [3, 3, 3]
    assert keys == [2]
    kept.forget()
    unet(latents, torch.tensor(500), prompts[1:])
    assert queries[-1] == 3
    assert keys == [2, 1]
