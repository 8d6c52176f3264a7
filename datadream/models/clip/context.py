"""Learned words in front of class names, with both towers frozen (CoOp; Zhou et al., IJCV 2022, section 3.2).

A learned word is a vector in place of a token's embedding. So tokens that no class uses stand for them, and their rows
of the embedding table are what learns: the text tower, and what packs its prompts, need not know. All classes share
the words, which makes them a common prefix that is encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from datadream.models.clip.load import load_tokenizer, without_weights
from datadream.models.clip.text_tower import end_columns, runs_text_tower

STD = 0.02
"""Of the vectors at first (authors' code)."""


class LearnedRows(nn.Module):
    """weight -> weight with the rows `ids` replaced by `vectors` [len(ids), width], as a parametrization."""

    def __init__(self, weight: Tensor, ids: Sequence[int], rng: torch.Generator) -> None:
        super().__init__()
        # Sampled on the CPU, so that every device starts from the same numbers.
        vectors = torch.empty(len(ids), weight.shape[1]).normal_(std=STD, generator=rng)
        self.vectors = nn.Parameter(vectors.to(weight.device))
        self.register_buffer("ids", torch.tensor(ids, device=weight.device), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.index_copy(0, self.ids, self.vectors.to(weight.dtype))


def with_context(model: nn.Module, tokens: Tensor, n: int) -> tuple[Tensor, list[int]]:
    """Token ids [n_classes, context] of class names with `n` words more behind the start token, and the words' ids.

    Raises ValueError when the model's text tower is not of OpenAI's kind, or when the names leave no room.
    """
    _check_tower(model)
    length = tokens.shape[1]
    room = length - 1 - int(end_columns(model, tokens).max())
    if n > room:
        raise ValueError(
            f"classify.context is {n}, but of the text encoder's {length} places the longest class name leaves {room}."
            " Use at most so many, or shorter names (data.names)."
        )
    # Below the end token, which is the largest id where the tower pools at that.
    used = set(tokens.unique().tolist())
    ids = [number for number in range(int(tokens.max())) if number not in used][:n]
    if len(ids) < n:
        raise ValueError(f"classify.context is {n}, but only {len(ids)} tokens of the text encoder are not in use.")
    words = torch.tensor(ids, dtype=tokens.dtype, device=tokens.device).expand(len(tokens), -1)
    return torch.cat([tokens[:, :1], words, tokens[:, 1 : length - n]], dim=1), ids


def name_prompts(names: Sequence[str]) -> list[str]:
    """What stands behind the learned words (authors' code)."""
    return [f"{name}." for name in names]


def check_context(model: str, names: Sequence[str], n: int) -> None:
    """Raises ValueError as `with_context` would, but without loading weights."""
    modules = without_weights(model)
    _check_tower(modules)  # before a tokenizer is asked for, which may be the Hub's
    with_context(modules, load_tokenizer(model)(name_prompts(names)), n)


def _check_tower(model: nn.Module) -> None:
    if not runs_text_tower(model):
        raise ValueError(
            "classify.context needs a text tower of OpenAI's kind, and classify.model has another one. Leave it unset."
        )
