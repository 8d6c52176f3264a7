"""What an adapter generates while it is trained (adapt.samples_every): a few images, for people to look at."""

from __future__ import annotations

import io

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image

from datadream.hashing import derive_seed
from datadream.methods.base import AdapterSpec
from datadream.models.diffusion.lora import StackedLora

IMAGES = 4
# DPM-Solver++ needs few steps for an image that can be judged; the guidance is that of generate.guidance_scale.
STEPS, GUIDANCE = 12, 2.0


@torch.no_grad()
def sample_images(
    pipeline: StableDiffusionPipeline, lora: StackedLora, row: int, spec: AdapterSpec, resolution: int
) -> bytes:
    """Four images of the adapter in `row`, two by two, as a PNG.

    Their noise and prompts are the same at every step, so that only the adapter differs. Nothing that training goes on
    from changes: they have generators of their own, and a scheduler.
    """
    scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    sampler = StableDiffusionPipeline(**pipeline.components | {"scheduler": scheduler}, requires_safety_checker=False)
    sampler.set_progress_bar_config(disable=True)
    prompts = sorted({photo.prompt for photo in spec.photos})
    seeds = [derive_seed(spec.seed, "sample", number) for number in range(IMAGES)]
    dtype = pipeline.unet.dtype
    with lora.alone(row), torch.autocast(pipeline.device.type, dtype=dtype, enabled=dtype != torch.float32):
        images = sampler(
            # Of many classes, evenly from the first to the last.
            [prompts[number * len(prompts) // IMAGES] for number in range(IMAGES)],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            height=resolution,
            width=resolution,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
        ).images
    sheet = Image.new("RGB", (2 * resolution, 2 * resolution))
    for number, image in enumerate(images):
        sheet.paste(image, (number % 2 * resolution, number // 2 * resolution))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
