"""The search over knobs of the classifier's training."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

from datadream.config.section import Section

Mix = Literal["none", "mixup", "cutmix", "both"]
# What classify.search.mixes names.
MIXES: dict[Mix, dict[str, float]] = {
    "none": {"mixup": 0.0, "cutmix": 0.0},
    "mixup": {"mixup": 1.0, "cutmix": 0.0},
    "cutmix": {"mixup": 0.0, "cutmix": 1.0},
    "both": {"mixup": 1.0, "cutmix": 1.0},
}


class SearchConfig(Section):
    """Knobs of training that are chosen for each setting by accuracy on validation photos, among all combinations of
    what is listed (paper, appendix B) and the knobs' own values; nothing listed: no search."""

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Learning rates to choose from (paper: 1e-4, 1e-5, 1e-6, 1e-7); empty: classify.learning_rate."""
    weight_decays: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Weight decays to choose from (paper: 5e-4, 1e-4); empty: classify.weight_decay."""
    mixes: tuple[Mix, ...] = ()
    """Mixing of images to choose from, with the authors' Beta parameter 1 (paper: with and without mixup and CutMix);
    empty: classify.mixup and classify.cutmix."""
    flips: tuple[bool, ...] = ()
    """Mirroring half of the images to choose from, [false, true]; empty: classify.augment.flip."""
    grace: float = Field(0.1, gt=0, le=1)
    """Share of its steps that every combination is trained for, at least, before any is given up; 1: all train to the
    end (paper)."""
    reduction: int = Field(3, ge=2)
    """The best of so many combinations goes on, with so many times the steps."""

    @property
    def combinations(self) -> list[dict[str, float]]:
        """Dotted knobs of `ClassifyConfig` and their values, a dict for each combination, in the lists' order."""
        listed: list[list[dict[str, float]]] = [
            [{"learning_rate": rate} for rate in self.learning_rates],
            [{"weight_decay": decay} for decay in self.weight_decays],
            [MIXES[mix] for mix in self.mixes],
            [{"augment.flip": flip} for flip in self.flips],
        ]
        products = itertools.product(*filter(None, listed))
        return [dict(itertools.chain.from_iterable(map(dict.items, parts))) for parts in products if parts]

    @model_validator(mode="after")
    def _has_a_choice(self) -> SearchConfig:
        combinations = self.combinations
        if len(combinations) == 1:
            raise ValueError("one combination is no choice; list two values at least, or set the knob itself")
        if any(combination in combinations[:place] for place, combination in enumerate(combinations)):
            raise ValueError("a value is listed twice")
        return self
