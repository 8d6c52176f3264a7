"""Encoded images to uint8 squares, without torch: Ray Data's tasks import this, and torch would take them seconds."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


def square(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [3, size, size]: the middle square of an image, resized with antialiasing."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    resized = image.convert("RGB").resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    return np.asarray(resized).transpose(2, 0, 1)


def decode_squares(encoded: Sequence[bytes], size: int) -> np.ndarray:
    """`square` of each encoded image, uint8 [n, 3, size, size]."""
    squares = np.empty((len(encoded), 3, size, size), np.uint8)
    for row, data in enumerate(encoded):
        squares[row] = square(Image.open(io.BytesIO(data)), size)
    return squares
