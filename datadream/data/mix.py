"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019): every image of a batch mixed with another one.

What is sampled belongs to the batch of all workers, and its seed to the step, so that the result depends neither on
how many workers share the batch nor on where an interrupted training went on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from datadream.config import ClassifyConfig


@dataclass(frozen=True, slots=True)
class Mix:
    """How the images of a batch are mixed with others."""

    share: float
    """Share of the own image, and of its label in the loss."""
    box: tuple[slice, slice] | None = None
    """Rows and columns that CutMix takes from the other image; None: mixup, which blends all pixels."""

    def apply(self, pixels: Tensor, others: Tensor) -> Tensor:
        """Mix pixels [n, 3, size, size] with those of others, image by image."""
        if self.box is None:
            return others.lerp(pixels, self.share)
        mixed = pixels.clone()
        mixed[..., *self.box] = others[..., *self.box]
        return mixed


def draw_mix(config: ClassifyConfig, size: int, seed: int) -> Mix | None:
    """How to mix a batch of images of `size` pixels; None: not at all.

    With both on, each is as likely (authors' code).
    """
    alphas = [("mixup", config.mixup), ("cutmix", config.cutmix)]
    kinds = [(kind, alpha) for kind, alpha in alphas if alpha > 0]
    if not kinds:
        return None
    rng = np.random.default_rng(seed)
    if rng.random() >= config.mix_probability:
        return None
    kind, alpha = kinds[rng.integers(len(kinds))]
    share = rng.beta(alpha, alpha)
    if kind == "mixup":
        return Mix(share)
    # A box about a pixel that takes 1 - share of the image, or what of it lies inside.
    half = int(size * math.sqrt(1 - share) / 2)
    rows, columns = (slice(max(0, int(at) - half), min(size, int(at) + half)) for at in rng.integers(size, size=2))
    # The own label's share is that of the pixels that stay, which clipping at the border may make larger.
    taken = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Mix(1 - taken / size**2, (rows, columns))
