"""A small CLIP as open_clip itself loads and runs it."""

from __future__ import annotations

import open_clip
from torch import Tensor, nn

PROMPTS = ["a photo of a cat", "a photo of a dog"]


def plain(folder: str) -> nn.Module:
    return open_clip.create_model(folder).eval()


def features(model: nn.Module, folder: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Of the images and of two prompts."""
    return model.encode_image(images), model.encode_text(open_clip.get_tokenizer(folder)(PROMPTS))
