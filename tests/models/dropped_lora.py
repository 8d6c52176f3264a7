"""loralib's LoRA with dropout, on plain open_clip and with given masks: W x + scale * B A (mask * x / (1 - p))."""

from __future__ import annotations

from collections.abc import Mapping

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datadream.models.clip.lora_dropout import BlockLora, LoraDropout
from datadream.models.clip.text_tower import PackedPrompts


class DroppedLoraAttention(nn.Module):
    """Self-attention with the weights of an nn.MultiheadAttention, and LoRA by the names of `trainable_state`."""

    def __init__(self, attention: nn.MultiheadAttention, name: str, lora: Mapping[str, Tensor], scale: float) -> None:
        super().__init__()
        self.weight, self.bias, self.out = attention.in_proj_weight, attention.in_proj_bias, attention.out_proj
        self.heads, self.name, self.lora, self.scale = attention.num_heads, name, lora, scale
        self.kept = {"in": torch.ones(1), "out": torch.ones(1)}
        """What to multiply the inputs with: 0 or 1 / (1 - p)."""

    def forward(self, x: Tensor, *_: Tensor, attn_mask: Tensor | None = None, **__: object) -> tuple[Tensor]:
        added = [self._update(name, x * self.kept["in"]) for name in ("q", "k", "v")]
        packed = F.linear(x, self.weight, self.bias) + torch.cat(added, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in packed.chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask).transpose(1, 2).flatten(2)
        return (self.out(attended) + self._update("out", attended * self.kept["out"]),)

    def _update(self, projection: str, x: Tensor) -> Tensor:
        down, up = (self.lora.get(f"{self.name}.{projection}.lora_{letter}") for letter in "AB")
        return torch.zeros_like(x) if down is None else self.scale * x @ down.T @ up.T


def with_dropped_lora(model: nn.Module, lora: Mapping[str, Tensor], scale: float) -> nn.Module:
    """A frozen open_clip model whose layers with LoRA have it beside their weights."""
    model.eval().requires_grad_(False)
    for name, module in list(model.named_modules()):
        if any(known.startswith(f"{name}.") for known in lora) and isinstance(module, nn.MultiheadAttention):
            model.set_submodule(name, DroppedLoraAttention(module, name, lora, scale))
    return model


def keep_in_images(plain: nn.Module, model: nn.Module, dropout: LoraDropout, images: Tensor) -> None:
    """Give a plain image tower the masks of a step of `model`."""
    blocks = dropout.in_image_blocks(model.visual.transformer, model.visual._embeds(images))
    for block, lora in zip(plain.visual.transformer.resblocks, blocks, strict=True):
        block.attn.kept |= {name: kept / (1 - dropout.rate) for name, kept in _kept(lora).items()}


def keep_in_prompts(plain: open_clip.CLIP, model: open_clip.CLIP, dropout: LoraDropout, tokens: Tensor) -> None:
    """Give a plain text tower the masks of a step of `model`, which packs the prompts."""
    packed = PackedPrompts.of(tokens, tokens.argmax(dim=1))
    x = model.token_embedding(packed.ids)
    n_prefix = packed.n_prefix
    prompt, column = packed.places // packed.longest, packed.positions[n_prefix:]
    blocks = dropout.in_text_blocks(model.transformer, x, packed.n_all, packed.rows)
    for block, lora in zip(plain.transformer.resblocks, blocks, strict=True):
        for name, kept in _kept(lora).items():
            whole = torch.ones(*tokens.shape, x.shape[1])
            whole[:, :n_prefix] = kept[:n_prefix].float()
            whole[prompt, column] = kept[n_prefix:].float()
            block.attn.kept[name] = whole / (1 - dropout.rate)


def _kept(lora: BlockLora) -> dict[str, Tensor]:
    layers = {"in": lora.in_proj, "out": lora.out_proj}
    return {name: layer.kept for name, layer in layers.items() if layer}
