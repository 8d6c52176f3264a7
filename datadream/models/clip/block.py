"""One transformer block of open_clip on any layout of tokens, and for fewer queries than keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import Tensor, nn

from datadream.models.clip.lora_dropout import MERGED, BlockLora

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values [..., width] -> what each query attends to, shaped as the queries."""
Pick = Callable[[Tensor], Tensor]
"""Some tokens of x [n, tokens, width]."""


def has_plain_blocks(tower: nn.Module) -> bool:
    """Whether `run_block` computes the blocks of a transformer; open_clip also has blocks of other kinds."""
    return type(tower) is Transformer and all(type(block) is ResidualAttentionBlock for block in tower.resblocks)


def run_block(
    block: ResidualAttentionBlock, x: Tensor, attend: Attend, pick: Pick | None = None, lora: BlockLora = MERGED
) -> Tensor:
    """The block's output for tokens x [..., width]; with `pick`, only for the tokens that it picks from x.

    The last block of a tower needs only the token that is pooled: the others serve it as keys and values.
    """
    attention, normed = block.attn, block.ln_1(x)
    # With dropout the frozen weight is used here, and LoRA added below: it sees other inputs than the weight does.
    weight, bias = lora.in_proj.weight if lora.in_proj else attention.in_proj_weight, attention.in_proj_bias
    if pick is None:
        projected = list(F.linear(normed, weight, bias).chunk(3, dim=-1))
    else:
        width = attention.embed_dim
        query = F.linear(pick(normed), weight[:width], bias[:width])
        projected = [query, *F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)]
        x = pick(x)
    for number, hidden, up in lora.in_proj.factors(normed) if lora.in_proj else ():
        # Of the three stacked projections only number 0, the queries, is of picked tokens alone.
        hidden = pick(hidden) if pick is not None and number == 0 else hidden
        projected[number] = projected[number] + F.linear(hidden, up)
    attended = attend(*projected)
    if lora.out_proj is None:
        attended = attention.out_proj(attended)
    else:
        dropped = lora.out_proj if pick is None else replace(lora.out_proj, kept=pick(lora.out_proj.kept))
        ((_, hidden, up),) = dropped.factors(attended)
        attended = F.linear(attended, dropped.weight, attention.out_proj.bias) + F.linear(hidden, up)
    x = x + block.ls_1(attended)
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[n, tokens, width] -> [n, heads, tokens, width / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[n, heads, tokens, width / heads] -> [n, tokens, width]."""
    return x.transpose(1, 2).flatten(2)
