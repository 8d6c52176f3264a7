"""Images of a GPU in half precision are as near to the exact ones as those of plain diffusers."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from datadream.generate.sampler import Sampler
from datadream.models.diffusion.merge import InPlaceMerger
from datadream.models.diffusion.pipeline import load_pipeline
from datadream.run.layout import ADAPTER_WEIGHTS
from tests.generate.test_sampler import CONFIG, PROMPT, read_photo, requests
from tests.gpu.memory import memory_for
from tests.models.adapters import random_adapter
from tests.tiny_models import save_pipeline

HALVES = [torch.float16, torch.bfloat16]
NO_WORSE = 1.25
"""Times plain diffusers' own error, to which rounding has led it by chance."""


@pytest.mark.parametrize("scheduler", [None, "PNDMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_images_are_those_of_plain_diffusers(tmp_path, device, scheduler, prediction_type):
    """With the pipeline's own scheduler, DDIM, that of Stable Diffusion 2.1, and that of the presets."""
    folder = save_pipeline(tmp_path, prediction_type)
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(random_adapter(folder, 1, scale=0.2))

    def plain(dtype: torch.dtype) -> np.ndarray:
        pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=dtype).to(device)
        pipeline.load_lora_weights(tmp_path)
        if scheduler:
            pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
        generators = [torch.Generator().manual_seed(100 + i) for i in range(3)]
        settings = {"num_inference_steps": CONFIG.steps, "guidance_scale": 2.0, "output_type": "np"}
        return 255 * pipeline([PROMPT] * 3, generator=generators, **settings).images

    def ours(dtype: torch.dtype) -> np.ndarray:
        config = CONFIG.model_copy(update={"scheduler": scheduler})
        sampler = Sampler(load_pipeline(str(folder), None, device, dtype), config, 32)
        read_adapter = (tmp_path / ADAPTER_WEIGHTS).read_bytes
        return sampler.generate(requests(3, "class-1"), lambda _: read_adapter(), read_photo).astype(float)

    exact = plain(torch.float32)
    assert exact.std() > 1
    assert np.abs(ours(torch.float32) - exact).max() <= 2
    for dtype in HALVES if device.type == "cuda" else HALVES[1:]:  # fp16 is slow on CPUs
        own, theirs = (np.abs(draw(dtype) - exact).mean() for draw in (ours, plain))
        # Half a level is what uint8 adds.
        assert own <= NO_WORSE * theirs + 0.5, (dtype, own, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_merging_leaves_no_trace(pipeline_folder, device, dtype):
    pipeline = load_pipeline(str(pipeline_folder), None, device, dtype)
    modules = (pipeline.unet, pipeline.text_encoder)
    one, other = (random_adapter(pipeline_folder, seed, scale=0.2) for seed in (1, 2))
    merger = InPlaceMerger(pipeline)

    def merged(*adapters: tuple[bytes, float]) -> list[torch.Tensor]:
        merger.merge(adapters)
        return [weight.clone() for module in modules for weight in module.parameters()]

    def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
        return all(map(torch.equal, left, right))

    base, first = merged(), merged((one, 1.0))
    assert not same(first, base)
    merged((other, 0.7), (one, 0.3))
    assert same(merged((one, 1.0)), first)
    assert same(merged(), base)


def test_where_memory_ends_the_batch_is_halved_and_the_images_stay(pipeline_folder, device, caplog):
    n, fitting = (512, 64) if device.type == "cuda" else (7, 3)
    adapter = random_adapter(pipeline_folder, 1, scale=0.2)
    sampler = Sampler(load_pipeline(str(pipeline_folder), None, device, torch.float32), CONFIG, 32)

    def draw(batch_size: int) -> np.ndarray:
        sampler.batch_size = batch_size
        return sampler.generate(requests(n, "class-1"), lambda _: adapter, read_photo).astype(int)

    with memory_for(device, lambda: draw(fitting), sampler._denoiser, "denoise", most=fitting) as expected:
        found = draw(n)
    assert fitting <= 2 * sampler.batch_size < 2 * n
    assert "out of memory: going on with" in caplog.text
    assert np.abs(found - expected).max() <= 1
