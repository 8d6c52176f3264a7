"""Train LoRA adapters on one device (paper, eq. 2-3), several side by side: plain functions on tensors, no Ray.

The base model stays loaded and the LoRA weights are reset in place, so the next adapters cost no loading.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from datadream.adapt.batches import Batches
from datadream.adapt.gradient import LossGradient
from datadream.adapt.latent_cache import MOMENTS_BYTES, LatentCache
from datadream.adapt.prior_preservation import Prior, sample_priors
from datadream.adapt.samples import sample_images
from datadream.adapt.train_state import Training
from datadream.config import AdaptConfig
from datadream.methods.base import AdapterSpec, TrainingPhoto
from datadream.methods.n_steps import crops_per_step, n_steps
from datadream.models.diffusion.attention import SharedPromptAttention
from datadream.models.diffusion.compile import compile_blocks
from datadream.models.diffusion.kohya import Base, to_kohya
from datadream.models.diffusion.lora import StackedLora
from datadream.runtime.collectives import ALONE, Collectives
from datadream.runtime.cuda_graph import Function, Recorded
from datadream.runtime.device import is_out_of_memory, shortage

log = logging.getLogger(__name__)

KOHYA = "kohya.safetensors"
WARM_UP_STEPS, MEASURED_STEPS = 2, 5
"""The first step encodes crops and allocates memory; the second records what a GPU is to do (see `Recorded`)."""
OUT_OF_MEMORY = "the GPU's memory does not suffice for one adapter. Lower adapt.batch_size."

OnStep = Callable[[int, Tensor], None]
"""Hears the number of finished steps and each adapter's last loss, still on the device."""
OnSample = Callable[[int, bytes], None]
"""Gets the number of finished steps and a PNG of what an adapter then makes (adapt.samples_every)."""
Photos = Sequence[Image.Image]
"""Of one adapter; asked for one by one when they are needed."""


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """A finished adapter."""

    weights: bytes
    """The safetensors file."""
    losses: list[float]
    """Of every step."""
    vae_encodes: int
    """By this rank, since its last start."""
    seconds: float
    """Its share of the time of all that were trained beside it."""
    exports: dict[str, bytes]
    """Files in other programs' formats, by name."""


Outcome = TrainedAdapter | FloatingPointError | MemoryError


