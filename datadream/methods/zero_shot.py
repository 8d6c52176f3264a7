"""Zero-shot generation: no adapter; the base generator starts from noise and the class prompt."""

from __future__ import annotations

from datadream.config import ExperimentConfig
from datadream.data.few_shot import FewShotSet
from datadream.methods.base import Plan, series_per_class


def plan(few_shot: FewShotSet, config: ExperimentConfig) -> Plan:
    """Images of every class from the base generator."""
    return Plan(images=series_per_class(few_shot, config))
