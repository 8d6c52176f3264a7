"""Cached crops are plain VAE encodes, with the law of the random crop."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from datadream.adapt.latents import LatentCache, resize_shorter_side
from datadream.models.diffusion import load_pipeline


@pytest.fixture(scope="module")
def vae(pipeline_folder):
    return load_pipeline(str(pipeline_folder), None, torch.device("cpu"), torch.float32).vae


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_square_photo_is_encoded_once_and_equals_diffusers(vae):
    image = photo(32, 32)
    cache = LatentCache(vae, [image], 32, grid=8)
    sampled = torch.stack([cache.sample([0], torch.Generator().manual_seed(seed))[0] for seed in range(4000)])
    assert cache.encodes == 1
    pixels = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        plain = vae.encode(pixels).latent_dist
    scale = vae.config.scaling_factor
    torch.testing.assert_close(
        sampled.mean(0), plain.mean[0] * scale, atol=5 * scale * plain.std.max().item() / 60, rtol=0
    )
    torch.testing.assert_close(sampled.std(0), plain.std[0] * scale, rtol=0.1, atol=0)


@pytest.mark.parametrize("grid", [8, 1])
def test_crops_of_a_wide_photo_are_uniform_on_the_grid(vae, grid):
    cache = LatentCache(vae, [photo(56, 32)], 32, grid)
    generator = torch.Generator().manual_seed(0)
    lefts = Counter()
    for _ in range(400):
        before = set(cache._moments)
        cache.sample([0], generator)
        lefts.update(key[2] for key in set(cache._moments) - before)
    assert set(lefts) == set(range(0, 25, grid))
    assert cache.encodes == len(lefts)


def test_shorter_side_is_resized():
    assert resize_shorter_side(photo(100, 50), 32).size == (64, 32)
    assert resize_shorter_side(photo(20, 41), 32).size == (32, 66)
