"""Train LoRA adapters on one device (paper, eq. 2-3), several side by side: plain functions on tensors, no Ray.

The base model stays loaded and the LoRA weights are reset in place, so the next adapters cost no loading.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from datadream.adapt.batches import Batches
from datadream.adapt.latent_cache import LatentCache
from datadream.adapt.prior_preservation import Prior, draw_priors
from datadream.adapt.train_state import Training, noise_schedule, target_of
from datadream.config import AdaptConfig
from datadream.methods.base import AdapterSpec, TrainingPhoto
from datadream.methods.n_steps import n_steps
from datadream.models.diffusion.attention import SharedPromptAttention
from datadream.models.diffusion.kohya import to_kohya
from datadream.models.diffusion.lora import StackedLora
from datadream.runtime.collectives import ALONE, Collectives

log = logging.getLogger(__name__)

LOSS_EVERY = 10
KOHYA = "kohya.safetensors"
MEASURED_STEPS = 6
OUT_OF_MEMORY = "the GPU's memory does not suffice for one adapter. Lower adapt.batch_size."


OnStep = Callable[[int, Tensor], None]
"""Hears the number of finished steps and each adapter's last loss, still on the device."""
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

    def curve(self) -> list[tuple[int, float]]:
        """(step, mean loss of the steps since the last entry)."""
        ends = [min(len(self.losses), start + LOSS_EVERY) for start in range(0, len(self.losses), LOSS_EVERY)]
        starts = [0, *ends[:-1]]
        return [(end, fmean(self.losses[start:end])) for start, end in zip(starts, ends, strict=True)]


