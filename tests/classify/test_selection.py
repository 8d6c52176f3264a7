"""Which photos choose: validation photos, else shots that are left out for a while, never test photos unless asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from datadream.classify.model_selection import selection_of
from datadream.config import ClassifyConfig

SETTINGS = ("zero-shot", "real", "synthetic", "real+synthetic")


@pytest.fixture
def without_val(few_shot):
    return replace(few_shot, val=())


def test_validation_photos_choose_where_there_are_any(few_shot):
    for setting in SETTINGS:
        selection = selection_of(setting, few_shot, ClassifyConfig())
        assert selection.photos == few_shot.val
        assert selection.chosen_by == (None if setting == "zero-shot" else "val")
        assert (selection.n_photos, selection.n_trainings) == (18, 1)


def test_without_them_shots_choose_when_they_are_not_trained_on(without_val):
    for setting in SETTINGS:
        selection = selection_of(setting, without_val, ClassifyConfig())
        assert selection.n_photos == 6
        if "real" in setting:
            assert (selection.chosen_by, selection.photos, selection.n_trainings) == ("folds", (), 3)
            assert all(not set(fold.photos) & set(fold.val) for fold in selection.folds)
        else:
            assert (selection.folds, selection.photos) == ((), without_val.photos)


@pytest.mark.parametrize(("folds", "n_shots"), [(0, 2), (1, 2), (2, 1)])
def test_where_nothing_can_be_left_out_the_last_weights_are_kept(without_val, folds, n_shots):
    few = replace(without_val, shots=tuple(keys[:n_shots] for keys in without_val.shots))
    selection = selection_of("real", few, ClassifyConfig(folds=folds))
    assert (selection.chosen_by, selection.n_photos, selection.n_trainings) == (None, 0, 1)


def test_test_photos_choose_only_if_asked(few_shot):
    knobs = ClassifyConfig(select_on="test")
    assert selection_of("real", few_shot, knobs).photos == few_shot.test
    assert selection_of("real", few_shot, knobs).chosen_by == "test"
    assert selection_of("zero-shot", few_shot, knobs).chosen_by is None
