"""LoRA of a stacked weight: merged into the weight, or beside it where its inputs are not the weight's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRank(nn.Module):
    """weight -> weight + scale * B A, for chosen blocks of rows of a stacked weight."""

    def __init__(
        self, weight: Tensor, n_blocks: int, chosen: Sequence[int], rank: int, scale: float, rng: torch.Generator
    ) -> None:
        super().__init__()
        rows, columns = weight.shape[0] // n_blocks, weight.shape[1]
        # Kaiming's uniform bound for a fan-in of `columns` and a slope of sqrt(5), as in loralib; sampled on the CPU,
        # so that every device starts from the same numbers.
        bound = 1 / math.sqrt(columns)
        down = torch.empty(len(chosen), rank, columns).uniform_(-bound, bound, generator=rng)
        self.n_blocks, self.blocks, self.scale = n_blocks, tuple(chosen), scale
        self.A = nn.Parameter(down.to(weight.device))
        self.B = nn.Parameter(torch.zeros(len(chosen), rows, rank, device=weight.device))
        self.register_buffer("chosen", torch.tensor(chosen, device=weight.device), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        blocks = weight.view(self.n_blocks, -1, weight.shape[1])
        update = torch.bmm(self.B, self.A).to(weight.dtype)
        return blocks.index_add(0, self.chosen, update, alpha=self.scale).view_as(weight)

    def factors(self, x: Tensor, factor: float = 1.0) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The update factor * scale * B A x of inputs x [..., columns], before the product with B: the number of each
        of `blocks`, factor * scale * A x [..., rank] and B [rows, rank]."""
        hidden = factor * self.scale * F.linear(x, self.A.flatten(0, 1))
        return zip(self.blocks, hidden.chunk(len(self.blocks), dim=-1), self.B, strict=True)
