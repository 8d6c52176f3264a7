"""Models without weights have the sizes of the published ones."""

import torch

from benchmarks.shapes import SHAPES


def test_sd21_has_the_published_sizes():
    """Stable Diffusion 2.1-base's parts and ViT-B/16, on tensors without data."""
    pipeline = SHAPES["sd21"].pipeline("meta", torch.bfloat16)
    sizes = [
        sum(parameter.numel() for parameter in module.parameters())
        for module in (pipeline.unet, pipeline.text_encoder, pipeline.vae)
    ]
    assert sizes == [865_910_724, 340_387_840, 83_653_863]
    tokens = pipeline.tokenizer("a photo of a digit", padding="max_length", return_tensors="pt").input_ids
    assert tokens.shape == (1, 77)
    clip = SHAPES["sd21"].classifier("meta")
    assert sum(parameter.numel() for parameter in clip.model.parameters()) == 149_620_737
    assert clip.size == 224


def test_the_tiny_pipeline_is_the_embedded_one():
    pipeline = SHAPES["tiny"].pipeline("cpu", torch.float32)
    assert pipeline.unet.config.sample_size * pipeline.vae_scale_factor == SHAPES["tiny"].resolution
