"""Stable Diffusion pipelines through diffusers, loaded once per worker."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline

from datadream.models.source import check_pipeline, resolve


def load_pipeline(
    model: str, revision: str | None, device: torch.device, dtype: torch.dtype
) -> StableDiffusionPipeline:
    """The whole pipeline, frozen and in evaluation mode; weights are cast to `dtype`, whatever they are saved as.

    Raises ValueError when it is no Stable Diffusion pipeline, or a part has no weights.
    """
    # Neither the safety checker nor its image processor looks at an image here, and folders that are passed on often
    # lack them.
    pipeline = StableDiffusionPipeline.from_pretrained(
        resolve(model),
        revision=revision,
        variant=check_pipeline(model, revision),
        dtype=dtype,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        module.requires_grad_(False).eval()
    return pipeline.to(device)
