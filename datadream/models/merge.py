"""Draw with an adapter at no cost per step: its weights merged into the base model's, in place."""

from __future__ import annotations

import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline

from datadream.models.lora import TEXT_LEVEL


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
        module = self._modules[model]
        return module.get_submodule(name if hasattr(module, "text_model") else name.removeprefix(TEXT_LEVEL)).weight
