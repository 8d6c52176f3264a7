"""DISEF (da Costa et al., 2024): no adapter; start from a noised shot and the caption of another shot of its class.

Its settings are `recipes.DISEF`; its filter is generate.select.label_top_k=1.
"""

from __future__ import annotations

from dataclasses import replace

from datadream.config import ExperimentConfig
from datadream.data.few_shot import FewShotSet
from datadream.methods.base import ImageSeries, Plan, series_per_class, taking_turns


def plan(few_shot: FewShotSet, config: ExperimentConfig) -> Plan:
    """The captions of a class take turns, and with each of them all other shots do: every pair is as frequent as any
    other, and a chunk has one prompt. A class of one photo has its own caption.

    Raises ValueError when there are no captions.
    """
    # The authors draw photos and captions at random, so that a photo may also meet its own.
    if not few_shot.captions and config.data.captioner is None:
        raise ValueError(
            "method 'disef' generates from captions of the shots, and there are none. Set data.captions to a file "
            "of them, or data.captioner to a model that writes them."
        )
    images: list[ImageSeries] = []
    for series in series_per_class(few_shot, config):
        shots = few_shot.shots[series.label]
        kinds = [
            # Of K captions one comes up at every K-th index, where the K - 1 others of `source_keys` advance by one.
            replace(
                series,
                # Until data.captioner has written it, the class prompt stands for it: counts do not depend on that.
                prompts=(few_shot.captions.get(shot, few_shot.prompts[series.label]),),
                source_keys=tuple(other for other in shots if other != shot) or shots,
                strength=config.generate.strength,
            )
            for shot in shots
        ]
        images += taking_turns(kinds, config)
    return Plan(images=tuple(images))
