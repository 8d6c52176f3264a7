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
    # Cropping and resizing in one call: half a pixel of an odd margin is not lost.
    box = (left, top, left + side, top + side)
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)


def decode_squares(encoded: Sequence[bytes], keys: Sequence[str], size: int) -> np.ndarray:
    """`square` of each encoded image, uint8 [n, 3, size, size]; raises ValueError naming one that is broken."""
    squares = np.empty((len(encoded), 3, size, size), np.uint8)
    for row, (data, key) in enumerate(zip(encoded, keys, strict=True)):
        try:
            squares[row] = square(Image.open(io.BytesIO(data)), size)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"image {key!r} of the dataset cannot be decoded: {error}") from None
    return squares
