"""Train LoRA adapters on one device (paper, eq. 2-3), several side by side: plain functions on tensors, no Ray.

The base model stays loaded and the LoRA weights are reset in place, so the next adapters cost no loading.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import Tensor

from datadream.adapt.batches import Batch, Batches, share_prompts
from datadream.adapt.latents import LatentCache
from datadream.adapt.steps import n_steps
from datadream.config import AdaptConfig
from datadream.methods.base import AdapterSpec, TrainingPhoto
from datadream.models.attention import SharedPromptAttention
from datadream.models.kohya import to_kohya
from datadream.models.lora import StackedLora

log = logging.getLogger(__name__)

LOSS_EVERY = 10
KOHYA = "kohya.safetensors"
MEASURED_STEPS = 6


OnStep = Callable[[int, Tensor], None]
"""Hears the number of finished steps and each adapter's last loss, still on the device."""


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """A finished adapter."""

    weights: bytes
    """The safetensors file."""
    losses: list[float]
    """Of every step."""
    vae_encodes: int
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
        self._noise_schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        self._target = _target_of(self._noise_schedule)
        pipeline.unet.set_attn_processor(SharedPromptAttention())
        self._lora = StackedLora(pipeline, 1, config.rank, config.text_encoder)

    def train(
        self,
        specs: Sequence[AdapterSpec],
        photos: Sequence[Sequence[Image.Image]],
        on_step: OnStep = lambda step, losses: None,
    ) -> list[TrainedAdapter | FloatingPointError | MemoryError]:
        """Train the adapters of `specs`, each on its own photos, for the number of steps that they share.

        Every step is one pass over a batch of each; losses, gradient norms and optimiser states stay apart, so an
        adapter becomes what it would have become alone. An adapter whose loss stopped being finite gets its error in
        place of its weights. Where memory does not suffice for all, two halves are trained one after the other, down
        to one.
        """
        if not specs:
            return []
        try:
            (steps,) = {n_steps(spec, self._config) for spec in specs}
            return self._train(specs, photos, on_step, steps)
        except torch.OutOfMemoryError:
            if len(specs) == 1:
                return [MemoryError("the GPU's memory does not suffice for one adapter. Lower adapt.batch_size.")]
        half = (len(specs) + 1) // 2
        log.warning("out of memory with %d adapters side by side: going on with %d", len(specs), half)
        torch.cuda.empty_cache()
        parts = (slice(half), slice(half, None))
        return [outcome for part in parts for outcome in self.train(specs[part], photos[part], on_step)]

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

        self._train([spec] * n_adapters, [blank] * n_adapters, clock, MEASURED_STEPS)
        return (ends[-1] - ends[0]) / (MEASURED_STEPS - 1) / n_adapters

    def _train(
        self, specs: Sequence[AdapterSpec], photos: Sequence[Sequence[Image.Image]], on_step: OnStep, steps: int
    ) -> list[TrainedAdapter | FloatingPointError]:
        started = time.monotonic()
        self._start(specs)
        streams = [
            Batches(
                spec,
                LatentCache(self._pipeline.vae, images, self._resolution, self._config.crop_grid),
                self._noise_schedule,
                self._config.batch_size,
            )
            for spec, images in zip(specs, photos, strict=True)
        ]
        optimizer, schedule = self._optimizer(steps)
        losses = []
        for step in range(steps):
            loss = self._losses([stream.draw() for stream in streams])
            self._lora.weights.grad = self._clipped_gradients(loss)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            on_step(step + 1, losses[-1])
        curves = torch.stack(losses, dim=1).cpu()
        seconds = (time.monotonic() - started) / len(specs)
        return [
            self._finished(row, spec, curve, stream.latents.encodes, seconds)
            for row, (spec, curve, stream) in enumerate(zip(specs, curves, streams, strict=True))
        ]

    def _start(self, specs: Sequence[AdapterSpec]) -> None:
        if len(self._lora.weights) != len(specs):
            self._lora.remove()
            self._lora = StackedLora(self._pipeline, len(specs), self._config.rank, self._config.text_encoder)
        for row, spec in enumerate(specs):
            self._lora.reset(row, spec.seed)

    def _optimizer(self, steps: int) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LRScheduler]:
        config = self._config
        optimizer = torch.optim.AdamW(
            [self._lora.weights], lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        warmup = min(config.warmup_steps, steps // 2)
        return optimizer, get_scheduler(config.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)

    def _losses(self, batches: Sequence[Batch]) -> Tensor:
        """Each adapter's mean squared error of the prediction, [adapters]; each prompt is encoded once."""
        device, dtype = self._pipeline.device, self._pipeline.unet.dtype
        clean = torch.cat([batch.clean for batch in batches])
        noise, times = (
            torch.cat(parts).to(device) for parts in zip(*((b.noise, b.times) for b in batches), strict=True)
        )
        noisy = self._noise_schedule.add_noise(clean, noise, times)
        prompts, rows = share_prompts(batches)
        shared = {"prompt_rows": None if rows is None else torch.tensor(rows, device=device)}
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            encoded = self._pipeline.text_encoder(self._tokens(prompts))[0]
            predicted = self._pipeline.unet(
                noisy.to(dtype), times, encoded, cross_attention_kwargs=shared, return_dict=False
            )[0]
        error = predicted.float() - self._target(clean, noise, times)
        return error.square().reshape(len(batches), -1).mean(dim=1)

    def _tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids [prompts, length]."""
        return torch.stack([self._tokens_of(prompt) for prompt in prompts])

    @cache  # noqa: B019 - a trainer lives as long as its process
    def _tokens_of(self, prompt: str) -> Tensor:
        encoded = self._pipeline.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt")
        return encoded.input_ids[0].to(self._pipeline.device)

    def _clipped_gradients(self, losses: Tensor) -> Tensor:
        """Gradients [adapters, numbers of an adapter], each row at most `max_grad_norm` long."""
        parts = torch.autograd.grad(losses.sum(), self._lora.parts)
        gradients = torch.cat([part.flatten(1) for part in parts], dim=1)
        length = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
        return gradients.mul_((self._config.max_grad_norm / (length + 1e-6)).clamp(max=1))

    def _finished(
        self, row: int, spec: AdapterSpec, losses: Tensor, vae_encodes: int, seconds: float
    ) -> TrainedAdapter | FloatingPointError:
        broken = (~losses.isfinite()).nonzero()
        if len(broken):
            step = broken[0].item()
            return FloatingPointError(
                f"the loss is {losses[step].item()} at step {step + 1}. Lower adapt.learning_rate."
            )
        weights = self._lora.to_bytes(row)
        exports = {KOHYA: to_kohya(weights, self._pipeline, spec.adapter_id)} if self._config.kohya else {}
        return TrainedAdapter(weights, losses.tolist(), vae_encodes, seconds, exports)


def _target_of(schedule: DDPMScheduler) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What the UNet is to predict from (clean, noise, times)."""
    kind = schedule.config.prediction_type
    if kind == "epsilon":
        return lambda clean, noise, times: noise
    if kind == "v_prediction":
        return schedule.get_velocity
    raise ValueError(f"the pipeline's scheduler has prediction_type {kind!r}: need epsilon or v_prediction.")
