"""IsSynth (He et al., ICLR 2023), as the paper runs it: no adapter; start from a noised shot and the class prompt."""

from __future__ import annotations

from dataclasses import replace

from datadream.config import ExperimentConfig
from datadream.data.few_shot import FewShotSet
from datadream.methods.base import ImageRequest, Plan, requests


def plan(few_shot: FewShotSet, config: ExperimentConfig) -> Plan:
    """Images of a class start from its shots in turn."""

    def from_shot(request: ImageRequest) -> ImageRequest:
        shots = few_shot.shots[request.label]
        return replace(request, source_key=shots[request.index % len(shots)], strength=config.generate.strength)

    return Plan(images=tuple(from_shot(request) for request in requests(few_shot, config)))
