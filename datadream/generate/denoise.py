"""From noise, or a noised photo, to latents: diffusers' schedulers around a UNet that does nothing twice."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import Tensor

from datadream.models.guidance import KeptPromptAttention, SharedPrefix


class Denoiser:
    """Draws latents that share a prompt."""

    def __init__(self, unet: UNet2DConditionModel, scheduler: SchedulerMixin, guidance_scale: float) -> None:
        self._unet, self._scheduler, self._scale = unet, scheduler, guidance_scale
        self._attention, self._prefix = KeptPromptAttention(), SharedPrefix(unet)
        unet.set_attn_processor(self._attention)
        self._takes_generators = "generator" in inspect.signature(scheduler.step).parameters

    @torch.no_grad()
    def denoise(
        self, latents: Tensor, timesteps: Tensor, prompts: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Latents [n, 4, h, w] -> [n, 4, h, w] through `timesteps`, which the scheduler was set to.

        `prompts` [2, length, channels] are the empty prompt and the prompt, or the prompt alone where nothing is
        guided; `generators`, one for each latent, give the noise that the scheduler adds, if it adds any.
        """
        self._attention.forget()
        noise = {"generator": list(generators)} if self._takes_generators else {}
        for time in timesteps:
            predicted = self._predict(self._scheduler.scale_model_input(latents, time), time, prompts)
            latents = self._scheduler.step(predicted, time, latents, return_dict=False, **noise)[0]
        self._attention.forget()
        return latents

    def _predict(self, latents: Tensor, time: Tensor, prompts: Tensor) -> Tensor:
        if len(prompts) == 1:
            return self._unet(latents, time, prompts, return_dict=False)[0]
        with self._prefix.halved():
            both = self._unet(torch.cat([latents, latents]), time, prompts, return_dict=False)[0]
        without, with_prompt = both.chunk(2)
        return without + self._scale * (with_prompt - without)
