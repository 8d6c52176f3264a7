"""CLIP's text tower at its true cost: no token after a prompt's end, and what all prompts begin with only once.

Attention of CLIP's text tower is causal, so a token sees nothing behind it: what follows the end token, which is
pooled, cannot matter, and the states of a common beginning are the same in all prompts. ImageNet's 1,000 prompts are
3,176 tokens then, not 77,000. Linear layers run on these tokens packed one behind the other; only attention pads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

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
        # On the CPU: sizes and boolean indexing would each wait for a device.
        device, tokens, ends = tokens.device, tokens.cpu(), ends.cpu()
        shared = (tokens == tokens[0]).all(dim=0).cumprod(dim=0).sum()
        # No end token is in the prefix, even where two prompts are equal: each prompt is pooled at a token of its own.
        n_prefix = int(torch.minimum(shared, ends.min()))
        lengths = ends + 1 - n_prefix
        stops = (lengths.cumsum(0) + n_prefix).tolist()
        tokens, lengths, starts = tokens[part], lengths[part], [n_prefix, *stops][part]
        longest = int(lengths.max())
        prefix, columns = torch.arange(n_prefix), torch.arange(longest)
        kept = columns < lengths[:, None]
        others = tokens[:, n_prefix : n_prefix + longest][kept]
        positions = (columns + n_prefix).expand(len(tokens), -1)[kept]
        return cls(
            ids=torch.cat([tokens[0, :n_prefix], others]).to(device),
            positions=torch.cat([prefix, positions]).to(device),
            n_prefix=n_prefix,
            n=len(tokens),
            longest=longest,
            places=kept.flatten().nonzero().squeeze(1).to(device),
            ends=(lengths.cumsum(0) + n_prefix - 1).to(device),
            # tril's diagonal is shifted by the prefix: place i sees all of it, and of its own row places 0 to i.
            mask=torch.ones(longest, n_prefix + longest, dtype=torch.bool, device=device).tril(n_prefix),
            rows=torch.cat([prefix, torch.arange(len(others)) + starts[0]]).to(device),
            n_all=stops[-1],
        )

    def pad(self, x: Tensor) -> Tensor:
        """The others of packed x [n_tokens, width] as rows [n, longest, width]."""
        rows = x.new_zeros(self.n * self.longest, x.shape[1]).index_copy(0, self.places, x[self.n_prefix :])
        return rows.view(self.n, self.longest, -1)


class TextTower:
    """Encodes prompts with a CLIP's text tower; without dropout equal to open_clip's `encode_text` up to rounding.

    A tower that packing does not understand is run by open_clip itself, without dropout.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._packs = model, runs_text_tower(model)
        self._tokens: Tensor | None = None
        self._packed: dict[tuple[int, int], PackedPrompts] = {}

    def encode(self, tokens: Tensor, collectives: Collectives = ALONE, dropout: LoraDropout | None = None) -> Tensor:
        """Unit features fp32 [n, D] of token ids [n, context], on all workers; the ids must never change in place.

        Many prompts are shared out among the workers, all of which must then call this, and gradients are exact once
        they are summed over workers.
        """
        shared = collectives.count > 1 and len(tokens) >= MIN_SHARE * collectives.count
        rows = collectives.share(len(tokens)) if shared else slice(0, len(tokens))
        if not self._packs:
            features = self._model.encode_text(tokens[rows])
        else:
            # Packing waits for the device, so it is done once for each set of prompts and not at every step.
            if self._tokens is not tokens:
                self._tokens, self._packed = tokens, {}
            if (key := (rows.start, rows.stop)) not in self._packed:
                # An evaluation may ask first, but tensors made in inference mode could not be used in training.
                with torch.inference_mode(False):
                    own = tokens.clone()
                    self._packed[key] = PackedPrompts.of(own, end_columns(self._model, own), rows)
            features = _encode_packed(self._model, self._packed[key], dropout)
        features = F.normalize(features.float(), dim=-1)
        return collectives.gather(features, len(tokens)) if shared else features


def runs_text_tower(model: nn.Module) -> bool:
    """Whether the text tower is run by us, packed, and LoRA dropout is possible in it."""
    return (
        type(model) is open_clip.CLIP
        and model.attn_mask is not None
        and model.text_pool_type in ("argmax", "eos")
        and has_plain_blocks(model.transformer)
    )


def end_columns(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """Where the end tokens of token ids [n, context] are, which open_clip's text_global_pool picks: int64 [n]."""
    is_end = tokens if model.text_pool_type == "argmax" else (tokens == model.text_eos_id).int()
    return is_end.argmax(dim=-1)


def _encode_packed(model: open_clip.CLIP, prompts: PackedPrompts, dropout: LoraDropout | None) -> Tensor:
    tower = model.transformer
    attend = partial(_attend, prompts, tower.resblocks[0].attn.num_heads)
    x = model.token_embedding(prompts.ids) + model.positional_embedding[prompts.positions]
    loras = dropout.in_text_blocks(tower, x, prompts.n_all, prompts.rows) if dropout else [MERGED] * tower.layers
    for block, lora in zip(tower.resblocks, loras, strict=True):
        x = run_block(block, x, attend, lora=lora)
    # The final norm is per token, so it is spent on the end tokens alone.
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
    # Back to packed order: padded places are left out again.
    return torch.cat([join_heads(beginning)[0], join_heads(others).flatten(0, 1).index_select(0, prompts.places)])
