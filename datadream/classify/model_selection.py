"""Model selection: which photos choose a setting's weights, and how their readings choose the training step.

The step is that of the best reading of the run's own validation curve; or, with K-fold, the last that is no worse by
more than chance on the mean curve of trainings that each leave a part of the shots out, after which all shots are
trained on for so long. The final training lacks none of the few shots. Who compares knobs needs nothing but readings,
and with folds does without that training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from datadream.classify.loop import Reading, Trained, mean_curve
from datadream.config import TRAINED_SETTINGS, ClassifyConfig, Setting
from datadream.data.datasets import Photo
from datadream.data.few_shot import FewShotSet

ChosenBy = Literal["val", "test", "shots", "folds"]


@dataclass(frozen=True, slots=True)
class Selection:
    """How a setting's weights are chosen."""

    chosen_by: ChosenBy | None
    """None: nothing to choose, or nothing to choose by, and the last weights are kept."""
    photos: tuple[Photo, ...] = ()
    """Read while the setting trains on all of its photos."""
    folds: tuple[FewShotSet, ...] = ()
    """Trained one by one before, to choose the number of steps."""

    @property
    def n_photos(self) -> int:
        return len(self.photos) + sum(len(fold.val) for fold in self.folds)

    @property
    def n_trainings(self) -> int:
        return 1 + len(self.folds)


def selection_of(setting: Setting, few_shot: FewShotSet, config: ClassifyConfig) -> Selection:
    """The law of `classify.select_on` and `classify.folds`."""
    # zero-shot has nothing to choose; the photos are then read for its validation figure alone.
    trains, uses_shots = setting != "zero-shot", "real" in setting
    if trains and config.select_on == "test":
        return Selection("test", few_shot.test)
    # Photos of some classes would choose what takes everything for these.
    if len({photo.label for photo in few_shot.val}) == len(few_shot.class_names):
        return Selection("val" if trains else None, few_shot.val)
    if config.folds < 2:
        return Selection(None)
    if not uses_shots:
        return Selection("shots" if trains else None, few_shot.photos)
    folds = few_shot.folds(config.folds)
    return Selection("folds" if folds else None, folds=folds)


def check_selection(few_shot: FewShotSet, config: ClassifyConfig) -> None:
    """Raises ValueError when test photos are to choose and there are none, or a search has nothing to choose by."""
    if config.select_on == "test" and not few_shot.test:
        raise ValueError("classify.select_on is 'test', but there are no test photos. Use classify.select_on=val.")
    # Trials are trained without the test photos, so that these choose no knobs even where they choose the weights.
    for setting in TRAINED_SETTINGS if config.search.combinations else ():
        if setting in config.settings and selection_of(setting, few_shot, config).chosen_by in (None, "test"):
            raise ValueError(
                f"classify.search chooses knobs on validation photos, but {setting} has none of every class. "
                "Add a val folder with all classes, or set classify.folds, with classify.select_on=val; or do not "
                "search: empty the lists of classify.search."
            )


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
    if not selection.folds:
        return train(ALL_SHOTS, replace(few_shot, val=selection.photos), steps, before=0).curve
    curves = [
        train(f"fold-{number}", fold, steps, before=steps * number).curve
        for number, fold in enumerate(selection.folds)
    ]
    return mean_curve(curves)


def train_chosen(few_shot: FewShotSet, selection: Selection, steps: int, train: Train) -> Trained:
    """The chosen weights, of a training on all shots that comes last; the readings are those that chose."""
    whole = replace(few_shot, val=selection.photos)
    if not selection.folds:
        return train(ALL_SHOTS, whole, steps, before=0)
    curve = readings(few_shot, selection, steps, train)
    # The schedule stays that of `steps`: what stops early has the learning rates of the folds at that step.
    stop = chosen_of(curve, selection).step
    return replace(train(ALL_SHOTS, whole, stop, before=steps * len(selection.folds)), curve=curve)


def chosen_of(curve: tuple[Reading, ...], selection: Selection) -> Reading:
    """The best reading, of equal ones the later; with folds the last one within a standard error of the best
    (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3).

    Shots are few: of 48 photos, 54 % are known to within 7 points, and an early best is mostly luck. What stops there
    may not even have left its warm-up: on chess pieces of four photos a class, step 50 of 300 was the best by 2
    points, and its classifier was right for 37.5 % of the test photos, where the last step's is for 61.5 %.
    """
    top1 = {reading: reading.val_top1 or 0.0 for reading in curve}
    best = max(curve, key=lambda reading: (top1[reading], reading.step))
    if not selection.folds:
        return best
    share = top1[best] / 100
    least = top1[best] - 100 * math.sqrt(share * (1 - share) / selection.n_photos)
    return max((reading for reading in curve if top1[reading] >= least), key=lambda reading: reading.step)
