"""The Inception network of the original FID, through torch-fidelity, which is installed by whoever asks for it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from importlib.util import find_spec

import torch
from PIL import Image
from torch import Tensor

from datadream.data.decode import square

PIXELS = 299
FEATURES = "2048"
"""The layer that FID is defined by, as torch-fidelity calls it."""


def check_inception(weights: str | None) -> None:
    """Raises ValueError or FileNotFoundError saying what is missing."""
    if not find_spec("torch_fidelity"):
        raise ValueError("the Inception network needs torch-fidelity: pip install 'torch-fidelity>=0.4,<0.5'.")
    if weights is not None and not os.path.isfile(weights):
        raise FileNotFoundError(f"no file of Inception weights at {weights!r}. Leave it out to have them downloaded.")
    if weights is not None:
        # torch-fidelity unpickles whatever the file holds, and so would run a stranger's code.
        try:
            torch.load(weights, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError, RuntimeError):
            raise ValueError(
                f"{weights!r} holds no weights, or more than weights. Use torch-fidelity's own."
            ) from None


def load_inception(
    weights: str | None, device: torch.device | str
) -> tuple[Callable[[Image.Image], Tensor], Callable[[Tensor], Tensor]]:
    """How to prepare an image and how to encode a batch of them; without `weights`, 90 MB are downloaded."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # "compat": the port of TensorFlow's network, whose features FID is defined by; torchvision's has others.
    network = FeatureExtractorInceptionV3("inception-v3-compat", [FEATURES], weights).to(device)

    def prepare(image: Image.Image) -> Tensor:
        # Resized with antialiasing, which the network's own resizing lacks (Parmar et al., CVPR 2022).
        return torch.tensor(square(image, PIXELS))

    def encode(images: Tensor) -> Tensor:
        (features,) = network(images)
        return features

    return prepare, encode
