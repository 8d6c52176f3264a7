"""One transformer block of open_clip on any layout of tokens, and for fewer queries than keys."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import Tensor, nn

from datadream.models.clip.lora_dropout import MERGED, BlockLora, DroppedLora

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values [..., width] -> what each query attends to, shaped as the queries."""
Pick = Callable[[Tensor], Tensor]
"""Some tokens of x [n, tokens, width]."""


def has_plain_blocks(tower: nn.Module) -> bool:
    """Whether `run_block` computes the blocks of a transformer; open_clip also has blocks of other kinds."""
    return type(tower) is Transformer and all(type(block) is ResidualAttentionBlock for block in tower.resblocks)


def run_block(
    block: ResidualAttentionBlock,
    x: Tensor,
    attend: Attend,
    pick: Pick | None = None,
    lora: BlockLora = MERGED,
) -> Tensor:
    """The block's output for tokens x [..., width]; with `pick`, only for the tokens that it picks from x.

    The last block of a tower needs only the token that is pooled: the others serve it as keys and values.
    """
    attention, normed = block.attn, block.ln_1(x)
    attended = attend(*_project_in(attention, normed, pick, lora.in_proj))
    out_lora = lora.out_proj
    if pick is not None:
        x = pick(x)
        out_lora = out_lora and out_lora.picked(pick)
    x = x + block.ls_1(_project_out(attention.out_proj, attended, out_lora))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _project_in(
    attention: nn.MultiheadAttention, x: Tensor, pick: Pick | None, lora: DroppedLora | None
) -> list[Tensor]:
    """Queries of the tokens that are picked, or of all, then keys and values of all."""
    weight, bias = attention.in_proj_weight if lora is None else lora.weight, attention.in_proj_bias
    if pick is None:
        projected = list(F.linear(x, weight, bias).chunk(3, dim=-1))
    else:
        width = attention.embed_dim
        query = F.linear(pick(x), weight[:width], bias[:width])
        projected = [query, *F.linear(x, weight[width:], bias[width:]).chunk(2, dim=-1)]
    for number, hidden, up in lora.factors(x) if lora else ():
        picked = pick(hidden) if pick is not None and number == 0 else hidden
        projected[number] = projected[number] + F.linear(picked, up)
    return projected


def _project_out(layer: nn.Linear, x: Tensor, lora: DroppedLora | None) -> Tensor:
    if lora is None:
        return layer(x)
    ((_, hidden, up),) = lora.factors(x)
    return F.linear(x, lora.weight, layer.bias) + F.linear(hidden, up)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[n, tokens, width] -> [n, heads, tokens, width / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[n, heads, tokens, width / heads] -> [n, tokens, width]."""
    return x.transpose(1, 2).flatten(2)
