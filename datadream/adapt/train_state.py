"""The state of some adapters in training, side by side, and one optimiser step of all of them."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor
from transformers import CLIPTokenizer

from datadream.adapt.batches import Batches, share_prompts
from datadream.config import AdaptConfig
from datadream.methods.n_steps import n_warmup_steps
from datadream.models.diffusion.lora import StackedLora
from datadream.runtime.collectives import ALONE, Collectives
from datadream.runtime.cuda_graph import Function
from datadream.runtime.device import upload


class Training:
    """Trains every row of `lora.weights` on its own stream of batches, for a known number of steps."""

    def __init__(
        self,
        lora: StackedLora,
        gradient: Function,
        tokenizer: CLIPTokenizer,
        streams: Sequence[Batches],
        config: AdaptConfig,
        steps: int,
        collectives: Collectives = ALONE,
    ) -> None:
        """`gradient` is a `LossGradient`, `Recorded` or not."""
        self.streams = streams
        self._started, self._seconds_before = time.monotonic(), 0.0
        self.losses: list[Tensor] = []
        self._lora, self._gradient, self._tokenizer = lora, gradient, tokenizer
        self._config, self._collectives = config, collectives
        self._token_ids: dict[str, Tensor] = {}
        self._optimizer = torch.optim.AdamW(
            [lora.weights],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=lora.weights.is_cuda,  # its step count stays on the device
        )
        self._schedule = get_scheduler(
            # What diffusers calls constant has no warm-up.
            "constant_with_warmup" if config.schedule == "constant" else config.schedule,
            self._optimizer,
            num_warmup_steps=n_warmup_steps(steps, config),
            num_training_steps=steps,
        )

    def step(self) -> Tensor:
        """One step; returns each adapter's loss [adapters], still on the device, before the step."""
        loss, gradient = self._gradient(*self._sample())
        self._collectives.sum(gradient)
        self._collectives.sum(loss)
        # Clipped row by row, as each adapter's would be alone; clip_grad_norm_ would take the norm of all. 1e-6 is its
        # own, so that an adapter is clipped as in the authors' code.
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

    def _sample(self) -> tuple[Tensor | None, ...]:
        """Our rank's part of the next batch of all adapters, on the device, as `LossGradient` takes it."""
        batches, device = [stream.sample() for stream in self.streams], self._lora.weights.device
        clean = torch.cat([batch.clean for batch in batches])
        noise, times, weights = (
            upload(torch.cat(parts), device)
            for parts in zip(*((batch.noise, batch.times, batch.weights) for batch in batches), strict=True)
        )
        # Tokens are kept on the device, so that a step copies none and waits for none.
        prompts, rows = share_prompts(batches)
        for prompt in set(prompts) - self._token_ids.keys():
            tokens = self._tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt")
            self._token_ids[prompt] = tokens.input_ids[0].to(device)
        token_ids = torch.stack([self._token_ids[prompt] for prompt in prompts])
        return clean, noise, times, weights, token_ids, None if rows is None else upload(torch.tensor(rows), device)
