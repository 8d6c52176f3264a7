"""RandAugment (Cubuk et al., 2020) on a batch: every image has its own operations.

The operations and their ranges are torchvision's, whose own transform gives all images of a batch the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torchvision.transforms.v2 import functional as tv

# Random numbers that an operation on an image takes: which one, and its sign.
NUMBERS_PER_OPERATION = 2
# torchvision's magnitudes are bins 0 to 30.
MAX_MAGNITUDE = 30

Operation = Callable[[Tensor, float], Tensor]
"""(images uint8 [n, 3, H, W], level in [-1, 1]) -> images."""


def _affine(images: Tensor, *, shift: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)) -> Tensor:
    """Shears turn about the top left corner, as in torchvision and AutoAugment."""
    degrees = [math.degrees(math.atan(value)) for value in shear]
    center = [0.0, 0.0] if any(shear) else None
    pixels = [int(value) for value in shift]
    return tv.affine(images, angle=0.0, translate=pixels, scale=1.0, shear=degrees, center=center)


# AutoAugment shifts by up to 150 of the 331 pixels of its images, and torchvision by the same share of any.
SIGNED: tuple[Operation, ...] = (
    lambda images, level: _affine(images, shear=(0.3 * level, 0)),
    lambda images, level: _affine(images, shear=(0, 0.3 * level)),
    lambda images, level: _affine(images, shift=(150 / 331 * images.shape[3] * level, 0)),
    lambda images, level: _affine(images, shift=(0, 150 / 331 * images.shape[2] * level)),
    lambda images, level: tv.rotate(images, 30 * level),
    lambda images, level: tv.adjust_brightness(images, 1 + 0.9 * level),
    lambda images, level: tv.adjust_saturation(images, 1 + 0.9 * level),
    lambda images, level: tv.adjust_contrast(images, 1 + 0.9 * level),
    lambda images, level: tv.adjust_sharpness(images, 1 + 0.9 * level),
)
UNSIGNED: tuple[Operation, ...] = (
    lambda images, level: images,
    lambda images, level: tv.posterize(images, 8 - round(4 * level)),
    lambda images, level: tv.solarize(images, 255 * (1 - level)),
    lambda images, level: tv.autocontrast(images),
    lambda images, level: tv.equalize(images),
)


def rand_augment(images: Tensor, numbers: Tensor, magnitude: int) -> Tensor:
    """Change uint8 images [n, 3, H, W] by their rows of numbers in [0, 1), [n, operations * NUMBERS_PER_OPERATION].

    Numbers on the CPU cost the device no wait.
    """
    images, level = images.clone(), magnitude / MAX_MAGNITUDE
    for which, sign in zip(numbers[:, ::2].unbind(1), numbers[:, 1::2].unbind(1), strict=True):
        choice = (which * (len(SIGNED) + len(UNSIGNED))).long()
        # Signed operations come first in `SIGNED + UNSIGNED`, below.
        negative = (sign < 0.5) & (choice < len(SIGNED))
        # One call for all images of the same operation and sign, of which there are at most 23.
        for code in (2 * choice + negative).unique().tolist():
            rows = ((2 * choice + negative) == code).nonzero().squeeze(1).to(images.device, non_blocking=True)
            operation = (SIGNED + UNSIGNED)[code // 2]
            images[rows] = operation(images[rows], -level if code % 2 else level)
    return images
