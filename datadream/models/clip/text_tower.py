"""CLIP's text tower at its true cost: no token after a prompt's end, and what all prompts begin with only once.

Attention of CLIP's text tower is causal, so a token sees nothing behind it: what follows the end token, which is
pooled, cannot matter, and the states of a common beginning are the same in all prompts. ImageNet's 1,000 prompts are
3,176 tokens then, not 77,000. Linear layers run on these tokens packed one behind the other; only attention pads.
"""

from __future__ import annotations

from dataclasses import dataclass

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datadream.models.clip.block import has_plain_blocks, join_heads, run_block, split_heads
from datadream.models.clip.lora_dropout import MERGED, LoraDropout
from datadream.runtime.collectives import ALONE, Collectives

MIN_SHARE = 32
"""Prompts of a worker from which on sharing them out costs less than the messages that it takes."""


@dataclass(frozen=True, slots=True)
class PackedPrompts:
    """The tokens of n prompts that matter: `n_prefix` that all begin with, then each prompt's others up to its end.

    The prompts may be a part of more, among whose packed tokens theirs are `rows` of `n_all`.
    Attention sees the others as n rows of `longest` places; a row's last places may be empty.
    """

    ids: Tensor
    """Token ids [n_tokens]."""
    positions: Tensor
    """Their places in the prompts [n_tokens]."""
    n_prefix: int
    n: int
    longest: int
    places: Tensor
    """Where the others are among n * longest places [n_tokens - n_prefix]."""
    ends: Tensor
    """The end tokens' rows among the packed tokens [n]."""
    mask: Tensor
    """Which of prefix and own row each place sees: bool [longest, n_prefix + longest]."""
    rows: Tensor
    n_all: int

    @classmethod
    def of(cls, tokens: Tensor, ends: Tensor, part: slice = slice(None)) -> PackedPrompts:
        """Pack a part of token ids [n, context] whose end tokens are in columns `ends` [n]; the prefix is that of all
        of them, so that it does not depend on the part."""
        device, tokens, ends = tokens.device, tokens.cpu(), ends.cpu()
        shared = (tokens == tokens[0]).all(dim=0).cumprod(dim=0).sum()
        n_prefix = int(torch.minimum(shared, ends.min()))
        lengths = ends + 1 - n_prefix
        stops = (lengths.cumsum(0) + n_prefix).tolist()
        n_all = stops[-1]
        tokens, lengths, starts = tokens[part], lengths[part], [n_prefix, *stops][part]
        longest = int(lengths.max())
        columns = torch.arange(longest)
        kept = columns < lengths[:, None]
        others = tokens[:, n_prefix : n_prefix + longest][kept]
        positions = (columns + n_prefix).expand(len(tokens), -1)[kept]
        prefix = torch.arange(n_prefix)
        return cls(
            ids=torch.cat([tokens[0, :n_prefix], others]).to(device),
            positions=torch.cat([prefix, positions]).to(device),
            n_prefix=n_prefix,
            n=len(tokens),
            longest=longest,
            places=kept.flatten().nonzero().squeeze(1).to(device),
            ends=(lengths.cumsum(0) + n_prefix - 1).to(device),
            mask=torch.ones(longest, n_prefix + longest, dtype=torch.bool, device=device).tril(n_prefix),
            rows=torch.cat([prefix, torch.arange(len(others)) + starts[0]]).to(device),
            n_all=n_all,
        )

    def pad(self, x: Tensor) -> Tensor:
        """The others of packed x [n_tokens, width] as rows [n, longest, width]."""
        rows = x.new_zeros(self.n * self.longest, x.shape[1]).index_copy(0, self.places, x[self.n_prefix :])
        return rows.view(self.n, self.longest, -1)

    def unpad(self, x: Tensor) -> Tensor:
        """The inverse of `pad`: [n_tokens - n_prefix, width]."""
        return x.flatten(0, 1).index_select(0, self.places)


