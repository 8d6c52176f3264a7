"""How readings choose the step of a setting's weights: those of its own training, or of trainings on folds before it.

Folds only tell for how many steps to train on all shots. Who compares knobs needs nothing but readings, and with folds
does without the training on all shots.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from datadream.classify.loop import Reading, Trained, mean_curve
from datadream.classify.selection import Selection
from datadream.data.few_shot import FewShotSet

ALL_SHOTS = "all"
"""The training whose weights are kept; the others are fold-0, fold-1, ..."""


class Train(Protocol):
    """Trains a setting anew."""

    def __call__(self, name: str, few_shot: FewShotSet, stop: int, *, before: int) -> Trained:
        """Train on a few-shot set up to step `stop`, with readings on its validation photos.

        `name` is that of the training, `before` how many steps the setting's earlier ones took.
        """


def readings(few_shot: FewShotSet, selection: Selection, steps: int, train: Train) -> tuple[Reading, ...]:
    """What the setting is chosen by, at the cost of no other training."""
    if selection.folds:
        return _readings_of_folds(selection, steps, train)
    return train(ALL_SHOTS, _with_readings(few_shot, selection), steps, before=0).curve


def train_chosen(few_shot: FewShotSet, selection: Selection, steps: int, train: Train) -> Trained:
    """The chosen weights, of a training on all shots that comes last; the readings are those that chose."""
    whole = _with_readings(few_shot, selection)
    if not selection.folds:
        return train(ALL_SHOTS, whole, steps, before=0)
    curve = _readings_of_folds(selection, steps, train)
    return replace(train(ALL_SHOTS, whole, best_of(curve).step, before=steps * len(selection.folds)), curve=curve)


def best_of(curve: tuple[Reading, ...]) -> Reading:
    """Of equal readings the later one."""
    return max(curve, key=lambda reading: (reading.val_top1, reading.step))


def _readings_of_folds(selection: Selection, steps: int, train: Train) -> tuple[Reading, ...]:
    return mean_curve(
        [
            train(f"fold-{number}", fold, steps, before=steps * number).curve
            for number, fold in enumerate(selection.folds)
        ]
    )


def _with_readings(few_shot: FewShotSet, selection: Selection) -> FewShotSet:
    return replace(few_shot, val=selection.photos)
