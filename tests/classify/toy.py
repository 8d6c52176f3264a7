"""A training of the toy CLIP on colours, with what a test does not vary left out."""

from __future__ import annotations

from functools import partial

import torch

from datadream.classify.ingest.batches import LabelledImages, shuffled_batches
from datadream.classify.protoaug import Regions
from datadream.classify.schedule import schedule_for
from datadream.classify.train_state import Part, Training
from datadream.config import AugmentConfig, ClassifyConfig
from datadream.data.augment import Augment
from datadream.models.clip.load import ClipModel, load_clip
from datadream.models.clip.trainable import make_trainable
from datadream.runtime.collectives import ALONE, Collectives
from tests.classify.colors import COLORS

OFF = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "color_jitter": 0, "grayscale": 0}
PROMPTS = tuple(f"a photo of a {name}" for name in COLORS)


def with_lora(clip_id: str, device: torch.device | str = "cpu") -> ClipModel:
    clip = load_clip(clip_id, None, device)
    make_trainable(clip.model, rank=4, alpha=8, projections=("q", "k", "v", "out"), seed=0)
    return clip


def augment_of(clip: ClipModel, **changes) -> Augment:
    return Augment(AugmentConfig(**changes), False, clip.size, clip.mean, clip.std)


def mild(clip: ClipModel) -> Augment:
    """Leaves the colours as they are: they are the classes."""
    return augment_of(clip, color_jitter=0.1, grayscale=0)


def part(
    pool: LabelledImages, batch_size: int = 12, weight: float = 1.0, ranks: Collectives = ALONE, seed: int = 0
) -> Part:
    return Part(partial(shuffled_batches, pool, batch_size, ranks, seed), batch_size, weight)


def training_of(
    clip: ClipModel,
    settings: ClassifyConfig,
    parts: list[Part],
    augment: Augment,
    ranks: Collectives = ALONE,
    regions: Regions | None = None,
) -> Training:
    tokens = clip.tokenizer(PROMPTS).to(clip.model.logit_scale.device)
    schedule = schedule_for(settings, n_images=0)
    return Training(clip, tokens, parts, augment, settings, schedule, seed=0, collectives=ranks, regions=regions)
