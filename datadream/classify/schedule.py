"""How long a classifier is trained, and when it is read. Imports nothing heavy: the driver sizes its units by it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from datadream.config import ClassifyConfig, ExperimentConfig, Setting


@dataclass(frozen=True, slots=True)
class Schedule:
    """Optimiser steps of a training, how many of these warm up, and how many lie between two readings."""

    steps: int
    warmup_steps: int
    eval_every: int


def schedule_of(setting: Setting, n_classes: int, config: ExperimentConfig) -> Schedule:
    """The schedule of a setting: an epoch shows every generated image once, or as many photos, or both.

    That is the authors' epoch: they repeat the shots until there are as many as generated images, and on ImageNet also
    where nothing but shots is trained on. It follows from the config alone, so that a class of which fewer images were
    published moves no step of the others.
    """
    of_each = n_classes * config.generate.images_per_class
    return schedule_for(config.classify, 2 * of_each if setting == "real+synthetic" else of_each)


def schedule_for(config: ClassifyConfig, n_images: int) -> Schedule:
    """The schedule of a training whose epochs show `n_images`."""
    of_epoch = math.ceil(n_images / config.batch_size)
    if config.epochs is not None:
        steps, every = config.epochs * of_epoch, of_epoch
    else:
        assert config.steps is not None  # the config has either
        steps, every = config.steps, max(1, config.steps // 10)
    # Three of ten epochs, as in the authors' script.
    warmup = 3 * steps // 10 if config.warmup_steps is None else config.warmup_steps
    return Schedule(steps, warmup, config.eval_every or every)
