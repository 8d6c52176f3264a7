"""Requests in, pixels out, on one device: no Ray.

The base model stays loaded, a LoRA is merged into it in place, and diffusers' own pipeline draws, so that an image is
the one that plain diffusers draws with the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from datadream.config import GenerateConfig, nearest
from datadream.methods.base import ImageRequest
from datadream.models.merge import InPlaceMerger


class Sampler:
    """Draws batches of images that share an adapter and a prompt."""

    def __init__(self, pipeline: StableDiffusionPipeline, config: GenerateConfig, resolution: int) -> None:
        """Raises ValueError when `config.scheduler` is no diffusers scheduler."""
        pipeline.scheduler = make_scheduler(pipeline, config.scheduler)
        self._from_noise = pipeline
        self._from_photo = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
        self._from_photo.set_progress_bar_config(disable=True)
        self._config, self._resolution = config, resolution
        self._merger = InPlaceMerger(pipeline)
        self._merged: str | None = None

    def draw(
        self,
        requests: Sequence[ImageRequest],
        read_adapter: Callable[[str], bytes],
        read_photo: Callable[[str], Image.Image],
    ) -> np.ndarray:
        """Images [n, height, width, 3], uint8, in the order of `requests`, which share adapter, prompt and
        strength."""
        first = requests[0]
        self._use_adapter(first.adapter_id, read_adapter)
        shared = {
            **self._embeddings(first.prompt, len(requests)),
            "generator": [torch.Generator().manual_seed(request.seed) for request in requests],
            "num_inference_steps": self._config.steps,
            "guidance_scale": self._config.guidance_scale,
            "output_type": "pt",
        }
        if first.source_key is None:
            drawn = self._from_noise(height=self._resolution, width=self._resolution, **shared)
        else:
            photos = [centre_square(read_photo(request.source_key), self._resolution) for request in requests]
            drawn = self._from_photo(image=photos, strength=first.strength, **shared)
        return (drawn.images.permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8).cpu().numpy()

    def _use_adapter(self, adapter_id: str | None, read_adapter: Callable[[str], bytes]) -> None:
        if adapter_id != self._merged:
            self._merger.merge(None if adapter_id is None else read_adapter(adapter_id))
            self._merged = adapter_id

    def _embeddings(self, prompt: str, n: int) -> dict[str, torch.Tensor]:
        """The prompt and the empty prompt, encoded once for the batch."""
        guided = self._config.guidance_scale > 1
        positive, negative = self._from_noise.encode_prompt(
            prompt, self._from_noise.device, 1, guided, negative_prompt=""
        )
        repeated = {"prompt_embeds": positive.expand(n, -1, -1)}
        return {**repeated, "negative_prompt_embeds": negative.expand(n, -1, -1)} if guided else repeated


def make_scheduler(pipeline: StableDiffusionPipeline, name: str | None) -> diffusers.SchedulerMixin:
    """A scheduler class by name, with the noise schedule that the pipeline was trained with."""
    if name is None:
        return pipeline.scheduler
    kinds = [kind.__name__ for kind in pipeline.scheduler.compatibles]
    if name not in kinds:
        raise ValueError(
            f"generate.scheduler is {name!r}: no diffusers scheduler that fits this pipeline. {nearest(name, kinds)}"
        )
    return getattr(diffusers, name).from_config(pipeline.scheduler.config)


def centre_square(image: Image.Image, pixels: int) -> Image.Image:
    """The middle square of a photo, `pixels` wide."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((pixels, pixels), Image.Resampling.BICUBIC)
