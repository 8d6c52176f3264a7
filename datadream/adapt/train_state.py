"""The state of some adapters in training, side by side, and one optimiser step of all of them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from torch import Tensor

from datadream.adapt.batches import Batches, share_prompts
from datadream.config import AdaptConfig
from datadream.models.diffusion.lora import StackedLora
from datadream.runtime.collectives import ALONE, Collectives
from datadream.runtime.device import upload


class Training:
    """Trains every row of `lora.weights` on its own stream of batches, for a known number of steps."""

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        lora: StackedLora,
        streams: Sequence[Batches],
        config: AdaptConfig,
        steps: int,
        collectives: Collectives = ALONE,
    ) -> None:
        """Raises ValueError when the pipeline's prediction type is not known."""
        self.streams = streams
        self._started, self._seconds_before = time.monotonic(), 0.0
        self.losses: list[Tensor] = []
        self._pipeline, self._lora, self._config, self._collectives = pipeline, lora, config, collectives
        self._token_ids: dict[str, Tensor] = {}
        # The noise levels that the pipeline was trained with, whatever sampler its folder names.
        self._noise_schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        self._target = target_of(self._noise_schedule)
        self._optimizer = torch.optim.AdamW(
            [lora.weights],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=pipeline.device.type == "cuda",  # its step count stays on the device
        )
        self._schedule = get_scheduler(
            config.schedule,
            self._optimizer,
            num_warmup_steps=min(config.warmup_steps, steps // 2),  # a short training is to reach its full rate too
            num_training_steps=steps,
        )

    def step(self) -> Tensor:
        """One step; returns each adapter's loss [adapters], still on the device, before the step."""
        losses = self._forward()
        parts = torch.autograd.grad(losses.sum(), self._lora.parts)
        gradient, loss = torch.cat([part.flatten(1) for part in parts], dim=1), losses.detach()
        self._collectives.sum(gradient)
        self._collectives.sum(loss)
        # Clipped row by row, as each adapter's would be alone; clip_grad_norm_ would take the norm of all.
        length = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        gradient.mul_((self._config.max_grad_norm / (length + 1e-6)).clamp(max=1))
        self._lora.weights.grad = gradient
        self._optimizer.step()
        self._schedule.step()
        self.losses.append(loss)
        return loss

    @property
    def seconds(self) -> float:
        """Since the first start, pauses not counted."""
        return self._seconds_before + time.monotonic() - self._started

    def check_ranks_agree(self) -> None:
        """Raises RuntimeError when ranks are not at the same step: one read another checkpoint than the others."""
        steps = torch.tensor(float(len(self.losses)), device=self._lora.weights.device)
        self._collectives.sum(steps)
        if steps.item() != self._collectives.count * len(self.losses):
            raise RuntimeError("the workers see different checkpoints: the run's folder is not the same for all.")

    def curves(self) -> Tensor:
        """Losses [adapters, steps done], on the CPU."""
        return torch.stack(self.losses, dim=1).cpu()

    def checkpoint(self) -> bytes:
        """All that `resume` needs to take the same steps that would have followed."""
        state = {
            "weights": self._lora.weights.detach(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "streams": [stream.state() for stream in self.streams],
            "losses": self.curves(),
            "seconds": self.seconds,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    @torch.no_grad()
    def resume(self, checkpoint: bytes) -> None:
        """Go on from a `checkpoint`."""
        state: dict[str, Any] = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)
        self._seconds_before = state["seconds"]
        self._lora.weights.copy_(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        for stream, own in zip(self.streams, state["streams"], strict=True):
            stream.load(own)
        self.losses = list(state["losses"].to(self._lora.weights.device).unbind(dim=1))

    def _forward(self) -> Tensor:
        """Each adapter's loss, our rank's part of it; each prompt is encoded once."""
        batches = [stream.sample() for stream in self.streams]
        device, dtype = self._pipeline.device, self._pipeline.unet.dtype
        clean = torch.cat([batch.clean for batch in batches])
        noise, times, weights = (
            upload(torch.cat(parts), device)
            for parts in zip(*((batch.noise, batch.times, batch.weights) for batch in batches), strict=True)
        )
        noisy = self._noise_schedule.add_noise(clean, noise, times)
        prompts, rows = share_prompts(batches)
        for prompt in set(prompts) - self._token_ids.keys():
            tokens = self._pipeline.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt")
            self._token_ids[prompt] = tokens.input_ids[0].to(device)
        shared = {"prompt_rows": None if rows is None else upload(torch.tensor(rows), device)}
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            encoded = self._pipeline.text_encoder(torch.stack([self._token_ids[prompt] for prompt in prompts]))[0]
            predicted = self._pipeline.unet(
                noisy.to(dtype), times, encoded, cross_attention_kwargs=shared, return_dict=False
            )[0]
        # The loss in fp32: bf16 has too few digits for sums of squares.
        error = predicted.float() - self._target(clean, noise, times)
        return (error.square().flatten(1).mean(dim=1) * weights).reshape(len(batches), -1).sum(dim=1)


def target_of(schedule: DDPMScheduler) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What the UNet is to predict from (clean, noise, times); raises ValueError for an unknown prediction type."""
    kind = schedule.config.prediction_type
    if kind == "epsilon":
        return lambda clean, noise, times: noise
    if kind == "v_prediction":
        return schedule.get_velocity
    raise ValueError(f"the pipeline's scheduler has prediction_type {kind!r}: need epsilon or v_prediction.")
