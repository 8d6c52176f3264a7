"""From noise, or a noised photo, to latents: diffusers' schedulers around a UNet that does nothing twice."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import Tensor

from datadream.config import GenerateConfig
from datadream.models.diffusion.deep_cache import DeepCache
from datadream.models.diffusion.guidance import KeptPrompts, SharedPrefix


class Denoiser:
    """Denoises latents that share a prompt."""

    def __init__(self, unet: UNet2DConditionModel, scheduler: SchedulerMixin, config: GenerateConfig) -> None:
        self._unet, self._scheduler, self._config = unet, scheduler, config
        self._prompts, self._prefix = KeptPrompts(unet), SharedPrefix(unet)
        self._cache = DeepCache(unet, config.cache_interval)
        self._takes_generators = "generator" in inspect.signature(scheduler.step).parameters

    @torch.no_grad()
    def denoise(
        self, latents: Tensor, timesteps: Tensor, prompts: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Latents [n, 4, h, w] -> [n, 4, h, w] through `timesteps`, which the scheduler was set to.

        `prompts` [2, length, channels] are the empty prompt and the prompt, or the prompt alone where nothing is
        guided; `generators`, one for each latent, give the noise that the scheduler adds, if it adds any.
        """
        # What was kept of an earlier batch, which an error may have ended, is of other prompts or adapters.
        self._forget()
        noise = {"generator": list(generators)} if self._takes_generators else {}
        low, high = self._config.guidance_interval
        noise_levels = timesteps.float() / self._scheduler.config.num_train_timesteps
        # Guidance does harm at high noise and nothing at low noise (Kynkäänniemi et al., 2024): outside of the
        # interval the empty prompt is not evaluated.
        is_guided = ((low <= noise_levels) & (noise_levels <= high)).tolist()
        for number, (time, guided) in enumerate(zip(timesteps, is_guided, strict=True)):
            inputs = self._scheduler.scale_model_input(latents, time)
            predicted = self._predict(inputs, number, time, prompts if guided else prompts[-1:])
            latents = self._scheduler.step(predicted, time, latents, return_dict=False, **noise)[0]
        self._forget()
        return latents

    def _predict(self, latents: Tensor, number: int, time: Tensor, prompts: Tensor) -> Tensor:
        if len(prompts) == 1:
            return self._evaluate(latents, number, time, prompts)
        with self._prefix.halved():
            both = self._evaluate(torch.cat([latents, latents]), number, time, prompts)
        without, with_prompt = both.chunk(2)
        return without + self._config.guidance_scale * (with_prompt - without)

    def _evaluate(self, latents: Tensor, number: int, time: Tensor, prompts: Tensor) -> Tensor:
        with self._cache.step(number, len(latents)):
            return self._unet(latents, time, prompts, return_dict=False)[0]

    def _forget(self) -> None:
        self._prompts.forget()
        self._cache.forget()
