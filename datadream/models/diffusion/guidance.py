"""Classifier-free guidance without repeated work, and with the same result.

The UNet sees every latent twice, without and with the prompt. Until the first cross-attention both halves are equal,
and the prompts' keys and values are the same at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from datadream.models.diffusion.attention import SharedPromptAttention


class KeptPrompts:
    """Projects the prompts to a UNet's cross-attention keys and values once, until `forget`."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._layers = {name: _KeptPromptAttention() for name in unet.attn_processors}
        unet.set_attn_processor(dict(self._layers))

    def forget(self) -> None:
        """The next prompts are new, or the weights are."""
        for layer in self._layers.values():
            layer.kept.clear()


class _KeptPromptAttention(SharedPromptAttention):
    """One layer's attention. The kept prompts are told apart by their number: with and without guidance."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keys_and_values(self, attn: Attention, context: Tensor, is_prompt: bool) -> tuple[Tensor, Tensor]:
        if not is_prompt:
            return super().keys_and_values(attn, context, is_prompt)
        if len(context) not in self.kept:
            self.kept[len(context)] = super().keys_and_values(attn, context, is_prompt)
        return self.kept[len(context)]


class SharedPrefix:
    """Computes what comes before the first cross-attention for one of two equal halves of a batch."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._halved = False
        first = unet.down_blocks[0]
        # Models whose first block has no cross-attention are left as they are.
        if not getattr(first, "has_cross_attention", False):
            return
        transformer = first.attentions[0]
        block = transformer.transformer_blocks[0]
        # The modules with weights before it: 2.5 % of the FLOPs of Stable Diffusion 2.1 with guidance.
        before = [unet.conv_in, first.resnets[0], transformer.norm, transformer.proj_in, block.norm1, block.attn1]
        for module in before:
            module.forward = self._once(module.forward)

    @contextmanager
    def halved(self) -> Iterator[None]:
        """In this block the two halves of every batch are equal."""
        self._halved = True
        try:
            yield
        finally:
            self._halved = False

    def _once(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def once(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not self._halved:
                return forward(inputs, *args, **kwargs)
            half, whole = len(inputs) // 2, len(inputs)
            # Time embeddings are per latent too; what has another length is not of the batch.
            own = [arg[:half] if isinstance(arg, Tensor) and len(arg) == whole else arg for arg in args]
            out = forward(inputs[:half], *own, **kwargs)
            return torch.cat([out, out])

        return once
