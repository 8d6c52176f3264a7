"""Models without weights have the sizes of the published ones."""

import numpy as np
import pytest
import torch

from benchmarks import adapt, generate, shapes
from benchmarks.shapes import SHAPES, Shapes


@pytest.fixture
def narrow(monkeypatch) -> Shapes:
    """Made as sd21 is, with as many levels, but narrow and for images of 64 pixels."""
    levels = [32, 32, 64, 64]
    unet = {"sample_size": 8, "block_out_channels": levels, "cross_attention_dim": 32, "attention_head_dim": 8}
    monkeypatch.setattr(shapes, "UNET", shapes.UNET | unet)
    monkeypatch.setattr(shapes, "VAE", shapes.VAE | {"block_out_channels": levels})
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setattr(shapes, "TEXT", text)
    return Shapes(resolution=64, embedded=False, clip=SHAPES["tiny"].clip)


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


def test_arms_of_training_run_on_models_that_are_made(narrow, tmp_path):
    folders = adapt.write_photos(tmp_path, narrow)
    plain = adapt.plain_trainer(narrow, folders[0], "cpu")
    assert np.isfinite(plain.step(plain.read()))
    ours = adapt.OurSteps(narrow, folders[:2], "cpu")
    before = ours._training._lora.weights.detach().clone()
    for _ in range(2):  # the first is the warm-up's, of rate zero
        ours.step()
    assert not torch.equal(ours._training._lora.weights, before)


def test_arms_of_generating_draw_the_same_images_on_models_that_are_made(narrow, tmp_path):
    (folder,) = generate.write_adapters(tmp_path, 1, narrow)
    plain = generate.load(narrow, "cpu")
    plain.load_lora_weights(folder)
    expected = [np.asarray(image, int) for image in generate.draw_plain(plain, range(3), steps=3, batch=2)]
    sampler = generate.our_sampler(generate.load(narrow, "cpu"), narrow, steps=50)
    found = generate.draw_ours(generate.with_steps(sampler, 3), folder, range(3)).astype(int)
    assert found.shape == (3, 64, 64, 3)
    assert np.std(found) > 1
    assert np.abs(found - np.stack(expected)).max() <= generate.TOLERANCE
