"""How many steps an adapter gets. Imports nothing heavy: the driver and the queue need it, and load no model."""

from __future__ import annotations

from datadream.config import AdaptConfig
from datadream.methods.base import AdapterSpec


def n_steps(spec: AdapterSpec, config: AdaptConfig) -> int:
    """Steps of an adapter: N class adapters together take as many as one of the whole set (paper, section 4)."""
    if config.steps_per_class is not None:
        return config.steps_per_class * spec.n_classes
    # The authors' code rounds every epoch up: 200 steps of min(K, 8) photos for any K up to 8, where this gives 25 for
    # K = 1. The paper's sentence holds for both where 8 divides K.
    return max(1, round(config.epochs * len(spec.photos) / config.batch_size))
