"""LoFT (Kim et al., 2025): one LoRA per photo, and images of the mixtures of two.

Its settings are `recipes.LOFT`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np

from datadream.config import ExperimentConfig
from datadream.data.few_shot import FewShotSet
from datadream.hashing import derive_seed
from datadream.methods.base import AdapterSpec, ImageSeries, Plan, class_photos, series_per_class, taking_turns


def plan(few_shot: FewShotSet, config: ExperimentConfig) -> Plan:
    """The pairs of a class's adapters, in a seeded order, take turns; each adapter is merged with half its update.

    A class of one photo has its one adapter, whole.
    """
    adapters: list[AdapterSpec] = []
    images: list[ImageSeries] = []
    for series in series_per_class(few_shot, config):
        label = series.label
        specs = [
            AdapterSpec(
                f"class-{label:05d}-shot-{number:02d}", (photo,), 1, derive_seed(config.seed, "adapter", label, number)
            )
            for number, photo in enumerate(class_photos(few_shot, label))
        ]
        names = [spec.adapter_id for spec in specs]
        mixtures: list[tuple[tuple[str, float], ...]] = [
            ((one, 0.5), (other, 0.5)) for one, other in combinations(names, 2)
        ]
        mixtures = mixtures or [((names[0], 1.0),)]
        # In their own order, the first images would all be of pairs with the first photo.
        order = np.random.default_rng(derive_seed(config.seed, "pairs", label)).permutation(len(mixtures))
        images += taking_turns([replace(series, adapters=mixtures[place]) for place in order], config)
        adapters += specs
    return Plan(tuple(adapters), tuple(images))
