"""The training batches of one adapter: which crops, which noise, which times, all from the adapter's own seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from datadream.adapt.latent_cache import LatentCache
from datadream.adapt.prior_preservation import Prior
from datadream.methods.base import AdapterSpec
from datadream.runtime.collectives import ALONE, Collectives


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input of one adapter, on the CPU where it was drawn but for the latents.

    Of `n` samples: crops of photos and, with a prior, samples of it.
    """

    clean: Tensor
    """Latents [n, 4, h, w]."""
    noise: Tensor
    times: Tensor
    """Noise levels [n]."""
    prompts: list[str]
    weights: Tensor
    """Of the samples' squared errors in the loss [n]."""


class Batches:
    """Draws the batches of an adapter.

    The numbers depend on the adapter's seed alone, and not on what is trained beside it nor on the number of workers.
    """

    def __init__(
        self,
        spec: AdapterSpec,
        latents: LatentCache,
        schedule: DDPMScheduler,
        batch_size: int,
        prior: Prior | None = None,
        collectives: Collectives = ALONE,
    ) -> None:
        """`batch_size` counts photos, of all ranks together; a prior adds as many samples."""
        self.latents = latents
        self._prompts = [photo.prompt for photo in spec.photos]
        self._n_times = schedule.config.num_train_timesteps
        self._batch_size, self._prior, self._collectives = batch_size, prior, collectives
        self._generator = torch.Generator().manual_seed(spec.seed)
        self._waiting: list[int] = []

    def draw(self) -> Batch:
        """Our rank's share of the next batch. Every rank draws all random numbers, and encodes its own crops."""
        indices = self._next_photos()
        crops, latent_noise = self.latents.draw(indices, self._generator)
        noise, times = self._noise_and_times(len(indices))
        own = self._collectives.share(len(indices))
        photos = Batch(
            self.latents.latents(crops[own], latent_noise[own]),
            noise[own],
            times[own],
            [self._prompts[index] for index in indices[own]],
            torch.full((own.stop - own.start,), 1 / self._batch_size),
        )
        return photos if self._prior is None else _joined(photos, self._draw_prior(self._prior))

    def state(self) -> dict[str, Any]:
        """What `load` needs so that the next batch is the one that would have come."""
        return {"waiting": self._waiting, "generator": self._generator.get_state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._waiting = state["waiting"]
        self._generator.set_state(state["generator"])

    def _draw_prior(self, prior: Prior) -> Batch:
        rows = torch.randint(len(prior.latents), (self._batch_size,), generator=self._generator)
        noise, times = self._noise_and_times(len(rows))
        own = self._collectives.share(len(rows))
        weights = torch.full((own.stop - own.start,), prior.weight / self._batch_size)
        latents = prior.latents[rows[own].to(prior.latents.device)]
        return Batch(latents, noise[own], times[own], [prior.prompts[row] for row in rows[own].tolist()], weights)

    def _noise_and_times(self, n: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn((n, *self.latents.shape), generator=self._generator)
        return noise, torch.randint(self._n_times, (n,), generator=self._generator)

    def _next_photos(self) -> list[int]:
        """A full batch of photos, from one shuffled pass after another."""
        while len(self._waiting) < self._batch_size:
            self._waiting += torch.randperm(len(self._prompts), generator=self._generator).tolist()
        batch, self._waiting = self._waiting[: self._batch_size], self._waiting[self._batch_size :]
        return batch


def _joined(one: Batch, other: Batch) -> Batch:
    tensors = (
        torch.cat(pair) for pair in ((one.clean, other.clean), (one.noise, other.noise), (one.times, other.times))
    )
    return Batch(*tensors, one.prompts + other.prompts, torch.cat([one.weights, other.weights]))


def share_prompts(batches: Sequence[Batch]) -> tuple[list[str], list[int] | None]:
    """The prompts to encode for a step, and for each sample the row of its prompt.

    Every adapter gets equally many rows, the last repeated where it has fewer. Rows are None where each adapter has
    one prompt: its samples then follow each other.
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
