"""Stable Diffusion pipelines through diffusers: check that there is one, and load it once per worker."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from datadream.models.source import resolve

PIPELINE_CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")


def load_pipeline(model: str, revision: str | None, device: torch.device, dtype: torch.dtype) -> StableDiffusionPipeline:
    """The whole pipeline, frozen and in evaluation mode."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        resolve(model), revision=revision, dtype=dtype, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        module.requires_grad_(False).eval()
    return pipeline.to(device)


def check_pipeline(model: str, revision: str | None) -> None:
    """Raises ValueError when `model` is no Stable Diffusion pipeline, without loading its weights."""
    index = _read_index(model, revision)
    found = index.get("_class_name")
    if found not in PIPELINE_CLASSES:
        raise ValueError(f"diffusion.model {model!r} is a {found}: need a Stable Diffusion pipeline (model_index.json of {PIPELINE_CLASSES[0]}).")


def _read_index(model: str, revision: str | None) -> dict:
    fix = "Give a folder saved by diffusers (it holds model_index.json), or a Hub id."
    try:
        folder = Path(resolve(model))
        if folder.exists():
            return json.loads((folder / "model_index.json").read_text())
        from huggingface_hub import hf_hub_download

        return json.loads(Path(hf_hub_download(model, "model_index.json", revision=revision)).read_text())
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"diffusion.model {model!r} is no diffusers pipeline: {reason} {fix}") from None
