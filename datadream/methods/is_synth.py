"""IsSynth (He et al., ICLR 2023), as the paper runs it: no adapter; start from a noised shot and the class prompt."""

from __future__ import annotations

from dataclasses import replace

from datadream.config import ExperimentConfig
from datadream.data.few_shot import FewShotSet
from datadream.methods.base import Plan, series_per_class


def plan(few_shot: FewShotSet, config: ExperimentConfig) -> Plan:
    """Images of a class start from its shots in turn."""
    # The authors draw shots at random; in turn, all are used equally often and the index says which.
    return Plan(
        images=tuple(
            replace(series, source_keys=few_shot.shots[series.label], strength=config.generate.strength)
            for series in series_per_class(few_shot, config)
        )
    )
