"""LoRA files for kohya's scripts, AUTOMATIC1111's web UI, ComfyUI and others that read their format."""

from __future__ import annotations

import json

import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline

from datadream.models.diffusion.lora import sorted_header

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
# kohya's and modelspec's names of a base model, by the width of its prompt encodings.
VERSIONS = {768: ("sd_v1", "stable-diffusion-v1"), 1024: ("sd_v2", "stable-diffusion-v2")}


def to_kohya(weights: bytes, pipeline: StableDiffusionPipeline, title: str) -> bytes:
    """Convert a `pytorch_lora_weights.safetensors`: `lora_unet_*`, `lora_te_*`, alphas, and kohya's metadata."""
    state: dict[str, torch.Tensor] = {}
    for key, value in safetensors.torch.load(weights).items():
        layer, _, side = key.removesuffix(".weight").rpartition(".")
        model, _, path = layer.rpartition(".")[0].partition(".")
        name = PREFIXES[model] + path.replace(".", "_")
        state[f"{name}.lora_{side}.weight"] = value
        if side == "down":
            # Alpha equals the rank, so that the readers' factor alpha / rank is 1.
            state[f"{name}.alpha"] = torch.tensor(float(len(value)))
    rank = next(len(value) for key, value in state.items() if key.endswith(".lora_down.weight"))
    predicts_v = pipeline.scheduler.config.prediction_type == "v_prediction"
    pixels = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    version, family = VERSIONS.get(pipeline.unet.config.cross_attention_dim, ("other", "stable-diffusion"))
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
