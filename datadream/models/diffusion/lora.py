"""LoRA on the generator's attention (paper, section 3), for several adapters side by side.

A batch holds an equal share for each of C adapters, and every adapted layer holds C pairs of A and B, so that one pass
trains all of them: the base model's matrix products grow with C, the number of operations does not. peft trains one
adapter at a time. Alpha equals the rank throughout, so an update is BA with no factor: the one convention that every
reader of the files agrees on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from torch import Tensor, nn

from datadream.run.layout import ADAPTER_WEIGHTS

UNET_TARGETS = ("to_k", "to_out.0", "to_q", "to_v")
TEXT_TARGETS = ("k_proj", "out_proj", "q_proj", "v_proj")
TEXT_LEVEL = "text_model."


class LoraLinear(nn.Module):
    """A frozen linear layer and the low-rank updates of C adapters, each for its own 1/C of the batch."""

    def __init__(self, base: nn.Linear, n_adapters: int, rank: int) -> None:
        super().__init__()
        self.base = base
        empty = partial(torch.empty, device=base.weight.device, dtype=torch.float32)
        self.down = nn.Parameter(empty(n_adapters, rank, base.in_features))
        self.up = nn.Parameter(empty(n_adapters, base.out_features, rank))

    def forward(self, inputs: Tensor) -> Tensor:
        """[C * n, ..., in_features] -> [C * n, ..., out_features]."""
        low = torch.bmm(inputs.reshape(len(self.down), -1, inputs.shape[-1]), self.down.mT)
        plain = self.base(inputs)
        return plain + torch.bmm(low, self.up.mT).view_as(plain)


class StackedLora:
    """C adapters on one pipeline's UNet and, if asked, text encoder.

    An adapter is a row of `weights` [C, numbers of an adapter], fp32, of which the layers' A and B are views: one
    norm, one optimiser step or one copy handles it whole.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, n_adapters: int, rank: int, text_encoder: bool) -> None:
        """Raises ValueError when the model's attention layers have other names."""
        self.rank = rank
        self._models = {"unet": (pipeline.unet, UNET_TARGETS)}
        if text_encoder:
            self._models["text_encoder"] = (pipeline.text_encoder, TEXT_TARGETS)
        self._layers: dict[str, dict[str, LoraLinear]] = {}
        for name, (module, targets) in self._models.items():
            endings = tuple(f".{target}" for target in targets)
            linear = {path: layer for path, layer in module.named_modules() if isinstance(layer, nn.Linear)}
            # Sorted, so that an adapter's numbers are at the same places whatever order a library lists its layers in.
            chosen = [path for path in sorted(linear) if path.endswith(endings)]
            if not chosen:
                kind = type(module).__name__
                raise ValueError(f"{kind} has no attention layers named {', '.join(targets)}: LoRA cannot be added.")
            self._layers[name] = {path: LoraLinear(linear[path], n_adapters, rank) for path in chosen}
            for path, layer in self._layers[name].items():
                module.set_submodule(path, layer)
        parts = self.parts
        self.weights = nn.Parameter(torch.cat([part.detach().flatten(1) for part in parts], dim=1))
        # From here on every part is a view of its numbers in `weights`.
        for part, numbers in zip(parts, self.weights.detach().split([p[0].numel() for p in parts], 1), strict=True):
            part.data = numbers.view(part.shape)

    @property
    def parts(self) -> list[nn.Parameter]:
        """Every layer's A and B, in the order of their numbers in a row of `weights`."""
        layers = (layer for model in self._layers.values() for layer in model.values())
        return [part for layer in layers for part in (layer.down, layer.up)]

    @torch.no_grad()
    def reset(self, row: int, seed: int) -> None:
        """Start a new adapter in place: A gaussian with deviation 1/rank, B zero (peft's "gaussian")."""
        # On the CPU, so that every device begins with the same numbers. The layers' order decides who gets which.
        generator = torch.Generator().manual_seed(seed)
        for layer in (layer for model in self._layers.values() for layer in model.values()):
            layer.down[row] = torch.randn(layer.down.shape[1:], generator=generator) / self.rank
            layer.up[row] = 0

    @contextmanager
    def alone(self, row: int) -> Iterator[None]:
        """For the length of a block, the adapter in `row` is that of a whole batch of any size."""
        parts = self.parts
        stacked = [part.data for part in parts]
        for part in parts:
            part.data = part.data[row : row + 1]
        try:
            yield
        finally:
            for part, data in zip(parts, stacked, strict=True):
                part.data = data

    def to_bytes(self, row: int) -> bytes:
        """An adapter as a `pytorch_lora_weights.safetensors` that diffusers loads."""
        weights, metadata = {}, {}
        for name, layers in self._layers.items():
            state = {}
            for key, layer in layers.items():
                # transformers 5 dropped the level text_model; files keep it, for all readers know it, and older ones
                # need it.
                if name == "text_encoder" and not key.startswith(TEXT_LEVEL):
                    key = TEXT_LEVEL + key
                state[f"{key}.lora_A.weight"] = layer.down[row].detach().cpu().contiguous()
                state[f"{key}.lora_B.weight"] = layer.up[row].detach().cpu().contiguous()
            weights[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(state)
            metadata[f"{name}_lora_adapter_metadata"] = {
                "r": self.rank,
                "lora_alpha": self.rank,
                "target_modules": list(self._models[name][1]),
            }
        with tempfile.TemporaryDirectory() as folder:
            StableDiffusionPipeline.save_lora_weights(folder, **weights, **metadata)
            return sorted_header((Path(folder) / ADAPTER_WEIGHTS).read_bytes())

    def remove(self) -> None:
        """Give the pipeline its own layers back."""
        for name, layers in self._layers.items():
            for layer_name, layer in layers.items():
                self._models[name][0].set_submodule(layer_name, layer.base)


def sorted_header(data: bytes) -> bytes:
    """Same weights, same bytes: safetensors writes its header's metadata in random order."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    # With blanks up to a multiple of 8 bytes, as safetensors aligns the tensors behind it.
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
