"""Cached crops are plain VAE encodes, with the law of the random crop."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from datadream.adapt.latent_cache import LatentCache, resize_shorter_side
from datadream.models.diffusion.pipeline import load_pipeline


@pytest.fixture(scope="module")
def vae(pipeline_folder):
    return load_pipeline(str(pipeline_folder), None, torch.device("cpu"), torch.float32).vae


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def sample(cache: LatentCache, indices: list[int], generator: torch.Generator) -> torch.Tensor:
    return cache.latents(*cache.sample_crops(indices, generator))


def test_square_photo_is_encoded_once_and_equals_diffusers(vae):
    image = photo(32, 32)
    cache = LatentCache(vae, [image], 32, grid=8)
    sampled = torch.stack([sample(cache, [0], torch.Generator().manual_seed(seed))[0] for seed in range(4000)])
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
    crops, noise = cache.sample_crops([0] * 400, generator)
    lefts = Counter(crop.left for crop in crops)
    assert set(lefts) == set(range(0, 25, grid))
    assert max(lefts.values()) < 400 / len(lefts) + 5 * (400 / len(lefts)) ** 0.5
    cache.latents(crops, noise)
    assert cache.encodes == len(lefts)


def test_what_does_not_fit_is_read_and_encoded_again(vae, monkeypatch):
    """Two square photos: room for one of them, and for one crop."""
    monkeypatch.setattr("datadream.adapt.latent_cache.PHOTOS_BYTES", 3 * 32 * 32)
    tight = LatentCache(vae, [photo(32, 32), photo(33, 33)], 32, 8, moments_bytes=2 * 4 * 4 * 8 * 8)
    crops, noise = tight.sample_crops([0, 1, 0, 1], torch.Generator().manual_seed(0))
    monkeypatch.undo()
    roomy = LatentCache(vae, [photo(32, 32), photo(33, 33)], 32, 8)
    for encodes in ((2, 2), (3, 2)):  # a step meets a crop twice
        assert torch.equal(tight.latents(crops, noise), roomy.latents(crops, noise))
        assert (tight.encodes, roomy.encodes) == encodes


def test_crops_give_way_to_the_training(vae, monkeypatch):
    cache = LatentCache(vae, [photo(32, 32)], 32, 8)
    crops, noise = cache.sample_crops([0], torch.Generator().manual_seed(0))
    for free, encodes in ((2**29, 1), (2**31, 2), (2**29, 2)):
        monkeypatch.setattr("datadream.adapt.latent_cache.free_bytes", lambda device, free=free: free)
        cache.latents(crops, noise)
        assert cache.encodes == encodes


def test_a_crop_does_not_depend_on_those_encoded_with_it(vae, monkeypatch):
    """Batches of one size, as on a GPU, hold what an interrupted start left."""
    photos = [photo(56, 32), photo(32, 48)]
    alone, batched = (LatentCache(vae, photos, 32, 8) for _ in range(2))
    batched._encode_batch = 4
    crops, noise = alone.sample_crops([0, 1, 0, 1, 0, 1], torch.Generator().manual_seed(1))
    together = batched.latents(crops, noise)
    torch.testing.assert_close(together, alone.latents(crops, noise), atol=1e-5, rtol=1e-5)
    again = LatentCache(vae, photos, 32, 8)
    again._encode_batch = 4
    assert torch.equal(torch.cat([again.latents([crop], noise[i : i + 1]) for i, crop in enumerate(crops)]), together)


def test_shorter_side_is_resized():
    assert resize_shorter_side(photo(100, 50), 32).size == (64, 32)
    assert resize_shorter_side(photo(20, 41), 32).size == (32, 66)
