"""Latents of random crops, with each distinct crop encoded once.

The authors encode every crop of every step, 38 % of a step's work. Offsets here lie on a grid, the VAE's 8 pixels
unless told otherwise, so that a photo has few distinct crops; their means and deviations are kept and the latent's
noise is sampled anew at each step, so the law of the latents is the authors' but for the quantised offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from datadream.runtime.device import free_bytes, upload

MOMENTS_BYTES = 4 * 2**30
"""Encoded crops that a device keeps, of all adapters that it trains side by side; those beyond are encoded again when
they come again."""
BYTES_LEFT_FREE = 2**30
"""Crops are kept only where a GPU has more than this free: the steps' own memory comes first."""
CUDA_ENCODE_BATCH = 4
"""Crops that a GPU encodes at once. Always so many, filled up with the last one: kernels depend on the batch's size,
and an adapter may not depend on which crops an interrupted start had left to encode. A CPU gains nothing by it."""
PHOTOS_BYTES = 2**30
"""Resized photos that are kept; those beyond are read again."""


class Crop(NamedTuple):
    """A square of a photo: its place among the photos and its upper left corner, in pixels."""

    photo: int
    top: int
    left: int


class LatentCache:
    """Samples latents of random square crops of some photos."""

    def __init__(
        self,
        vae: AutoencoderKL,
        images: Sequence[Image.Image],
        resolution: int,
        grid: int,
        moments_bytes: int = MOMENTS_BYTES,
    ) -> None:
        """`images` are resized so that their shorter side is `resolution` pixels; offsets are multiples of `grid`.

        They are asked for one by one when they are needed, so a sequence that reads files on demand will do.
        Encoded crops are kept while they fit into `moments_bytes`, and into the device beside the training.
        """
        self._vae, self._photos, self._resolution, self._grid = vae, images, resolution, grid
        self._sizes: dict[int, tuple[int, int]] = {}
        self._resized: dict[int, Image.Image] = {}
        self._moments: dict[Crop, tuple[Tensor, Tensor]] = {}
        self._photo_room, self._moment_room = PHOTOS_BYTES, moments_bytes
        self._encode_batch = 1 if vae.device.type == "cpu" else CUDA_ENCODE_BATCH
        self.encodes = 0
        """Crops encoded so far."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one latent."""
        side = self._resolution // 2 ** (len(self._vae.config.block_out_channels) - 1)
        return (self._vae.config.latent_channels, side, side)

    def sample_crops(self, indices: Sequence[int], generator: torch.Generator) -> tuple[list[Crop], Tensor]:
        """A random crop of each photo, and the noise [len(indices), 4, h, w] of its latent. Encodes nothing."""
        crops = []
        # Offsets of all photos first, then all noise: adapters' bytes depend on this order.
        for index in indices:
            if index not in self._sizes:
                self._sizes[index] = self._image(index).size
            # Pillow's sizes are width and height, and a crop begins at a row and a column.
            rooms = ((side - self._resolution) // self._grid for side in reversed(self._sizes[index]))
            top, left = (self._grid * int(torch.randint(room + 1, (), generator=generator)) for room in rooms)
            crops.append(Crop(index, top, left))
        return crops, torch.randn((len(crops), *self.shape), generator=generator)

    def latents(self, crops: Sequence[Crop], noise: Tensor) -> Tensor:
        """Latents [len(crops), 4, h, w], times the VAE's scaling factor."""
        found = {crop: self._moments[crop] for crop in crops if crop in self._moments}
        missing = list(dict.fromkeys(crop for crop in crops if crop not in found))
        for start in range(0, len(missing), self._encode_batch):
            found |= self._encode(missing[start : start + self._encode_batch])
        mean, deviation = (torch.stack([found[crop][part] for crop in crops]) for part in range(2))
        return (mean + deviation * upload(noise, mean.device)) * self._vae.config.scaling_factor

    def _image(self, index: int) -> Image.Image:
        if index in self._resized:
            return self._resized[index]
        image = resize_shorter_side(self._photos[index], self._resolution)
        self._photo_room -= 3 * image.width * image.height
        if self._photo_room >= 0:
            self._resized[index] = image
        return image

    @torch.no_grad()
    def _encode(self, crops: Sequence[Crop]) -> dict[Crop, tuple[Tensor, Tensor]]:
        """Mean and deviation [4, h, w] of the latents of up to a batch of crops, fp32, on the VAE's device."""
        self.encodes += len(crops)
        pixels = []
        for photo, top, left in crops:
            square = self._image(photo).crop((left, top, left + self._resolution, top + self._resolution))
            pixels.append(tv.pil_to_tensor(square).float() / 127.5 - 1)
        pixels += pixels[-1:] * (self._encode_batch - len(pixels))
        law = self._vae.encode(torch.stack(pixels).to(self._vae.device, self._vae.dtype)).latent_dist
        # Each on its own: a slice would keep its whole batch in memory for as long as one of it is kept.
        parts = zip(law.mean.float(), law.std.float(), strict=True)
        moments = [(mean.clone(), deviation.clone()) for mean, deviation in parts]
        encoded = dict(zip(crops, moments, strict=False))  # not strict: the batch was filled up
        if free_bytes(self._vae.device) > BYTES_LEFT_FREE:
            for crop, both in encoded.items():
                self._moment_room -= sum(moment.nbytes for moment in both)
                if self._moment_room >= 0:
                    self._moments[crop] = both
        return encoded


def resize_shorter_side(image: Image.Image, pixels: int) -> Image.Image:
    """Resize so that the shorter side has `pixels`, keeping the aspect."""
    scale = pixels / min(image.size)
    # Rounding must not make a side shorter than the crop.
    size = (max(pixels, round(image.width * scale)), max(pixels, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)
