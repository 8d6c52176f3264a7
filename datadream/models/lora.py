"""LoRA on the generator's attention (paper, section 3): attach with peft, save for diffusers, merge in place to draw.

Alpha equals the rank throughout, so an update is BA with no factor: the one convention that every reader of the files
agrees on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from datadream.run_store import ADAPTER_WEIGHTS

UNET_TARGETS = ("to_k", "to_out.0", "to_q", "to_v")
TEXT_TARGETS = ("k_proj", "out_proj", "q_proj", "v_proj")


def attach(pipeline: StableDiffusionPipeline, rank: int, text_encoder: bool) -> None:
    """Add trainable fp32 LoRA weights to every attention layer of the UNet and, if asked, of the text encoder.

    Raises ValueError when the model's attention layers have other names.
    """
    for module, targets in _adapted(pipeline, text_encoder):
        try:
            module.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)))
        except ValueError as error:
            raise ValueError(
                f"{type(module).__name__} has no attention layers named {', '.join(targets)}: LoRA cannot be added."
            ) from error
        cast_training_params(module, dtype=torch.float32)


def named_lora_parameters(pipeline: StableDiffusionPipeline) -> Iterator[tuple[str, nn.Parameter]]:
    """LoRA parameters of UNet and text encoder in a fixed order."""
    for module in (pipeline.unet, pipeline.text_encoder):
        yield from sorted((name, p) for name, p in module.named_parameters() if ".lora_" in name)


@torch.no_grad()
def reset(pipeline: StableDiffusionPipeline, seed: int) -> None:
    """Start a new adapter in place: A gaussian with deviation 1/rank, B zero (peft's "gaussian")."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in named_lora_parameters(pipeline):
        if ".lora_A." in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[0])
        else:
            parameter.zero_()


def to_bytes(pipeline: StableDiffusionPipeline, text_encoder: bool) -> bytes:
    """The attached adapter as a `pytorch_lora_weights.safetensors` that diffusers loads."""
    layers, metadata = {}, {}
    for (module, targets), name in zip(_adapted(pipeline, text_encoder), ("unet", "text_encoder"), strict=False):
        state = {key: value.cpu().contiguous() for key, value in get_peft_model_state_dict(module).items()}
        rank = module.peft_config["default"].r
        layers[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(state)
        # Only what a reader needs: peft's full config has an unordered set and this machine's path in it.
        metadata[f"{name}_lora_adapter_metadata"] = {"r": rank, "lora_alpha": rank, "target_modules": list(targets)}
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionPipeline.save_lora_weights(folder, **layers, **metadata)
        return _sorted_header((Path(folder) / ADAPTER_WEIGHTS).read_bytes())


class InPlaceMerger:
    """Puts one adapter at a time into the base weights: W <- W0 + BA, in the storage that W already has.

    W0 of the adapted layers is kept, so weights never drift, and the base is restored to the bit.
    """

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self._modules = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
        self._base: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def merge(self, weights: bytes | None) -> None:
        """Merge an adapter file's weights over the base; None restores the base."""
        for name, base in self._base.items():
            self._weight(name).copy_(base)
        if weights is None:
            return
        state = safetensors.torch.load(weights)
        for key in sorted(key for key in state if key.endswith(".down.weight")):
            # unet.<layer>.lora.down.weight and text_encoder.<layer>.lora_linear_layer.down.weight
            layer = key.removesuffix(".down.weight").rpartition(".")[0]
            weight = self._weight(layer)
            base = self._base.setdefault(layer, weight.clone())
            down, up = state[key].to(weight.device), state[key.replace(".down.", ".up.")].to(weight.device)
            weight.copy_(base.float() + up.float() @ down.float())

    def _weight(self, layer: str) -> torch.Tensor:
        model, _, name = layer.partition(".")
        return self._modules[model].get_submodule(name).weight


def _sorted_header(data: bytes) -> bytes:
    """Same weights, same bytes: safetensors writes its header's metadata in random order."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _adapted(pipeline: StableDiffusionPipeline, text_encoder: bool) -> list[tuple[nn.Module, tuple[str, ...]]]:
    adapted: list[tuple[nn.Module, tuple[str, ...]]] = [(pipeline.unet, UNET_TARGETS)]
    return [*adapted, (pipeline.text_encoder, TEXT_TARGETS)] if text_encoder else adapted
