"""Attention in which the images of a prompt share its keys and values."""

from __future__ import annotations

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor


class SharedPromptAttention:
    """A diffusers attention processor whose cross-attention takes fewer prompts than images.

    Plain diffusers wants one encoded prompt per image, and projects each to keys and values. Here `n` images share
    `p` prompts: image i attends to prompt `prompt_rows[i]`, or, without rows, to prompt i // (n / p).
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        temb: None = None,
        prompt_rows: Tensor | None = None,
    ) -> Tensor:
        """[images, tokens, channels] and, for cross-attention, [prompts, length, channels] -> as `hidden_states`."""
        # diffusers' own processor also knows norms, masks, residuals and rescaling: the attention in a UNet of Stable
        # Diffusion has none of them.
        images, tokens, _ = hidden_states.shape
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        key, value = self.keys_and_values(attn, context, is_prompt=encoder_hidden_states is not None)
        query = attn.to_q(hidden_states)
        if encoder_hidden_states is not None and prompt_rows is not None:
            key, value = key[prompt_rows], value[prompt_rows]
        # Queries do not see each other: those of all images of a prompt are one longer sequence.
        query, key, value = (
            x.reshape(len(key), -1, attn.heads, x.shape[-1] // attn.heads) for x in (query, key, value)
        )
        # torch chooses the kernel by device, type and shape, so that all workers of a run have the same. A choice by
        # measured time could fall otherwise on each, and kernels differ in an image's last bits.
        attended = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)), scale=attn.scale)
        out = attended.transpose(1, 2).reshape(images, tokens, -1)
        return attn.to_out[1](attn.to_out[0](out))

    def keys_and_values(self, attn: Attention, context: Tensor, is_prompt: bool) -> tuple[Tensor, Tensor]:
        """Of what is attended to: the prompts, or the image itself."""
        return attn.to_k(context), attn.to_v(context)
