"""Generate with adapters at no cost per step: their weights merged into the base model's, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline

from datadream.models.diffusion.lora import TEXT_LEVEL
from datadream.models.diffusion.lora_file import read_lora


class InPlaceMerger:
    """Puts adapters into the base weights: W <- W0 + sum of weight * BA, in the storage that W already has.

    W0 of the adapted layers is kept, so weights never drift, and the base is restored to the bit.
    """

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self._modules = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
        self._base: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def merge(self, adapters: Sequence[tuple[bytes, float]]) -> None:
        """Merge adapter files, each with a weight, over the base; none restores the base."""
        updates: dict[str, torch.Tensor] = {}
        for data, share in adapters:
            for layer, low_rank in read_lora(data).items():
                updates[layer] = updates.get(layer, 0) + share * low_rank.update(self._weight(layer).device)
        # Layers of the last adapters that these lack get their base weights back.
        for layer in self._base.keys() | updates.keys():
            weight = self._weight(layer)
            if layer not in self._base:
                self._base[layer] = weight.clone()
            base = self._base[layer]
            # Summed in fp32 and rounded once; the storage stays, so a compiled UNet is not compiled again.
            weight.copy_(base.float() + updates[layer] if layer in updates else base)

    def _weight(self, layer: str) -> torch.Tensor:
        model, _, name = layer.partition(".")
        module = self._modules[model]
        # See StackedLora.to_bytes: files have the level text_model, transformers 5 has not.
        return module.get_submodule(name if hasattr(module, "text_model") else name.removeprefix(TEXT_LEVEL)).weight
