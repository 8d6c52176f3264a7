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
from datadream.runtime.device import upload


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
        """Latents [n, 4, h, w] -> [n, 4, h, w] through `timesteps`, on the CPU, which the scheduler was set to.

        `prompts` [2, length, channels] are the empty prompt and the prompt, or the prompt alone where nothing is
        guided; `generators`, one for each latent, give the noise that the scheduler adds, if it adds any.
        """
        # What was kept of an earlier batch, which an error may have ended, is of other prompts or adapters.
        self._prompts.forget()
        self._cache.forget()
        noise = {"generator": list(generators)} if self._takes_generators else {}
        low, high = self._config.guidance_interval
        noise_levels = timesteps.float() / self._scheduler.config.num_train_timesteps
        # Guidance does harm at high noise and nothing at low noise (Kynkäänniemi et al., 2024): outside of the
        # interval the empty prompt is not evaluated.
        in_interval = ((low <= noise_levels) & (noise_levels <= high)).tolist()
        # A scheduler looks its constants up by a step's time. From the GPU each look-up would wait for all that the
        # GPU has been told to do; the UNet gets a copy that is there already.
        times = upload(timesteps, latents.device)
        for number, (time, is_inside) in enumerate(zip(timesteps, in_interval, strict=True)):
            inputs = self._scheduler.scale_model_input(latents, time)
            if is_inside and len(prompts) == 2:
                # Both prompts see the same latents: what the UNet does before it looks at a prompt is done once.
                with self._prefix.halved(), self._cache.step(number, 2 * len(latents)):
                    both = self._unet(torch.cat([inputs, inputs]), times[number], prompts, return_dict=False)[0]
                without, with_prompt = both.chunk(2)
                predicted = without + self._config.guidance_scale * (with_prompt - without)
            else:
                with self._cache.step(number, len(latents)):
                    predicted = self._unet(inputs, times[number], prompts[-1:], return_dict=False)[0]
            latents = self._scheduler.step(predicted, time, latents, return_dict=False, **noise)[0]
        # Now, not only with the next batch: what is kept takes memory from the VAE.
        self._prompts.forget()
        self._cache.forget()
        return latents
