"""Which part of every batch is ours when several workers train one model, and sums over all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch.distributed
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """One worker among `count`; alone unless said otherwise."""

    rank: int = 0
    count: int = 1

    def share(self, n: int) -> slice:
        """Our rows of n: the shares of all ranks are disjoint, cover all rows and differ by at most one."""
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all ranks; every rank must call this in the same order."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum gradients over all ranks in one message: LoRA has many small ones."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.sum(flat)
        for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


ALONE = Ranks()