class TextTower:
    """Encodes prompts with a CLIP's text tower; without dropout equal to open_clip's `encode_text` up to rounding.

    A tower that packing does not understand is run by open_clip itself, without dropout.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._understood = model, runs_text_tower(model)
        self._tokens: Tensor | None = None
        self._packed: dict[tuple[int, int], PackedPrompts] = {}

    def encode(self, tokens: Tensor, collectives: Collectives = ALONE, dropout: LoraDropout | None = None) -> Tensor:
        """Unit features fp32 [n, D] of token ids [n, context], on all ranks; the ids must never change in place.

        Many prompts are shared out among the ranks, all of which must then call this, and gradients are exact once
        they are summed over ranks.
        """
        if collectives.count == 1 or len(tokens) < MIN_SHARE * collectives.count:
            return self._encode(tokens, slice(0, len(tokens)), dropout)
        rows = collectives.share(len(tokens))
        return collectives.gather(self._encode(tokens, rows, dropout), len(tokens))

    def _encode(self, tokens: Tensor, rows: slice, dropout: LoraDropout | None) -> Tensor:
        if self._understood:
            features = _encode_packed(self._model, self._pack(tokens, rows), dropout)
        else:
            features = self._model.encode_text(tokens[rows])
        return F.normalize(features.float(), dim=-1)

    def _pack(self, tokens: Tensor, rows: slice) -> PackedPrompts:
        """Packed once per set of prompts, for it waits for the device."""
        if self._tokens is not tokens:
            self._tokens, self._packed = tokens, {}
        if (rows.start, rows.stop) not in self._packed:
            # Kept for training too, whoever asks first.
            with torch.inference_mode(False):
                own = tokens.clone()
                self._packed[rows.start, rows.stop] = PackedPrompts.of(own, _ends(self._model, own), rows)
        return self._packed[rows.start, rows.stop]


def runs_text_tower(model: nn.Module) -> bool:
    """Whether the text tower is run by us, packed, and LoRA dropout is possible in it."""
    return (
        type(model) is open_clip.CLIP
        and model.attn_mask is not None
        and model.text_pool_type in ("argmax", "eos")
        and has_plain_blocks(model.transformer)
    )


def _ends(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """Columns of the tokens that open_clip pools (its text_global_pool)."""
    return (tokens if model.text_pool_type == "argmax" else (tokens == model.text_eos_id).int()).argmax(dim=-1)


def _encode_packed(model: open_clip.CLIP, prompts: PackedPrompts, dropout: LoraDropout | None) -> Tensor:
    heads = model.transformer.resblocks[0].attn.num_heads

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _attend(prompts, heads, query, key, value)

    x = model.token_embedding(prompts.ids) + model.positional_embedding[prompts.positions]
    tower = model.transformer
    loras = dropout.in_text_blocks(tower, x, prompts.n_all, prompts.rows) if dropout else [MERGED] * tower.layers
    for block, lora in zip(tower.resblocks, loras, strict=True):
        x = run_block(block, x, attend, lora=lora)
    x = model.ln_final(x.index_select(0, prompts.ends))
    projection = model.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def _attend(prompts: PackedPrompts, heads: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of packed tokens: the prefix among itself, the others to it and to their own row."""
    prefix = [split_heads(x[None, : prompts.n_prefix], heads) for x in (query, key, value)]
    query, key, value = (split_heads(prompts.pad(x), heads) for x in (query, key, value))
    key, value = (
        torch.cat([shared.expand(prompts.n, -1, -1, -1), own], dim=2)
        for shared, own in zip(prefix[1:], (key, value), strict=True)
    )
    others = F.scaled_dot_product_attention(query, key, value, attn_mask=prompts.mask)
    beginning = F.scaled_dot_product_attention(*prefix, is_causal=True)
    return torch.cat([join_heads(beginning)[0], prompts.unpad(join_heads(others))])
