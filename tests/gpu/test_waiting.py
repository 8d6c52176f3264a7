"""What is done at every step is told to a GPU without waiting for it: a loop that waits leaves it idle meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from datadream.classify.ingest.batches import LabelledImages
from datadream.config import ClassifyConfig
from datadream.generate.sampler import Sampler
from datadream.models.diffusion.pipeline import load_pipeline
from tests.adapt.test_lora_trainer import images, spec, trainer
from tests.classify.toy import augment_of, part, training_of, with_lora
from tests.generate.test_sampler import CONFIG, read_photo, requests
from tests.models.adapters import random_adapter
from tests.tiny_clip import PIXELS, save_tiny_clip


@contextmanager
def nothing_waits(device: torch.device) -> Iterator[None]:
    """In this block whatever waits for a GPU is an error; on a CPU there is nothing to wait for."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_waiting_is_seen(device):
    """What the other tests rely on."""
    ones = torch.ones(2, device=device)
    if device.type == "cpu":
        pytest.skip("there is nothing to wait for")
    with pytest.raises(RuntimeError, match="synchronizing"), nothing_waits(device):
        ones.sum().item()


@pytest.mark.parametrize("n_photos", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_adapters(pipeline_folder, device, dtype, n_photos):
    ours = trainer(pipeline_folder, device=device, dtype=dtype)
    training = ours._start([spec("a", 1, n_photos), spec("b", 2, n_photos)], [images(n_photos)] * 2, steps=20)
    for _ in range(4):  # until all crops and prompts have been seen
        training.step()
    with nothing_waits(device):
        for _ in range(4):
            training.step()
    assert training.curves().isfinite().all()


@pytest.mark.parametrize("scheduler", [None, "PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_a_batch_of_images_until_it_is_copied(pipeline_folder, device, scheduler):
    """From its noise to its pixels on their way to the CPU: the next batch can follow it at once."""
    config = CONFIG.model_copy(update={"scheduler": scheduler})
    sampler = Sampler(load_pipeline(str(pipeline_folder), None, device, torch.float32), config, 32)
    adapter = random_adapter(pipeline_folder, 1, scale=0.2)
    asked = requests(6, "class-1")
    expected = sampler.generate(asked, lambda _: adapter, read_photo)
    with torch.no_grad():
        prompts = sampler._prompts(asked[0].prompt)
        with nothing_waits(device):
            begun = [sampler._begin(asked[:3], prompts, read_photo), sampler._begin(asked[3:], prompts, read_photo)]
        found = [image.astype(int) for batch in begun for image in sampler._finish(batch)]
    assert max(abs(one - other).max() for one, other in zip(found, expected.astype(int), strict=True)) <= 1


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_step_of_a_classifier(tmp_path, device, dropout):
    """Of shots and synthetic images, mixed, with the paper's changes to them."""
    clip = with_lora(f"local-dir:{save_tiny_clip(tmp_path)}", device)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (20, 3, PIXELS, PIXELS), generator=rng).to(torch.uint8)
    pool = LabelledImages(pixels, torch.arange(20) % 3).to(device)
    settings = ClassifyConfig(steps=10, lora_dropout=dropout, mixup=1.0, cutmix=1.0, mix_probability=1.0)
    parts = [part(pool, 7, 0.8, seed=1), part(pool, 5, 0.2, seed=2)]
    training = training_of(clip, settings, parts, augment_of(clip, blur=0.5, solarize=0.2))
    for _ in range(2):
        training.step()
    with nothing_waits(device):
        for _ in range(4):
            training.step()
    assert 0 < training.mean_loss() < 10
