"""Small models, photos and a local Ray, made once for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from tests.tiny_models import save_pipeline

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory) -> Path:
    """A random Stable Diffusion pipeline of 32-pixel images."""
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="session")
def local_ray():
    """One Ray for all tests that need one."""
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.3"  # as for a Ray that datadream starts
    ray.init(address="local", num_cpus=4, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def photo_folder(tmp_path) -> Path:
    """Three classes of six coloured photos of uneven size."""
    root, rng = tmp_path / "photos", np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog/2 legs".replace("/", "-"), "plain & <bold>")):
        (root / name).mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(0, 256, (40 + 8 * index, 56, 3), dtype=np.uint8) // (label + 1)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root
