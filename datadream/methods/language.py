"""Language-guided generation: no adapter; the base generator starts from noise and a description of the class."""

from __future__ import annotations

from dataclasses import replace

from datadream.config import ExperimentConfig
from datadream.data.few_shot import FewShotSet
from datadream.methods.base import Plan, series_per_class


def plan(few_shot: FewShotSet, config: ExperimentConfig) -> Plan:
    """Each image's seed chooses among the descriptions of its class; raises ValueError when there are none."""
    if not few_shot.descriptions:
        raise ValueError(
            "method 'language' generates from descriptions of the classes, and there are none. Set data.descriptions "
            "to a file of them."
        )
    return Plan(
        images=tuple(
            replace(series, prompts=few_shot.descriptions[series.label])
            for series in series_per_class(few_shot, config)
        )
    )
