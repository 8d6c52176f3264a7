"""Which photos choose the weights of a setting, without taking any of the few shots from the training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from datadream.config import GAUSSIAN_SETTINGS, TRAINED_SETTINGS, ClassifyConfig, Setting
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
    trains, uses_shots = setting != "zero-shot", "real" in setting
    if trains and config.select_on == "test":
        return Selection("test", few_shot.test)
    if few_shot.val:
        return Selection("val" if trains else None, few_shot.val)
    if config.folds < 2 or setting in GAUSSIAN_SETTINGS:
        return Selection(None)
    if not uses_shots:
        return Selection("shots" if trains else None, few_shot.photos)
    folds = few_shot.folds(config.folds)
    return Selection("folds" if folds else None, folds=folds)


def check_selection(few_shot: FewShotSet, config: ClassifyConfig) -> None:
    """Raises ValueError when test photos are to choose and there are none, or a search has nothing to choose by."""
    if config.select_on == "test" and not few_shot.test:
        raise ValueError("classify.select_on is 'test', but there are no test photos. Use classify.select_on=val.")
    for setting in TRAINED_SETTINGS if config.search.combinations else ():
        if setting in config.settings and selection_of(setting, few_shot, config).chosen_by in (None, "test"):
            raise ValueError(
                f"classify.search chooses knobs on validation photos, but {setting} has none. "
                "Add a val folder or set classify.folds, with classify.select_on=val; or do not search."
            )
