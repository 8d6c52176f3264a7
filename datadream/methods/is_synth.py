"""IsSynth (He et al., ICLR 2023): no adapter; start from a noised shot and the class prompt.

The paper ran it on DISEF's code. What that samples with is no part of a plan but knobs: recipes.IS_SYNTH.
"""

from __future__ import annotations

from dataclasses import replace

from datadream.config import ExperimentConfig
from datadream.data.few_shot import FewShotSet
from datadream.methods.base import Plan, series_per_class


def plan(few_shot: FewShotSet, config: ExperimentConfig) -> Plan:
    """Images of a class start from its shots, by default in turn: all are used equally often."""
    knobs = config.generate
    shuffled = knobs.shot_order == "random"
    return Plan(
        images=tuple(
            replace(series, source_keys=few_shot.shots[series.label], strength=knobs.strength, shuffled=shuffled)
            for series in series_per_class(few_shot, config)
        )
    )
