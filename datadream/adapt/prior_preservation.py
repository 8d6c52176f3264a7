"""The preservation loss's samples (DreamBooth; paper, table 4): what the base generator makes of its prompts.

They stay latents: decoding and encoding them again would only blur them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from datadream.config import AdaptConfig
from datadream.hashing import derive_seed
from datadream.methods.base import AdapterSpec
from datadream.runtime.collectives import ALONE, Collectives

IMAGES_PER_CALL = 8
# diffusers' DreamBooth script generates its class images with the pipeline's defaults, which are these two.
GUIDANCE, STEPS = 7.5, 50


@dataclass(frozen=True, slots=True)
class Prior:
    """Samples of the base generator."""

    latents: Tensor
    """[samples, 4, h, w], as the UNet sees them."""
    prompts: list[str]
    """One for each sample."""
    weight: float
    """Of the preservation loss, beside 1 for the photos."""


def sample_priors(
    pipeline: StableDiffusionPipeline,
    specs: Sequence[AdapterSpec],
    config: AdaptConfig,
    resolution: int,
    collectives: Collectives = ALONE,
    alive: Callable[[], None] = lambda: None,
) -> list[Prior | None]:
    """`config.prior_images` samples for each prompt of each adapter; None for all without `config.prior_weight`.

    The pipeline's adapters must be fresh, for then they change nothing. Each rank generates its share. `alive` is
    called now and then, for this takes long.
    """
    if not config.prior_weight:
        return [None] * len(specs)
    dtype, side = pipeline.unet.dtype, resolution // pipeline.vae_scale_factor
    per_call = IMAGES_PER_CALL * len(specs)  # stacked adapters take batches that they divide
    priors: list[Prior | None] = []
    for spec in specs:
        prompts = sorted({photo.prompt for photo in spec.photos})
        samples = [(prompt, number) for prompt in prompts for number in range(config.prior_images)]
        latents = torch.zeros((len(samples), pipeline.unet.config.in_channels, side, side), device=pipeline.device)
        own = collectives.share(len(samples))
        for start in range(own.start, own.stop, per_call):
            rows = range(start, min(start + per_call, own.stop))
            # The last call is filled up with its last sample: every call has the same size.
            filled = [samples[row] for row in (*rows, *[rows[-1]] * (per_call - len(rows)))]
            seeds = [derive_seed(spec.seed, "prior", prompt, number) for prompt, number in filled]
            with torch.autocast(pipeline.device.type, dtype=dtype, enabled=dtype != torch.float32):
                generated = pipeline(
                    [prompt for prompt, _ in filled],
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    height=resolution,
                    width=resolution,
                    num_inference_steps=STEPS,
                    guidance_scale=GUIDANCE,
                    output_type="latent",
                ).images
            latents[rows.start : rows.stop] = generated[: len(rows)].float()
            alive()
        # Others' rows are zero in ours, so that the sum is all ranks' samples.
        collectives.sum(latents)
        priors.append(Prior(latents, [prompt for prompt, _ in samples], config.prior_weight))
    return priors
