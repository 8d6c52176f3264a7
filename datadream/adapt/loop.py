"""Train one LoRA adapter on one device (paper, eq. 2-3): plain functions on tensors, no Ray.

The base model stays loaded and the LoRA weights are reset in place, so the next adapter costs no loading.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from PIL import Image

from datadream.adapt.latents import LatentCache
from datadream.adapt.steps import n_steps
from datadream.config import AdaptConfig
from datadream.methods.base import AdapterSpec
from datadream.models import lora

LOSS_EVERY = 10


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """A finished adapter."""

    weights: bytes
    """The safetensors file."""
    losses: list[tuple[int, float]]
    """(step, mean loss of the steps since the last entry)."""
    steps: int
    vae_encodes: int
    seconds: float


class AdapterTrainer:
    """Trains adapters one after another on one loaded pipeline."""

    def __init__(self, pipeline: StableDiffusionPipeline, config: AdaptConfig, resolution: int) -> None:
        self._pipeline, self._config, self._resolution = pipeline, config, resolution
        self._noise_schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        lora.attach(pipeline, config.rank, config.text_encoder)
        self._parameters = [parameter for _, parameter in lora.named_lora_parameters(pipeline)]

    def train(
        self, spec: AdapterSpec, images: Sequence[Image.Image], on_step: Callable[[int], None] = lambda step: None
    ) -> TrainedAdapter:
        """Train the adapter of `spec` on its photos; `on_step` hears the number of finished steps.

        Raises FloatingPointError when the loss stops being finite.
        """
        started = time.monotonic()
        lora.reset(self._pipeline, spec.seed)
        generator = torch.Generator().manual_seed(spec.seed)
        steps = n_steps(spec, self._config)
        optimizer, schedule = self._optimizer(steps)
        latents = LatentCache(self._pipeline.vae, images, self._resolution)
        prompts = self._tokenize(spec)
        batches = _endless_batches(len(images), self._config.batch_size, generator)
        losses = []
        for step in range(steps):
            loss = self._loss(next(batches), latents, prompts, generator)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            on_step(step + 1)
        weights = lora.to_bytes(self._pipeline, self._config.text_encoder)
        return TrainedAdapter(weights, _curve(losses), steps, latents.encodes, time.monotonic() - started)

    def _optimizer(self, steps: int) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LRScheduler]:
        config = self._config
        # Fused: one call for some hundred small tensors, a fifth of a small model's step otherwise.
        optimizer = torch.optim.AdamW(
            self._parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        warmup = min(config.warmup_steps, steps // 2)
        return optimizer, get_scheduler(config.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)

    def _tokenize(self, spec: AdapterSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [distinct prompts, length], and for each photo the row of its prompt."""
        distinct = sorted({photo.prompt for photo in spec.photos})
        tokens = self._pipeline.tokenizer(
            distinct, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        rows = torch.tensor([distinct.index(photo.prompt) for photo in spec.photos])
        return tokens.to(self._pipeline.device), rows

    def _loss(
        self,
        batch: list[int],
        latents: LatentCache,
        prompts: tuple[torch.Tensor, torch.Tensor],
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Mean squared error of the prediction for one batch, each prompt encoded once."""
        device, dtype = self._pipeline.device, self._pipeline.unet.dtype
        clean = latents.sample(batch, generator)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        times = torch.randint(self._noise_schedule.config.num_train_timesteps, (len(batch),), generator=generator).to(
            device
        )
        noisy = self._noise_schedule.add_noise(clean, noise, times)
        tokens, rows = prompts
        used, position = rows[batch].unique(return_inverse=True)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            encoded = self._pipeline.text_encoder(tokens[used.to(device)])[0][position.to(device)]
            predicted = self._pipeline.unet(noisy.to(dtype), times, encoded, return_dict=False)[0]
        return F.mse_loss(predicted.float(), self._target(clean, noise, times))

    def _target(self, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        kind = self._noise_schedule.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            return self._noise_schedule.get_velocity(clean, noise, times)
        raise ValueError(f"the pipeline's scheduler has prediction_type {kind!r}: need epsilon or v_prediction.")


def _endless_batches(n_photos: int, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Full batches of photo indices from one shuffled pass after another."""
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += torch.randperm(n_photos, generator=generator).tolist()
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _curve(losses: list[torch.Tensor]) -> list[tuple[int, float]]:
    values = torch.stack(losses).cpu()
    broken = (~values.isfinite()).nonzero()
    if len(broken):
        raise FloatingPointError(f"the loss is {values[broken[0]].item()} at step {broken[0].item() + 1}.")
    return [
        (start + len(part), part.mean().item())
        for start, part in zip(range(0, len(values), LOSS_EVERY), values.split(LOSS_EVERY), strict=True)
    ]
