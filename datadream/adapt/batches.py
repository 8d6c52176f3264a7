"""The training batches of one adapter: which crops, which noise, which times, all from the adapter's own seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datadream.adapt.latent_cache import LatentCache
from datadream.adapt.prior_preservation import Prior
from datadream.methods.base import AdapterSpec
from datadream.runtime.collectives import ALONE, Collectives
from datadream.runtime.device import upload


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input of one adapter: crops of photos and, with a prior, samples of it; `n` in all.

    On the CPU, where the random numbers come from, but for the latents.
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
    """Samples the batches of an adapter.

    The numbers depend on the adapter's seed alone, and not on what is trained beside it nor on the number of workers.
    """

    def __init__(
        self,
        spec: AdapterSpec,
        latents: LatentCache,
        n_times: int,
        batch_size: int,
        prior: Prior | None = None,
        collectives: Collectives = ALONE,
    ) -> None:
        """`n_times` are the noise levels that there are; `batch_size` counts photos, of all ranks together, and a
        prior adds as many samples."""
        self.latents = latents
        self._prompts = [photo.prompt for photo in spec.photos]
        self._n_times, self._batch_size, self._prior, self._collectives = n_times, batch_size, prior, collectives
        self._generator = torch.Generator().manual_seed(spec.seed)
        self._waiting: list[int] = []

    def sample(self) -> Batch:
        """Our rank's share of the next batch. Every rank samples all random numbers, and encodes its own crops."""
        n, own = self._batch_size, self._collectives.share(self._batch_size)
        # One shuffled pass after another: each photo is seen equally often, also where a batch has more than there
        # are.
        while len(self._waiting) < n:
            self._waiting += torch.randperm(len(self._prompts), generator=self._generator).tolist()
        indices, self._waiting = self._waiting[:n], self._waiting[n:]
        crops, latent_noise = self.latents.sample_crops(indices, self._generator)
        noise, times = self._noise_and_times()
        clean = self.latents.latents(crops[own], latent_noise[own])
        prompts, weights = [self._prompts[index] for index in indices[own]], torch.full((own.stop - own.start,), 1 / n)
        if self._prior is None:
            return Batch(clean, noise[own], times[own], prompts, weights)
        # The prior's numbers come after the photos': with and without it, the first batch has the same crops.
        prior, rows = self._prior, torch.randint(len(self._prior.latents), (n,), generator=self._generator)[own]
        prior_noise, prior_times = self._noise_and_times()
        return Batch(
            torch.cat([clean, prior.latents[upload(rows, prior.latents.device)]]),
            torch.cat([noise[own], prior_noise[own]]),
            torch.cat([times[own], prior_times[own]]),
            prompts + [prior.prompts[row] for row in rows.tolist()],
            torch.cat([weights, torch.full_like(weights, prior.weight / n)]),
        )

    def _noise_and_times(self) -> tuple[Tensor, Tensor]:
        # Noise, then times: the order of the generator's numbers is in every adapter's bytes.
        noise = torch.randn((self._batch_size, *self.latents.shape), generator=self._generator)
        return noise, torch.randint(self._n_times, (self._batch_size,), generator=self._generator)

    def state(self) -> dict[str, Any]:
        """What `load` needs so that the next batch is the one that would have come."""
        return {"waiting": self._waiting, "generator": self._generator.get_state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._waiting = state["waiting"]
        self._generator.set_state(state["generator"])


def share_prompts(batches: Sequence[Batch]) -> tuple[list[str], list[int] | None]:
    """The prompts to encode for a step, and for each sample the row of its prompt.

    Every adapter gets equally many rows, the last repeated where it has fewer. Rows are None where each adapter has
    one prompt: its samples then follow each other.
    """
    # Equally many, because stacked adapters cut the rows of a batch into equal parts.
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
