"""The loss of a training step and its gradient, as a function of tensors."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import Tensor

from datadream.models.diffusion.lora import StackedLora


class LossGradient:
    """Each adapter's loss of its part of a batch, and the gradient of their sum in the adapters' weights.

    A call reads nothing but its arguments and weights that are changed in place, and waits for no device, so that it
    can be `Recorded`.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, lora: StackedLora) -> None:
        """Raises ValueError when the pipeline's prediction type is not known."""
        self._pipeline, self._lora = pipeline, lora
        # The noise levels that the pipeline was trained with, whatever sampler its folder names.
        self._noise_schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        kind = self._noise_schedule.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"the pipeline's scheduler has prediction_type {kind!r}: need epsilon or v_prediction.")
        self._predicts_v = kind == "v_prediction"

    def __call__(
        self, clean: Tensor, noise: Tensor, times: Tensor, weights: Tensor, token_ids: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Losses [C] and gradient [C, numbers of an adapter], fp32, of latents [C * n, 4, h, w] for C adapters.

        `noise` is added to `clean` at the levels `times`; `weights` are those of the squared errors in the loss. Each
        prompt's `token_ids` [prompts, length] are encoded once; which prompt a sample has, `rows` say as in
        `SharedPromptAttention`.
        """
        pipeline, dtype = self._pipeline, self._pipeline.unet.dtype
        noisy = self._noise_schedule.add_noise(clean, noise, times)
        with torch.autocast(clean.device.type, dtype=dtype, enabled=dtype != torch.float32):
            encoded = pipeline.text_encoder(token_ids)[0]
            shared = {"prompt_rows": rows}
            predicted = pipeline.unet(
                noisy.to(dtype), times, encoded, cross_attention_kwargs=shared, return_dict=False
            )[0]
        target = self._noise_schedule.get_velocity(clean, noise, times) if self._predicts_v else noise
        # The loss in fp32: bf16 has too few digits for sums of squares.
        error = predicted.float() - target
        of_samples = error.square().flatten(1).mean(dim=1) * weights
        losses = of_samples.reshape(len(self._lora.weights), -1).sum(dim=1)
        parts = torch.autograd.grad(losses.sum(), self._lora.parts)
        return losses.detach(), torch.cat([part.flatten(1) for part in parts], dim=1)