class AdapterTrainer:
    """Trains groups of adapters one after another on one loaded pipeline."""

    def __init__(self, pipeline: StableDiffusionPipeline, config: AdaptConfig, resolution: int) -> None:
        """Raises ValueError for a pipeline whose prediction type or attention layers are not known."""
        self._pipeline, self._config, self._resolution = pipeline, config, resolution
        pipeline.unet.set_attn_processor(SharedPromptAttention())
        if pipeline.device.type == "cuda":
            # The layout that tensor cores' convolutions want; on CPUs it is slower (11 to 19 % when generating).
            for module in (pipeline.unet, pipeline.vae):
                module.to(memory_format=torch.channels_last)
        if config.compile:
            compile_blocks(pipeline.unet)
        self._adapt(1)

    def train(
        self,
        specs: Sequence[AdapterSpec],
        photos: Sequence[Photos],
        on_step: OnStep = lambda step, losses: None,
        alive: Callable[[], None] = lambda: None,
        on_samples: Sequence[OnSample] = (),
    ) -> list[Outcome]:
        """Train the adapters of `specs`, each on its own photos, for the number of steps that they share.

        Every step is one pass over a batch of each; losses, gradient norms and optimiser states stay apart, so an
        adapter becomes what it would have become alone. An adapter whose loss stopped being finite gets its error in
        place of its weights. Where memory does not suffice for all, two halves are trained one after the other, down
        to one. `alive` is called now and then while something other than steps takes long; `on_samples`, one for each
        adapter, get its samples.
        """
        if not specs:
            return []
        by_crops: dict[int, list[int]] = defaultdict(list)
        for place, spec in enumerate(specs):
            by_crops[crops_per_step(spec, self._config)].append(place)
        if len(by_crops) > 1:
            # Stacked adapters cut a batch into equal parts: those of fewer photos are trained by themselves.
            outcomes: dict[int, Outcome] = {}
            for places in by_crops.values():
                alike, theirs = [specs[place] for place in places], [photos[place] for place in places]
                own_samples = [on_samples[place] for place in places] if on_samples else ()
                outcomes |= zip(places, self.train(alike, theirs, on_step, alive, own_samples), strict=True)
            return [outcomes[place] for place in range(len(specs))]
        # One number: the queue groups adapters of equal steps.
        (steps,) = {n_steps(spec, self._config) for spec in specs}
        try:
            return self._train(specs, photos, steps, on_step, alive, on_samples)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(specs) == 1:
                return [MemoryError(OUT_OF_MEMORY + shortage(error))]
        # Outside of the except block: the error's traceback would keep the tensors of the failed attempt alive.
        half = (len(specs) + 1) // 2
        log.warning("out of memory with %d adapters side by side: going on with %d", len(specs), half)
        torch.cuda.empty_cache()
        parts = (slice(half), slice(half, None))
        return [
            outcome
            for part in parts
            for outcome in self.train(specs[part], photos[part], on_step, alive, on_samples[part])
        ]

    def _train(
        self,
        specs: Sequence[AdapterSpec],
        photos: Sequence[Photos],
        steps: int,
        on_step: OnStep,
        alive: Callable[[], None],
        on_samples: Sequence[OnSample],
    ) -> list[Outcome]:
        # A frame of its own: where memory does not suffice, its tensors are gone before the halves begin.
        training = self._start(specs, photos, steps, alive=alive)
        for step in range(1, steps + 1):
            on_step(step, training.step())
            self._sample(specs, step, on_samples, alive)
        return self._finish(specs, training)

    def train_shared(
        self,
        spec: AdapterSpec,
        photos: Photos,
        collectives: Collectives = ALONE,
        checkpoint: bytes | None = None,
        save: Callable[[bytes], None] | None = None,
        save_every: int = 500,
        on_step: OnStep = lambda step, losses: None,
        on_samples: Sequence[OnSample] = (),
    ) -> TrainedAdapter:
        """Train one adapter by all ranks, each on its share of every batch; all return the same weights and losses.

        `save` gets a checkpoint every `save_every` steps; training goes on from `checkpoint` if there is one. Ranks
        that have `on_samples` make samples, and the others wait. Raises FloatingPointError when the loss stopped being
        finite, MemoryError when memory does not suffice.
        """
        steps = n_steps(spec, self._config)
        try:
            training = self._start([spec], [photos], steps, collectives)
            if checkpoint is not None:
                training.resume(checkpoint)
            collectives.check_same_step(len(training.losses), self._pipeline.device)
            for step in range(len(training.losses) + 1, steps + 1):
                on_step(step, training.step())
                self._sample([spec], step, on_samples)
                if step % save_every == 0 and step < steps:
                    # On every rank, for all must stop at the same step; and a broken state must not be saved.
                    _check_finite(training.curves()[0])
                    if save is not None:
                        save(training.checkpoint())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(OUT_OF_MEMORY + shortage(error)) from None
        (outcome,) = self._finish([spec], training)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def fastest_group(self, most: int, n_photos: int | None = None) -> int:
        """How many adapters, at most `most`, to train side by side on this device, if each has `n_photos`, or as many
        as a full batch needs.

        Doubles their number while that makes a step of one of them at least 5 % faster and fits the memory.
        """
        n_photos = n_photos or self._config.batch_size
        blank = [Image.new("RGB", (self._resolution, self._resolution))] * n_photos
        spec, prior = AdapterSpec("measured", (TrainingPhoto("", ""),) * n_photos, 1, 0), None
        if self._config.prior_weight:
            # One blank sample: what a prior costs in a step is measured, and generating one is not.
            shape = LatentCache(self._pipeline.vae, blank, self._resolution, self._config.crop_grid).shape
            prior = Prior(torch.zeros((1, *shape), device=self._pipeline.device), [""], self._config.prior_weight)
        best, best_seconds, size = 1, math.inf, 1
        while size <= most:
            ends = []
            try:
                n_steps = WARM_UP_STEPS + MEASURED_STEPS
                training = self._start([spec] * size, [blank] * size, n_steps, priors=[prior] * size)
                for _ in range(n_steps):
                    training.step().sum().item()  # waits for the device
                    ends.append(time.monotonic())
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                break
            # Its optimiser's state would take memory from the next size, and so would freed blocks of unlike sizes.
            del training
            torch.cuda.empty_cache()
            seconds = (ends[-1] - ends[WARM_UP_STEPS - 1]) / MEASURED_STEPS / size
            if seconds > 0.95 * best_seconds:
                break
            best, best_seconds, size = size, seconds, 2 * size
        # The largest that was tried is often more than will be trained.
        self._lora.remove()
        self._adapt(best)
        torch.cuda.empty_cache()
        return best

    def _start(
        self,
        specs: Sequence[AdapterSpec],
        photos: Sequence[Photos],
        steps: int,
        collectives: Collectives = ALONE,
        alive: Callable[[], None] = lambda: None,
        priors: Sequence[Prior | None] | None = None,
    ) -> Training:
        """Fresh adapters, with the base generator's samples unless they are given."""
        pipeline, config, resolution = self._pipeline, self._config, self._resolution
        if self._n_adapters != len(specs):
            self._lora.remove()
            self._adapt(len(specs))
        for row, spec in enumerate(specs):
            self._lora.reset(row, spec.seed)
        # After the reset: an adapter that was trained before would change what the base generator makes.
        priors = priors or sample_priors(pipeline, specs, config, resolution, collectives, alive)
        streams = []
        for spec, images, prior in zip(specs, photos, priors, strict=True):
            latents = LatentCache(pipeline.vae, images, resolution, config.crop_grid, MOMENTS_BYTES // len(specs))
            n_times = pipeline.scheduler.config.num_train_timesteps
            n_crops = crops_per_step(spec, config)
            streams.append(Batches(spec, latents, n_times, n_crops, prior, collectives))
        return Training(self._lora, self._gradient, pipeline.tokenizer, streams, config, steps, collectives)

    def _adapt(self, n: int) -> None:
        """Put `n` adapters on the pipeline, which has none, and make their losses and gradient."""
        # None until all is done: memory may end half way, and fewer are tried then.
        self._n_adapters = 0
        lora = StackedLora(self._pipeline, n, self._config.rank, self._config.text_encoder)
        gradient = LossGradient(self._pipeline, lora)
        self._lora = lora
        self._gradient: Function = Recorded(gradient) if self._config.compile else gradient
        self._n_adapters = n

    def _sample(
        self,
        specs: Sequence[AdapterSpec],
        step: int,
        on_samples: Sequence[OnSample],
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        if self._config.samples_every and step % self._config.samples_every == 0:
            for row, on_sample in enumerate(on_samples):
                on_sample(step, sample_images(self._pipeline, self._lora, row, specs[row], self._resolution))
                alive()

    def _finish(self, specs: Sequence[AdapterSpec], training: Training) -> list[Outcome]:
        curves, seconds = training.curves(), training.seconds / len(specs)
        outcomes: list[Outcome] = []
        for row, (spec, losses, stream) in enumerate(zip(specs, curves, training.streams, strict=True)):
            try:
                _check_finite(losses)
            except FloatingPointError as error:
                outcomes.append(error)
                continue
            weights = self._lora.to_bytes(row)
            exports = (
                {KOHYA: to_kohya(weights, Base.of(self._pipeline), spec.adapter_id)} if self._config.kohya else {}
            )
            outcomes.append(TrainedAdapter(weights, losses.tolist(), stream.latents.encodes, seconds, exports))
        return outcomes


def _check_finite(losses: Tensor) -> None:
    """Raises FloatingPointError naming the first step whose loss is not finite."""
    broken = (~losses.isfinite()).nonzero()
    if len(broken):
        step = broken[0].item()
        raise FloatingPointError(f"the loss is {losses[step].item()} at step {step + 1}. Lower adapt.learning_rate.")
