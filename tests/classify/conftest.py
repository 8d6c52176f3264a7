"""A toy run on Ray: an untrained CLIP, photos whose classes are colours, and a fast learner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datadream.classify.ingest.batches import LabelledImages, read_photos
from datadream.config import ClassifyConfig, ExperimentConfig, parse_config
from datadream.data.datasets import open_source
from datadream.data.few_shot import FewShotSet, sample_shots
from tests.classify.colors import COLORS, color_image
from tests.tiny_clip import save_tiny_clip


@pytest.fixture(scope="session")
def clip_id(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained CLIP, as classify.model names it."""
    return f"local-dir:{save_tiny_clip(tmp_path_factory.mktemp('clip'))}"


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy one-colour photos in train, val and test folders; 4, 6 and 10 of each class."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for part, n in (("train", 4), ("val", 6), ("test", 10)):
        for name in COLORS:
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(n):
                color_image(rng, name, (20, 24)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def few_shot(photo_folder: Path) -> FewShotSet:
    return sample_shots(open_source(str(photo_folder)).dataset(), n_shots=2, seed=0, prompt="a photo of a {name}")


@pytest.fixture
def shots(few_shot: FewShotSet, photo_folder: Path) -> LabelledImages:
    return read_photos(open_source(str(photo_folder)), few_shot.photos, 16)


@pytest.fixture
def settings(config: ExperimentConfig) -> ClassifyConfig:
    return config.classify


@pytest.fixture(scope="session")
def config(photo_folder: Path, clip_id: str) -> ExperimentConfig:
    """Few steps of a fast learner; photos may be mirrored."""
    classify = {"model": clip_id, "pretrained": None, "rank": 4, "alpha": 8, "projections": ("q", "k", "v", "out")}
    schedule = {"steps": 30, "batch_size": 12, "learning_rate": 1e-2, "warmup_steps": 2, "eval_every": 10}
    augment = {"color_jitter": 0.1, "grayscale": 0.0}
    return parse_config(
        {"data": {"source": str(photo_folder)}, "classify": {**classify, **schedule, "augment": augment}}
    )
