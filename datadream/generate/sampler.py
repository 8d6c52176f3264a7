"""Requests in, pixels out, on one device: no Ray.

The base model stays loaded and a LoRA is merged into it in place. Schedulers, noise and VAE are diffusers' own, so an
image is the one that plain diffusers generates with the same seed.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from datadream.config import GenerateConfig, nearest
from datadream.generate.denoise import Denoiser
from datadream.methods.base import ImageRequest
from datadream.models.diffusion.compile import compile_blocks
from datadream.models.diffusion.merge import InPlaceMerger
from datadream.runtime.device import DTYPES, Download, is_out_of_memory, shortage, upload

log = logging.getLogger(__name__)

# Measured on the embedded backbone: 10 and 50 are slower.
CPU_BATCH = 25
MEASURED_PARTS = (1, 2, 4)
"""Parts of a chunk that are tried as batches on a GPU."""
MEASURED_STEPS = 3
# Latents that the VAE decodes at once: it needs far more memory for one than the UNet.
DECODE_BATCH = 8


@dataclass(frozen=True, slots=True)
class _Begun:
    """A batch that a GPU has been told to make."""

    latents: Tensor
    pixels: list[Download]
    """uint8 [up to DECODE_BATCH, height, width, 3]."""
    finite: Download
    """Whether all numbers are finite: of the latents, and of each of `pixels` before rounding."""

    def __len__(self) -> int:
        return len(self.latents)


class Sampler:
    """Generates images that share adapters, in batches that share a prompt."""

    def __init__(self, pipeline: StableDiffusionPipeline, config: GenerateConfig, resolution: int) -> None:
        """Raises ValueError when `config.scheduler` is no diffusers scheduler."""
        if (name := config.scheduler) is not None:
            kinds = [kind.__name__ for kind in pipeline.scheduler.compatibles]
            if name not in kinds:
                raise ValueError(
                    f"generate.scheduler is {name!r}: no diffusers scheduler that fits this pipeline. "
                    f"{nearest(name, kinds)}"
                )
            # With the noise levels that the pipeline was trained with.
            pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
        self._from_noise = pipeline
        self._from_photo = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
        self._config, self._resolution = config, resolution
        on_cpu = pipeline.device.type == "cpu"
        self.batch_size = config.batch_size or (min(CPU_BATCH, config.chunk_size) if on_cpu else config.chunk_size)
        """Images that are generated at once."""
        if not on_cpu:
            # The layout that cuDNN's convolutions on tensor cores want; on a CPU thread it was 11 to 19 % slower.
            for module in (pipeline.unet, pipeline.vae):
                module.to(memory_format=torch.channels_last)
        self._vae: AutoencoderKL = pipeline.vae
        if config.decode_precision != "auto":
            # A copy, for its encoder reads photos in the pipeline's own precision.
            self._vae = deepcopy(pipeline.vae).to(DTYPES[config.decode_precision])
        self._wide_vae: AutoencoderKL | None = None
        self._denoiser = Denoiser(pipeline.unet, pipeline.scheduler, config)
        if config.compile:
            compile_blocks(pipeline.unet)
        self._merger = InPlaceMerger(pipeline)
        self._merged: tuple[str, tuple[tuple[str, float], ...]] | None = None

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[ImageRequest],
        read_adapter: Callable[[str], bytes],
        read_photo: Callable[[str], Image.Image],
        run: str = "",
    ) -> np.ndarray:
        """Images [n, height, width, 3], uint8, in the order of `requests`, which share adapters and strength.

        `run` says whose adapters are meant: another run's may have the same ids.
        Raises MemoryError when the device's memory does not suffice for one image, FloatingPointError when an image
        has values that are no numbers.
        """
        adapters = requests[0].adapters
        wanted = (run, adapters) if adapters else None
        # A merge rewrites weights of the UNet and the text encoder, and neighbouring chunks often share adapters.
        if wanted != self._merged:
            # Nothing's until all is merged: a merge that fails half way leaves some layers changed.
            self._merged = ("", ())
            self._merger.merge([(read_adapter(adapter_id), weight) for adapter_id, weight in adapters])
            self._merged = wanted
        requests = list(requests)
        by_prompt: dict[str, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            by_prompt[request.prompt].append(place)
        generated: dict[int, np.ndarray] = {}
        for prompt, places in by_prompt.items():
            own = [requests[place] for place in places]
            generated |= zip(places, self._generate_all(own, self._prompts(prompt), read_photo), strict=True)
        return np.stack([generated[place] for place in range(len(requests))])

    def _generate_all(
        self, requests: Sequence[ImageRequest], prompts: Tensor, read_photo: Callable[[str], Image.Image]
    ) -> list[np.ndarray]:
        """Images of one prompt, in as many batches as memory asks for."""
        images: list[np.ndarray] = []
        begun: list[_Begun] = []
        while len(images) < len(requests):
            next_one = len(images) + sum(map(len, begun))
            try:
                if next_one < len(requests):
                    begun.append(self._begin(requests[next_one:][: self.batch_size], prompts, read_photo))
                # One batch ahead: while its images are copied and checked here, the GPU has the next one to do.
                if len(begun) == 2 or next_one == len(requests):
                    images.extend(self._finish(begun[0]))
                    del begun[0]
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.batch_size == 1:
                    lower = "the GPU's memory does not suffice for one image. Lower diffusion.resolution."
                    raise MemoryError(lower + shortage(error)) from None
            # Outside of the except block: the error's traceback would keep the failed batch's tensors alive.
            begun.clear()
            # For good: what did not fit once will not fit the next time.
            self.batch_size = (self.batch_size + 1) // 2
            log.warning("out of memory: going on with %d images at once", self.batch_size)
            torch.cuda.empty_cache()
        return images

    def fastest_batch(self) -> int:
        """The part of a chunk that this device denoises fastest per image, of those that its memory holds.

        On a GPU another batch than 50 may be faster, and a large one may fit the UNet and not the VAE after it.
        """
        seconds: dict[int, float] = {}
        sizes = sorted({math.ceil(self._config.chunk_size / parts) for parts in MEASURED_PARTS})
        while sizes:
            size = sizes.pop(0)
            torch.cuda.empty_cache()  # blocks of the last size would not fit this one
            try:
                seconds[size] = self._seconds_per_image(size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                # Where not even the smallest part fits, the largest that does.
                sizes = [(size + 1) // 2] if size > 1 and not seconds else []
                if sizes:
                    log.warning("out of memory with %d images at once: trying %d", size, sizes[0])
        torch.cuda.empty_cache()
        return min(seconds, key=seconds.__getitem__, default=1)

    def _seconds_per_image(self, batch: int) -> float:
        """Time a few denoising steps on noise, after one that does not count; the VAE decodes, and is not timed.

        It takes the same time per image at any size, and the room that it needs beside the UNet.
        """
        generators = [torch.Generator().manual_seed(number) for number in range(batch)]
        scheduler, prompts = self._from_noise.scheduler, self._prompts("")
        scheduler.set_timesteps(self._config.steps)
        seconds = 0.0
        for n_steps in (1, MEASURED_STEPS):
            started = time.perf_counter()
            steps = scheduler.timesteps[:n_steps]
            latents = self._denoiser.denoise(self._noise(generators), steps, prompts, generators)
            latents.sum().item()  # waits for the device
            seconds = time.perf_counter() - started
            for part in latents.split(DECODE_BATCH):
                self._decode(part, self._vae)
            # A scheduler counts its steps, and some remember what they predicted.
            scheduler.set_timesteps(self._config.steps)
        return seconds / batch

    def _begin(
        self, requests: Sequence[ImageRequest], prompts: Tensor, read_photo: Callable[[str], Image.Image]
    ) -> _Begun:
        # Noise comes from the CPU, whatever the device: each image has its own, the same everywhere.
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        pipeline, n = self._from_photo, len(requests)
        pipeline.scheduler.set_timesteps(self._config.steps)
        if requests[0].source_key is None:
            latents, timesteps = self._noise(generators), pipeline.scheduler.timesteps
        else:
            # The photos with the noise of `strength`, and the steps that are left from there (SDEdit).
            keys = [request.source_key for request in requests if request.source_key is not None]
            photos = [FITS[self._config.fit](read_photo(key), self._resolution) for key in keys]
            timesteps, _ = pipeline.get_timesteps(self._config.steps, requests[0].strength, pipeline.device)
            pixels, first = pipeline.image_processor.preprocess(photos), timesteps[:1].repeat(n)
            latents = pipeline.prepare_latents(pixels, first, n, 1, pipeline.unet.dtype, pipeline.device, generators)
        latents = self._denoiser.denoise(latents, timesteps, prompts, generators)
        pixels, finite = [], [latents.isfinite().all()]
        for part in latents.split(DECODE_BATCH):
            images = self._decode(part, self._vae)
            pixels.append(Download(_to_uint8(images)))
            finite.append(images.isfinite().all())
        return _Begun(latents, pixels, Download(torch.stack(finite)))

    def _finish(self, begun: _Begun) -> Iterator[np.ndarray]:
        """The images of a batch, checked."""
        has_latents, *has_pixels = begun.finite.wait().tolist()
        if not has_latents:
            raise FloatingPointError(
                f"the UNet gave latents that are no numbers in {self._from_noise.unet.dtype}. Use "
                "generate.precision=fp32 or bf16, or another adapter."
            )
        parts = begun.latents.split(DECODE_BATCH)
        for part, pixels, is_whole in zip(parts, begun.pixels, has_pixels, strict=True):
            yield from (pixels.wait() if is_whole else self._pixels_of_overflow(part)).numpy()

    def _prompts(self, prompt: str) -> Tensor:
        """The empty prompt and the prompt [2, length, channels], or the prompt alone where nothing is guided."""
        # As diffusers has it: at 1 the guided prediction is that of the prompt alone.
        guided = self._config.guidance_scale > 1
        positive, negative = self._from_noise.encode_prompt(
            prompt, self._from_noise.device, 1, guided, negative_prompt=""
        )
        return torch.cat([negative, positive]) if guided else positive

    def _noise(self, generators: list[torch.Generator]) -> Tensor:
        unet = self._from_noise.unet
        n, channels, side, cpu = len(generators), unet.config.in_channels, self._resolution, torch.device("cpu")
        noise = self._from_noise.prepare_latents(n, channels, side, side, unet.dtype, cpu, generators)
        return upload(noise, unet.device)

    def _pixels_of_overflow(self, latents: Tensor) -> Tensor:
        """Pixels as in `_Begun`. The VAE's activations are larger than its input: it overflows first."""
        images = None
        if self._config.decode_precision == "auto":
            if self._wide_vae is None:
                log.info("images that overflow %s are decoded in fp32", self._vae.dtype)
                self._wide_vae = deepcopy(self._vae).to(torch.float32)
            images = self._decode(latents, self._wide_vae)
        if images is None or not images.isfinite().all():
            raise FloatingPointError(
                f"the VAE gave pixels that are no numbers (in {self._vae.dtype}). Use generate.decode_precision=fp32."
            )
        return _to_uint8(images).cpu()

    def _decode(self, latents: Tensor, vae: AutoencoderKL) -> Tensor:
        """Pixels [n, 3, height, width], fp32, about -1 to 1."""
        return vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0].float()


def _to_uint8(images: Tensor) -> Tensor:
    """The decoder's [n, 3, height, width] -> [n, height, width, 3]."""
    # Clamped and rounded as by diffusers' image processor. On the device: floats are four times as much to copy.
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def centre_square(image: Image.Image, pixels: int) -> Image.Image:
    """The middle square of a photo, `pixels` wide."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((pixels, pixels), Image.Resampling.BICUBIC)


def padded_square(image: Image.Image, pixels: int) -> Image.Image:
    """All of a photo in the middle of a black square, `pixels` wide."""
    side = max(image.size)
    padded = Image.new("RGB", (side, side))
    padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return padded.resize((pixels, pixels), Image.Resampling.BICUBIC)


FITS: dict[str, Callable[[Image.Image, int], Image.Image]] = {"crop": centre_square, "pad": padded_square}
"""What generate.fit names."""
