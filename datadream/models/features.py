"""Features of many images, by any model, on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

BATCH = 64
"""Images that a model encodes at once."""
DECODE_THREADS = 4
"""Threads that decode and resize images beside the model."""


def image_features(
    read: Sequence[Callable[[], Image.Image]],
    preprocess: Callable[[Image.Image], Tensor],
    encode: Callable[[Tensor], Tensor],
    device: torch.device | str,
) -> np.ndarray:
    """Features fp32 [n, D] of images, each of which one call reads."""
    parts = []
    with ThreadPoolExecutor(DECODE_THREADS) as threads, torch.inference_mode():
        for start in range(0, len(read), BATCH):
            # In threads and not one after the other: Pillow decodes and resizes without holding Python's lock.
            pixels = threads.map(lambda read_image: preprocess(read_image()), read[start : start + BATCH])
            parts.append(encode(torch.stack(list(pixels)).to(device)).float().cpu().numpy())
    return np.concatenate(parts)
