"""Which photos choose: validation photos, else shots that are left out for a while, never test photos unless asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from datadream.classify.loop import Reading
from datadream.classify.model_selection import chosen_of, selection_of
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


def test_validation_photos_of_some_classes_choose_nothing(few_shot):
    """A classifier that takes everything for these classes would be the best."""
    some = replace(few_shot, val=tuple(photo for photo in few_shot.val if photo.label > 0))
    assert selection_of("real", some, ClassifyConfig()).chosen_by == "folds"
    assert selection_of("synthetic", some, ClassifyConfig()).chosen_by == "shots"
    assert selection_of("gda-real", some, ClassifyConfig()).chosen_by == "folds"


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


def test_folds_choose_the_last_step_that_is_no_worse_by_more_than_chance_and_validation_photos_the_best(
    few_shot, without_val
):
    curve = tuple(Reading(step, 1.0, top1) for step, top1 in ((50, 67.0), (100, 50.0), (150, 50.0), (200, 33.0)))
    folds = selection_of("real", without_val, ClassifyConfig())
    assert folds.n_photos == 6  # one standard error of 67 % is 19
    assert chosen_of(curve, folds).step == 150
    assert chosen_of(curve, selection_of("real", few_shot, ClassifyConfig())).step == 50
    flat = tuple(replace(reading, val_top1=100.0) for reading in curve)
    assert chosen_of(flat, folds).step == chosen_of(flat, selection_of("real", few_shot, ClassifyConfig())).step == 200
