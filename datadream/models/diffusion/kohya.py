"""LoRA files for kohya's scripts, AUTOMATIC1111's web UI, ComfyUI and others that read their format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Self

import safetensors.torch
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from datadream.models.diffusion.lora import sorted_header
from datadream.models.diffusion.lora_file import read_lora
from datadream.models.source import resolve

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
# kohya's and modelspec's names of a base model, by the width of its prompt encodings.
VERSIONS = {768: ("sd_v1", "stable-diffusion-v1"), 1024: ("sd_v2", "stable-diffusion-v2")}


@dataclass(frozen=True, slots=True)
class Base:
    """What kohya's metadata say of the base model."""

    width: int
    """Of prompt encodings."""
    pixels: int
    """Side of the images that it was trained on."""
    predicts_v: bool

    @classmethod
    def of(cls, pipeline: StableDiffusionPipeline) -> Self:
        config, pixels = pipeline.unet.config, pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        predicts_v = pipeline.scheduler.config.prediction_type == "v_prediction"
        return cls(config.cross_attention_dim, pixels, predicts_v)

    @classmethod
    def read(cls, model: str, revision: str | None) -> Self:
        """From the configs of a model's parts, without its weights."""
        parts = (UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"), (DDIMScheduler, "scheduler")
        unet, vae, scheduler = (
            kind.load_config(resolve(model), subfolder=part, revision=revision) for kind, part in parts
        )
        pixels = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
        return cls(unet["cross_attention_dim"], pixels, scheduler.get("prediction_type") == "v_prediction")


def to_kohya(weights: bytes, base: Base, title: str) -> bytes:
    """Convert a LoRA file that `read_lora` reads: `lora_unet_*`, `lora_te_*`, alphas, and kohya's metadata."""
    state: dict[str, torch.Tensor] = {}
    layers = read_lora(weights)
    for layer, low_rank in layers.items():
        model, _, path = layer.partition(".")
        name = PREFIXES[model] + path.replace(".", "_")
        # Alpha equals the rank, so that the readers' factor alpha / rank is 1.
        alpha = torch.tensor(float(low_rank.rank))
        state |= {f"{name}.lora_down.weight": low_rank.down, f"{name}.lora_up.weight": low_rank.up}
        state[f"{name}.alpha"] = alpha
    rank = max(low_rank.rank for low_rank in layers.values())
    pixels, predicts_v = base.pixels, base.predicts_v
    version, family = VERSIONS.get(base.width, ("other", "stable-diffusion"))
    if version == "sd_v2":
        version, family = version + "_v" * predicts_v, f"{family}-{pixels}" + "-v" * predicts_v
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_network_args": json.dumps({}),
        "ss_base_model_version": version,
        "ss_v2": str(version.startswith("sd_v2")),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{family}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{pixels}x{pixels}",
        "modelspec.prediction_type": "v" if predicts_v else "epsilon",
    }
    return sorted_header(safetensors.torch.save(state, metadata))
