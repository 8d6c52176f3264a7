"""Stable Diffusion pipelines through diffusers, loaded once per worker."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline

from datadream.models.source import resolve


def load_pipeline(
    model: str, revision: str | None, device: torch.device, dtype: torch.dtype
) -> StableDiffusionPipeline:
    """The whole pipeline, frozen and in evaluation mode."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        resolve(model), revision=revision, dtype=dtype, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        module.requires_grad_(False).eval()
    return pipeline.to(device)
