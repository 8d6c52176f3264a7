"""How many steps an adapter gets, of how many crops, and its warm-up.

Imports nothing heavy: the driver and the queue need it, and load no model.
"""

from __future__ import annotations

import math

from datadream.config import AdaptConfig
from datadream.methods.base import AdapterSpec


def n_steps(spec: AdapterSpec, config: AdaptConfig) -> int:
    """Steps of an adapter: where the batch divides the shots of a class, N class adapters together take as many as one
    of the whole set (paper, section 4)."""
    if config.steps_per_class is not None:
        return config.steps_per_class * spec.n_classes
    if config.step_law == "crops":
        return max(1, round(config.epochs * len(spec.photos) / config.batch_size))
    return config.epochs * math.ceil(len(spec.photos) / config.batch_size)


def crops_per_step(spec: AdapterSpec, config: AdaptConfig) -> int:
    """Crops of a step of an adapter, the same in all of its steps.

    The last batch of an epoch is filled up from the next one, where the authors' is smaller: an adapter has one size
    of batch, and beside others one shape.
    """
    if config.steps_per_class is not None or config.step_law == "crops":
        return config.batch_size
    return min(config.batch_size, len(spec.photos))


def n_warmup_steps(steps: int, config: AdaptConfig) -> int:
    """Warm-up of a training of so many steps.

    The authors' is never cut, and then a training of fewer than 100 steps does not reach its rate. The paper's have
    200 at least, of which 100 are half.
    """
    return min(config.warmup_steps, steps // 2)
