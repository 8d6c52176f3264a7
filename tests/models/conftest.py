"""A small CLIP, and images for it."""

import pytest
import torch
from torch import Tensor

from tests.tiny_clip import PIXELS, save_tiny_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"local-dir:{save_tiny_clip(tmp_path_factory.mktemp('clip'))}"


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