class AdapterTrainer:
    """Trains groups of adapters one after another on one loaded pipeline."""

    def __init__(self, pipeline: StableDiffusionPipeline, config: AdaptConfig, resolution: int) -> None:
        """Raises ValueError for a pipeline whose prediction type or attention layers are not known."""
        self._pipeline, self._config, self._resolution = pipeline, config, resolution
        target_of(noise_schedule(pipeline))
        pipeline.unet.set_attn_processor(SharedPromptAttention())
        if pipeline.device.type == "cuda":
            # The layout that tensor cores' convolutions want; on CPUs it is slower.
            for module in (pipeline.unet, pipeline.vae):
                module.to(memory_format=torch.channels_last)
        if config.compile:
            pipeline.unet.compile_repeated_blocks()
        self._lora = StackedLora(pipeline, 1, config.rank, config.text_encoder)

    def train(
        self,
        specs: Sequence[AdapterSpec],
        photos: Sequence[Photos],
        on_step: OnStep = lambda step, losses: None,
        alive: Callable[[], None] = lambda: None,
    ) -> list[TrainedAdapter | FloatingPointError | MemoryError]:
        """Train the adapters of `specs`, each on its own photos, for the number of steps that they share.

        Every step is one pass over a batch of each; losses, gradient norms and optimiser states stay apart, so an
        adapter becomes what it would have become alone. An adapter whose loss stopped being finite gets its error in
        place of its weights. Where memory does not suffice for all, two halves are trained one after the other, down
        to one. `alive` is called now and then while something other than steps takes long.
        """
        if not specs:
            return []
        try:
            (steps,) = {n_steps(spec, self._config) for spec in specs}
            return self._train(specs, photos, on_step, steps, self._priors(specs, alive=alive))
        except torch.OutOfMemoryError:
            if len(specs) == 1:
                return [MemoryError(OUT_OF_MEMORY)]
        half = (len(specs) + 1) // 2
        log.warning("out of memory with %d adapters side by side: going on with %d", len(specs), half)
        torch.cuda.empty_cache()
        parts = (slice(half), slice(half, None))
        return [outcome for part in parts for outcome in self.train(specs[part], photos[part], on_step, alive)]

    def train_shared(
        self,
        spec: AdapterSpec,
        photos: Photos,
        collectives: Collectives = ALONE,
        checkpoint: bytes | None = None,
        save: Callable[[bytes], None] | None = None,
        save_every: int = 500,
        on_step: OnStep = lambda step, losses: None,
    ) -> TrainedAdapter:
        """Train one adapter by all ranks, each on its share of every batch; all return the same weights and losses.

        `save` gets a checkpoint every `save_every` steps; training goes on from `checkpoint` if there is one. Raises
        FloatingPointError when the loss stopped being finite, MemoryError when memory does not suffice.
        """
        steps = n_steps(spec, self._config)
        try:
            training = self._start([spec], [photos], steps, self._priors([spec], collectives), collectives)
            if checkpoint is not None:
                training.resume(checkpoint)
            training.check_ranks_agree()
            for step in range(len(training.losses) + 1, steps + 1):
                on_step(step, training.step())
                if step % save_every == 0 and step < steps:
                    _check_finite(training.curves()[0])
                    if save is not None:
                        save(training.checkpoint())
        except torch.OutOfMemoryError:
            raise MemoryError(OUT_OF_MEMORY) from None
        (outcome,) = self._finish([spec], training)
        if isinstance(outcome, FloatingPointError):
            raise outcome
        return outcome

    def fastest_group(self, most: int) -> int:
        """How many adapters, at most `most`, to train side by side on this device.

        Doubles their number while that makes a step of one of them at least 5 % faster and fits the memory.
        """
        best, best_seconds = 1, self._seconds_per_adapter(1)
        while 2 * best <= most:
            try:
                seconds = self._seconds_per_adapter(2 * best)
            except torch.OutOfMemoryError:
                break
            if seconds > 0.95 * best_seconds:
                break
            best, best_seconds = 2 * best, seconds
        return best

    def _seconds_per_adapter(self, n_adapters: int) -> float:
        """Time a few steps on blank photos, the first one apart."""
        blank = [Image.new("RGB", (self._resolution, self._resolution))]
        spec = AdapterSpec("measured", (TrainingPhoto("", ""),), 1, 0)
        ends: list[float] = []

        def clock(step: int, losses: Tensor) -> None:
            losses.sum().item()  # waits for the device
            ends.append(time.monotonic())

        shape = LatentCache(self._pipeline.vae, blank, self._resolution, self._config.crop_grid).shape
        prior = Prior(torch.zeros((1, *shape), device=self._pipeline.device), [""], self._config.prior_weight)
        priors = [prior if prior.weight else None] * n_adapters
        self._train([spec] * n_adapters, [blank] * n_adapters, clock, MEASURED_STEPS, priors)
        return (ends[-1] - ends[0]) / (MEASURED_STEPS - 1) / n_adapters

    def _train(
        self,
        specs: Sequence[AdapterSpec],
        photos: Sequence[Photos],
        on_step: OnStep,
        steps: int,
        priors: Sequence[Prior | None],
    ) -> list[TrainedAdapter | FloatingPointError]:
        training = self._start(specs, photos, steps, priors)
        for step in range(1, steps + 1):
            on_step(step, training.step())
        return self._finish(specs, training)

    def _priors(
        self, specs: Sequence[AdapterSpec], collectives: Collectives = ALONE, alive: Callable[[], None] = lambda: None
    ) -> list[Prior | None]:
        self._reset(specs)
        return draw_priors(self._pipeline, specs, self._config, self._resolution, collectives, alive)

    def _start(
        self,
        specs: Sequence[AdapterSpec],
        photos: Sequence[Photos],
        steps: int,
        priors: Sequence[Prior | None],
        collectives: Collectives = ALONE,
    ) -> Training:
        self._reset(specs)
        config, schedule = self._config, noise_schedule(self._pipeline)
        streams = []
        for spec, images, prior in zip(specs, photos, priors, strict=True):
            latents = LatentCache(self._pipeline.vae, images, self._resolution, config.crop_grid)
            streams.append(Batches(spec, latents, schedule, config.batch_size, prior, collectives))
        return Training(self._pipeline, self._lora, streams, config, steps, collectives)

    def _reset(self, specs: Sequence[AdapterSpec]) -> None:
        if len(self._lora.weights) != len(specs):
            self._lora.remove()
            self._lora = StackedLora(self._pipeline, len(specs), self._config.rank, self._config.text_encoder)
        for row, spec in enumerate(specs):
            self._lora.reset(row, spec.seed)

    def _finish(self, specs: Sequence[AdapterSpec], training: Training) -> list[TrainedAdapter | FloatingPointError]:
        curves, seconds = training.curves(), training.seconds / len(specs)
        outcomes: list[TrainedAdapter | FloatingPointError] = []
        for row, (spec, losses, stream) in enumerate(zip(specs, curves, training.streams, strict=True)):
            try:
                _check_finite(losses)
            except FloatingPointError as error:
                outcomes.append(error)
                continue
            weights = self._lora.to_bytes(row)
            exports = {KOHYA: to_kohya(weights, self._pipeline, spec.adapter_id)} if self._config.kohya else {}
            outcomes.append(TrainedAdapter(weights, losses.tolist(), stream.latents.encodes, seconds, exports))
        return outcomes


def _check_finite(losses: Tensor) -> None:
    """Raises FloatingPointError naming the first step whose loss is not finite."""
    broken = (~losses.isfinite()).nonzero()
    if len(broken):
        step = broken[0].item()
        raise FloatingPointError(f"the loss is {losses[step].item()} at step {step + 1}. Lower adapt.learning_rate.")
