"""One transformer block of open_clip on any layout of tokens, and for fewer queries than keys."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import Tensor, nn

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values [..., width] -> what each query attends to, shaped as the queries."""


def has_plain_blocks(tower: nn.Module) -> bool:
    """Whether `run_block` computes the blocks of a transformer; open_clip also has blocks of other kinds."""
    return type(tower) is Transformer and all(type(block) is ResidualAttentionBlock for block in tower.resblocks)


def run_block(
    block: ResidualAttentionBlock, x: Tensor, attend: Attend, pick: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The block's output for tokens x [..., width]; with `pick`, only for the tokens that it picks from x.

    The last block of a tower needs only the token that is pooled: the others serve it as keys and values.
    """
    attention, normed = block.attn, block.ln_1(x)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if pick is None:
        query, key, value = F.linear(normed, weight, bias).chunk(3, dim=-1)
    else:
        width = attention.embed_dim
        query = F.linear(pick(normed), weight[:width], bias[:width])
        key, value = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
        x = pick(x)
    x = x + block.ls_1(attention.out_proj(attend(query, key, value)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[n, tokens, width] -> [n, heads, tokens, width / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[n, heads, tokens, width / heads] -> [n, tokens, width]."""
    return x.transpose(1, 2).flatten(2)
