"""LoRA files as others write them, diffusers' (old and new keys) and kohya's, of any rank and alpha; and whether they
fit a base model.

diffusers' own functions translate the names of layers, so that a file means here what `load_lora_weights` makes of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from diffusers.utils.state_dict_utils import StateDictType
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from datadream.models.diffusion.lora import TEXT_LEVEL
from datadream.models.source import resolve

KOHYA_SUFFIXES = (".lora_down.weight", ".lora_up.weight", ".alpha")
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps the config that peft trained with, ranks and alphas among it."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """The update of one layer's weights, up @ down; of convolutions, `up` is one of 1 x 1."""

    down: Tensor
    """[rank, inputs, ...]."""
    up: Tensor
    """[outputs, rank, ...], times alpha / rank."""

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights that it changes."""
        return (len(self.up), *self.down.shape[1:])

    def update(self, device: torch.device) -> Tensor:
        """What is added to the weights, fp32."""
        down, up = self.down.to(device).float(), self.up.to(device).float()
        return (up.flatten(1) @ down.flatten(1)).view(self.shape)


def read_lora(data: bytes) -> dict[str, LowRank]:
    """The updates by layer, such as unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q; layers of the text
    encoder have the level text_model, whatever transformers has.

    Raises ValueError when it is no plain LoRA for the UNet or the text encoder of a Stable Diffusion.
    """
    try:
        state = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        told: dict[str, Any] = json.loads(header.get(METADATA) or "{}")
    except (ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"is no safetensors file: {' '.join(str(error).split())}") from None
    if not state:
        raise ValueError("holds no weights")
    if all(key.startswith("lora_") for key in state):
        state = _from_kohya(state)
    layers: dict[str, LowRank] = {}
    for model in ("unet", "text_encoder"):
        prefix = f"{model}."
        part = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
        if part and model == "text_encoder":
            # diffusers knows its old keys by to_out, which files that adapt less than all layers do not have.
            old = StateDictType.DIFFUSERS_OLD if any(re.search(r"to_[qkv]_lora", key) for key in part) else None
            try:
                part = convert_state_dict_to_peft(convert_state_dict_to_diffusers(part, original_type=old))
            except ValueError:
                raise ValueError(f"holds {min(part)!r}: only plain LoRA can be merged") from None
        elif part and not any("lora_A" in key for key in part):
            part = convert_unet_state_dict_to_peft(part)
        config = {key.removeprefix(prefix): value for key, value in told.items() if key.startswith(prefix)}
        for layer, low_rank in _pairs(part, config).items():
            is_short = model == "text_encoder" and not layer.startswith(TEXT_LEVEL)
            layers[prefix + (TEXT_LEVEL if is_short else "") + layer] = low_rank
    if state:
        raise ValueError(
            f"holds {min(state)!r}, which is no LoRA weight of a Stable Diffusion 1.x or 2.x: expected keys that "
            "begin with unet., text_encoder., lora_unet_ or lora_te_"
        )
    return layers


def _from_kohya(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With diffusers' keys, and each alpha multiplied into its layer."""
    for key in state:
        if not key.endswith(KOHYA_SUFFIXES):
            raise ValueError(f"holds {key!r}: only plain LoRA can be merged, with {', '.join(KOHYA_SUFFIXES)}")
    plain = {key: value for key, value in state.items() if not key.endswith(".alpha")}
    for key, down in state.items():
        name = key.removesuffix(".lora_down.weight")
        alpha = state.get(f"{name}.alpha")
        if key == name or alpha is None:
            continue  # without alpha the factor is 1
        if (up := f"{name}.lora_up.weight") not in plain:
            raise ValueError(f"has no {up!r}")
        # A factor of 1 leaves the file's numbers, and their type, as they are.
        if (factor := alpha.item() / len(down)) != 1:
            plain[up] = plain[up].float() * factor
    try:
        # The second would be alphas, which are multiplied in.
        return StableDiffusionPipeline.lora_state_dict(plain)[0]
    except (ValueError, KeyError) as error:
        raise ValueError(f"has layers that diffusers cannot name: {' '.join(str(error).split())}") from None


def _pairs(part: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, LowRank]:
    """The layers of one model with peft's keys; `config` is the one that peft trained with, if the file tells."""
    found: dict[str, LowRank] = {}
    for key in part:
        layer, a, _ = key.partition(".lora_A.weight")
        if not a:
            if not key.endswith(".lora_B.weight"):
                raise ValueError(f"holds {key!r}: only plain LoRA can be merged")
            continue
        down, up = part[key], part.get(f"{layer}.lora_B.weight")
        if up is None or up.shape[1] != len(down):
            raise ValueError(f"has no second matrix that fits {key!r}")
        scale = 1.0
        if "lora_alpha" in config:
            patterns = config.get("alpha_pattern") or {}
            alpha = patterns.get(get_pattern_key(patterns, layer), config["lora_alpha"])
            # rsLoRA (Kalajdzievski, 2023) divides by the root of the rank.
            scale = alpha / (math.sqrt(len(down)) if config.get("use_rslora") else len(down))
        found[layer] = LowRank(down, up if scale == 1 else up.float() * scale)
    return found


def layer_shapes(model: str, revision: str | None) -> dict[str, tuple[int, ...]]:
    """The shapes of weights by layer, named as in `read_lora`, of a base model's UNet and text encoder; reads their
    configs alone."""
    folder = resolve(model)
    config = UNet2DConditionModel.load_config(folder, subfolder="unet", revision=revision)
    text_config = CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder", revision=revision)
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel.from_config(config),
            "text_encoder": CLIPTextModel(text_config),
        }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in modules.items():
        for path, layer in module.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                is_short = name == "text_encoder" and not path.startswith(TEXT_LEVEL)
                shapes[f"{name}.{TEXT_LEVEL if is_short else ''}{path}"] = tuple(layer.weight.shape)
    return shapes


def check_fit(layers: Mapping[str, LowRank], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError naming the first layer that a base model does not have, or has in another shape."""
    for layer, low_rank in layers.items():
        if layer not in shapes:
            raise ValueError(f"changes layer {layer!r}, which the model does not have")
        if low_rank.shape != shapes[layer]:
            theirs, ours = (" x ".join(map(str, shape)) for shape in (low_rank.shape, shapes[layer]))
            raise ValueError(f"is for a layer {layer!r} of {theirs}, which has {ours} in the model")
