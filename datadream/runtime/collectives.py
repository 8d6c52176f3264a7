"""The process group of one data-parallel training: which part of every batch is ours, and sums over all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch.distributed
from torch import Tensor

from datadream.runtime.failures import LostPeerError


@dataclass(frozen=True, slots=True)
class Collectives:
    """One worker among `count`; alone unless said otherwise."""

    rank: int = 0
    count: int = 1

    def share(self, n: int) -> slice:
        """Our rows of n: the shares of all ranks are disjoint, cover all rows and differ by at most one."""
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all ranks; every rank must call this in the same order.

        Raises LostPeerError when another rank is gone.
        """
        if self.count == 1:
            return
        try:
            torch.distributed.all_reduce(tensor)
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # our own device's
            raise
        except RuntimeError as error:  # gloo's; NCCL's DistBackendError is one
            raise LostPeerError(f"rank {self.rank} cannot reach another: {error}") from error

    def gather(self, rows: Tensor, n: int) -> Tensor:
        """All n rows [n, ...] from every rank's share of them; gradients flow back, summed over ranks."""
        return _Gather.apply(rows, n, self) if self.count > 1 else rows

    def check_same_step(self, steps: int, device: torch.device) -> None:
        """Raises RuntimeError when the ranks, all of which must ask, are not at the same step: they read different
        checkpoints, and one that began later would end earlier while the others wait for it in a sum."""
        total = torch.tensor(float(steps), device=device)
        self.sum(total)
        if total.item() != self.count * steps:
            raise RuntimeError("the workers see different checkpoints: the run's folder is not the same for all.")

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum gradients over all ranks in one message: LoRA has many small ones."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.sum(flat)
        for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


class _Gather(torch.autograd.Function):
    """A sum of shares padded with zeros: the shares may differ in size, and it is exact."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, n: int, collectives: Collectives) -> Tensor:
        ctx.collectives, ctx.n = collectives, n
        whole = rows.new_zeros(n, *rows.shape[1:])
        whole[collectives.share(n)] = rows
        collectives.sum(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # all_reduce works in place, and autograd may hand the same tensor to others.
        gradient = gradient.clone()
        ctx.collectives.sum(gradient)
        return gradient[ctx.collectives.share(ctx.n)], None, None


ALONE = Collectives()
