"""Adapters with weights that were not trained, and what a pipeline makes of them."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from datadream.models.diffusion.lora import StackedLora
from datadream.models.diffusion.pipeline import load_pipeline


def random_adapter(
    pipeline_folder: Path, seed: int, scale: float = 0.1, rank: int = 4, text_encoder: bool = True
) -> bytes:
    """The file of an adapter whose B is not zero."""
    pipeline = load_pipeline(str(pipeline_folder), None, torch.device("cpu"), torch.float32)
    lora = StackedLora(pipeline, 1, rank=rank, text_encoder=text_encoder)
    generator = torch.Generator().manual_seed(seed)
    lora.weights.data.copy_(scale * torch.randn(lora.weights.shape, generator=generator))
    return lora.to_bytes(0)


def unet_output(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    """Noise predictions of two latents with one prompt."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    tokens = pipeline.tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        encoded = pipeline.text_encoder(tokens.expand(2, -1))[0]
        return pipeline.unet(latents, torch.tensor([10, 900]), encoded).sample
