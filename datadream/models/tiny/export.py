"""Write the trained networks as the two half-precision folders that ship with the package."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from datadream.models.tiny.networks import build_scheduler, clip_config


def export_diffusion(
    folder: Path,
    *,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    """Write a StableDiffusionPipeline folder."""
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        unet=unet.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder)
    _make_portable(folder)


def export_clip(folder: Path, *, model: open_clip.CLIP, tokenizer: CLIPTokenizer) -> None:
    """Write an open_clip "local-dir:" folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    write_json(folder / "open_clip_config.json", clip_config(len(tokenizer)))
    _make_portable(folder)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _make_portable(folder: Path) -> None:
    """save_pretrained leaves weights readable by their owner alone and the path they were loaded from in configs."""
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
            continue
        path.chmod(0o644)
        if path.suffix == ".json" and "_name_or_path" in (content := json.loads(path.read_text())):
            del content["_name_or_path"]
            write_json(path, content)
