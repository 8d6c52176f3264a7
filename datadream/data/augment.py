"""Random changes to a batch of images, on its device, with every image's own parameters.

Crop, mirroring and rotation are one affine resampling, which interpolates an image once. The random numbers are made
apart from the images: a worker samples them for the whole batch of all workers and uses its own rows, so that the
result does not depend on how many workers share the batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from datadream.config import AugmentConfig
from datadream.data.rand_augment import NUMBERS_PER_OPERATION, rand_augment

# Weights of red, green and blue in a grey level (ITU-R 601, as in Pillow).
LUMA = (0.299, 0.587, 0.114)
# Random numbers of an image for crop, flip, rotation and colours; further ones where there is blur or solarisation,
# and where the hue turns or not all images' colours change.
N_NUMBERS, N_BLUR_NUMBERS, N_HUE_NUMBERS = 10, 3, 2
# Deviations of the blur in pixels of an image of BLUR_SIZE pixels (authors' code).
BLUR_SIGMA, BLUR_SIZE = (0.1, 2.0), 224


class Augment:
    """uint8 images, [n, 3, H, W] or n images [3, H, W] of many sizes -> augmented, normalised float32 images
    [n, 3, size, size]."""

    def __init__(
        self, config: AugmentConfig, flip: bool, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.config, self.flip, self.size = config, flip, size
        # Random numbers of an image. What is off takes none, so that it does not move what is on.
        has_blur = config.blur > 0 or config.solarize > 0
        self._hue_at = N_NUMBERS + has_blur * N_BLUR_NUMBERS
        self._has_hue = config.hue_jitter > 0 or config.jitter_share < 1
        self.n_numbers = self._hue_at + self._has_hue * N_HUE_NUMBERS + config.rand_augment * NUMBERS_PER_OPERATION
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))

    def __call__(self, images: Tensor | Sequence[Tensor], rng: torch.Generator) -> Tensor:
        return self.apply(images, self.draw(len(images), rng))

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """Random numbers in [0, 1) for n images, [n, n_numbers], on the generator's device."""
        return torch.rand(n, self.n_numbers, generator=rng, device=rng.device)

    def apply(self, images: Tensor | Sequence[Tensor], numbers: Tensor) -> Tensor:
        """Change each image by its own row of numbers."""
        pixels = self._crop(images, numbers) if isinstance(images, Tensor) else self._crop_each(images, numbers)
        of_colors = numbers[:, 6:N_NUMBERS]
        if self._has_hue:
            of_colors = torch.cat([of_colors, numbers[:, self._hue_at :][:, :N_HUE_NUMBERS]], dim=1)
        pixels = self._change_colors(pixels, of_colors.to(pixels.device, non_blocking=True))
        # The numbers of blur and solarisation stay on the CPU: which images they meet decides shapes there.
        of_blur = numbers[:, N_NUMBERS:]
        if self.config.blur > 0:
            pixels = self._blur(pixels, *of_blur[:, :2].unbind(1))
        if self.config.solarize > 0:
            rows = (of_blur[:, 2] < self.config.solarize).nonzero().squeeze(1).to(pixels.device, non_blocking=True)
            # Half of the range, as Pillow's ImageOps.solarize takes unless told otherwise.
            pixels = pixels.index_copy(0, rows, tv.solarize(pixels[rows], threshold=0.5))
        # Kept where they are used: to copy them at every step would be to wait for the device.
        self._mean, self._std = self._mean.to(pixels.device), self._std.to(pixels.device)
        return (pixels - self._mean) / self._std

    def _crop_each(self, images: Sequence[Tensor], numbers: Tensor) -> Tensor:
        """As `_crop`, for images of many sizes; those of one size together."""
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for row, image in enumerate(images):
            by_shape[image.shape].append(row)
        parts = [self._crop(torch.stack([images[row] for row in own]), numbers[own]) for own in by_shape.values()]
        if len(parts) < 2:
            return parts[0] if parts else torch.empty(0, 3, self.size, self.size)
        order = torch.tensor([row for own in by_shape.values() for row in own]).argsort()
        return torch.cat(parts)[order]

    def _crop(self, images: Tensor, numbers: Tensor) -> Tensor:
        """uint8 images [n, 3, H, W] -> RandAugment, crop, mirroring and rotation, float32 [n, 3, size, size]."""
        if of_operations := self.config.rand_augment * NUMBERS_PER_OPERATION:
            images = rand_augment(images, numbers[:, -of_operations:], self.config.rand_augment_magnitude)
        height, width = images.shape[2:]
        theta = self._affine(width / height, *numbers[:, :6].to(images.device, non_blocking=True).unbind(1))
        # Bilinear interpolation alone would skip pixels where it shrinks by more than two.
        fine = 2 if min(height, width) > self.size else 1
        grid = F.affine_grid(theta, [len(images), 3, fine * self.size, fine * self.size], align_corners=False)
        mode = self.config.interpolation
        pixels = F.grid_sample(images.float() / 255, grid, mode=mode, padding_mode="reflection", align_corners=False)
        if mode == "bicubic":
            pixels = pixels.clamp(0, 1)  # it overshoots at edges
        return F.avg_pool2d(pixels, fine) if fine > 1 else pixels

    def _affine(
        self, shape: float, scale: Tensor, ratio: Tensor, x: Tensor, y: Tensor, mirror: Tensor, angle: Tensor
    ) -> Tensor:
        """Maps [n, 2, 3] from output to input coordinates, both in [-1, 1]: a crop, turned about its own centre.

        `shape` is the width of the images over their height.
        """
        area = _between(scale, *self.config.crop_scale)
        aspect = torch.exp(_between(ratio, *map(math.log, self.config.crop_ratio)))
        width, height = (area * aspect / shape).sqrt().clamp(max=1), (area / aspect * shape).sqrt().clamp(max=1)
        if shape != 1:
            # A large crop of a long image ends at its edges, and would become as long as the image.
            narrowest, widest = self.config.crop_ratio
            width = torch.minimum(width, widest * height / shape)
            height = torch.minimum(height, width * shape / narrowest)
        # In coordinates from -1 to 1 a crop is as wide as its share of the image; what is left is room for its centre.
        center_x, center_y = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
        if self.flip:
            # A negative width reads the input from right to left: mirroring costs no pass of its own.
            width = torch.where(mirror < 0.5, -width, width)
        turn = torch.deg2rad(_between(angle, -self.config.rotation, self.config.rotation))
        cos, sin = turn.cos(), turn.sin()
        # A turn mixes both axes, whose units are of unlike lengths where the image is no square.
        rows = [cos * width, -sin * height / shape, center_x, sin * width * shape, cos * height, center_y]
        return torch.stack(rows, dim=1).view(-1, 2, 3)

    def _change_colors(self, pixels: Tensor, numbers: Tensor) -> Tensor:
        """Scale brightness, the distance from the mean grey level, and the distance from each pixel's grey level; turn
        the hue."""
        *factors, grey = numbers[:, :4].view(-1, 4, 1, 1, 1).unbind(1)
        config, colors = self.config, self.config.color_jitter
        ranges = (colors, colors, colors if config.saturation_jitter is None else config.saturation_jitter)
        brightness, contrast, saturation = (
            _between(factor, 1 - jitter, 1 + jitter) for factor, jitter in zip(factors, ranges, strict=True)
        )
        if self._has_hue:
            kept = (numbers[:, 4] >= config.jitter_share).view(-1, 1, 1, 1)
            brightness, contrast, saturation = (
                torch.where(kept, 1, factor) for factor in (brightness, contrast, saturation)
            )
            turn = torch.where(
                kept, 0, _between(numbers[:, 5].view(-1, 1, 1, 1), -config.hue_jitter, config.hue_jitter)
            )
        # No saturation is what a grey image is.
        saturation = torch.where(grey < self.config.grayscale, 0, saturation)
        # In this order always, where torchvision draws one for each call: a batch takes one path (docs/fidelity.md).
        # Clamped each time, as torchvision's own changes are.
        pixels = (pixels * brightness).clamp(0, 1)
        pixels = torch.lerp(_luma(pixels).mean(dim=(2, 3), keepdim=True), pixels, contrast).clamp(0, 1)
        pixels = torch.lerp(_luma(pixels), pixels, saturation).clamp(0, 1)
        return _turn_hue(pixels, turn) if config.hue_jitter > 0 else pixels

    def _blur(self, pixels: Tensor, chosen: Tensor, sigma: Tensor) -> Tensor:
        """Blur some images, each with its own deviation; torchvision's kernel has one for all."""
        chosen = chosen < self.config.blur
        rows = chosen.nonzero().squeeze(1).to(pixels.device, non_blocking=True)
        if not len(rows):
            return pixels
        scale = self.size / BLUR_SIZE
        # Of a Gaussian 0.3 % lie beyond three deviations. One radius for all: the largest deviation's.
        radius = math.ceil(3 * BLUR_SIGMA[1] * scale)
        sigmas = _between(sigma[chosen], *BLUR_SIGMA).to(pixels.device, non_blocking=True) * scale
        offsets = torch.arange(-radius, radius + 1, device=pixels.device)
        # softmax divides by the sum, so that blurring makes no image brighter.
        kernels = torch.softmax(-0.5 * (offsets / sigmas[:, None]).square(), dim=1)
        # A channel for each image: a convolution has one kernel per channel. Colours take the place of the batch.
        kernels, layers = kernels[:, None], pixels[rows].transpose(0, 1)
        layers = F.pad(layers, [radius] * 4, mode="reflect")
        layers = F.conv2d(layers, kernels[..., None, :], groups=len(rows))
        layers = F.conv2d(layers, kernels[..., None], groups=len(rows))
        return pixels.index_copy(0, rows, layers.transpose(0, 1))


def _between(numbers: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * numbers


def _turn_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Pixels [n, 3, H, W] in [0, 1] with their hue in HSV turned by shares [n, 1, 1, 1] of the circle.

    torchvision's adjust_hue has one turn for all images.
    """
    value, least = pixels.amax(dim=1, keepdim=True), pixels.amin(dim=1, keepdim=True)
    chroma = value - least
    red, green, blue = pixels.split(1, dim=1)
    # In sixths of the circle, from the channel that is largest; a grey pixel has no hue, and none is turned.
    scale = chroma.clamp(min=1e-12)
    hue = torch.where(
        value == red,
        (green - blue) / scale,
        torch.where(value == green, 2 + (blue - red) / scale, 4 + (red - green) / scale),
    )
    # HSV's closed form: red, green and blue are V - C max(0, min(k, 4 - k, 1)), k = (5, 3, 1) + H modulo 6.
    sixths = torch.cat([hue + 5, hue + 3, hue + 1], dim=1).add(6 * turn) % 6
    return value - chroma * torch.minimum(sixths, 4 - sixths).clamp(0, 1)


def _luma(pixels: Tensor) -> Tensor:
    """Grey levels [n, 1, H, W]."""
    red, green, blue = pixels.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)
