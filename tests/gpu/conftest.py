"""Checks that a GPU may fail where a CPU does not: each also runs on the CPU, so that only the GPU is new to it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Read when CUDA starts; without it products of matrices are not always the same to the bit.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _comparable() -> Iterator[None]:
    """fp32 that is fp32, and kernels that give the same bits each time where there are such: the rest is ours."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = allowed
