"""The training batches of one adapter: which crops, which noise, which times, all from the adapter's own seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from datadream.adapt.latents import LatentCache
from datadream.methods.base import AdapterSpec


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input of one adapter, on the CPU where it was drawn but for the latents."""

    clean: Tensor
    """Latents [batch, 4, h, w]."""
    noise: Tensor
    times: Tensor
    """Noise levels [batch]."""
    prompts: list[str]
    """One for each crop."""


class Batches:
    """Draws the batches of an adapter.

    The numbers depend on the adapter's seed alone, and not on what is trained beside it.
    """

    def __init__(self, spec: AdapterSpec, latents: LatentCache, schedule: DDPMScheduler, batch_size: int) -> None:
        self.latents = latents
        self._prompts = [photo.prompt for photo in spec.photos]
        self._n_times = schedule.config.num_train_timesteps
        self._generator = torch.Generator().manual_seed(spec.seed)
        self._indices = _endless_batches(len(spec.photos), batch_size, self._generator)

    def draw(self) -> Batch:
        """The next batch."""
        indices = next(self._indices)
        clean = self.latents.sample(indices, self._generator)
        noise = torch.randn(clean.shape, generator=self._generator)
        times = torch.randint(self._n_times, (len(indices),), generator=self._generator)
        return Batch(clean, noise, times, [self._prompts[index] for index in indices])


def _endless_batches(n_photos: int, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Full batches of photo indices from one shuffled pass after another."""
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += torch.randperm(n_photos, generator=generator).tolist()
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def share_prompts(batches: Sequence[Batch]) -> tuple[list[str], list[int] | None]:
    """The prompts to encode for a step, and for each crop the row of its prompt.

    Every adapter gets equally many rows, the last repeated where it has fewer. Rows are None where each adapter has
    one prompt: its crops then follow each other.
    """
    distinct = [sorted(set(batch.prompts)) for batch in batches]
    longest = max(map(len, distinct))
    prompts = [prompt for own in distinct for prompt in own + own[-1:] * (longest - len(own))]
    if longest == 1:
        return prompts, None
    rows = [
        number * longest + own.index(prompt)
        for number, (own, batch) in enumerate(zip(distinct, batches, strict=True))
        for prompt in batch.prompts
    ]
    return prompts, rows
