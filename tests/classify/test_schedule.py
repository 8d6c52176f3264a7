"""How long classifiers are trained: by epochs as the authors count them, or by steps."""

from __future__ import annotations

import pytest

from datadream import recipes
from datadream.classify.schedule import Schedule, schedule_of
from datadream.config import ClassifyConfig, ExperimentConfig


@pytest.mark.parametrize(
    ("setting", "n_classes", "expected"),
    [
        # 10 epochs of 5,000, and both of 10,000 images, in batches of 64.
        ("synthetic", 10, Schedule(10 * 79, 3 * 79, 79)),
        ("real", 10, Schedule(10 * 79, 3 * 79, 79)),
        ("real+synthetic", 10, Schedule(10 * 157, 3 * 157, 157)),
        # ImageNet: ten times through half a million images.
        ("synthetic", 1000, Schedule(78_130, 23_439, 7_813)),
        ("real+synthetic", 1000, Schedule(156_250, 46_875, 15_625)),
    ],
)
def test_the_authors_ten_epochs(setting, n_classes, expected):
    assert schedule_of(setting, n_classes, ExperimentConfig()) == expected


def test_more_images_are_more_steps_and_given_steps_are_not():
    config = ExperimentConfig().updated({"generate.images_per_class": 100, "classify.epochs": 2})
    assert schedule_of("synthetic", 10, config) == Schedule(2 * 16, 9, 16)
    given = config.updated({"classify.steps": 300})
    for setting in ("real", "synthetic", "real+synthetic"):
        assert schedule_of(setting, 10, given) == Schedule(300, 90, 30)


def test_digits_are_trained_as_before():
    assert schedule_of("real+synthetic", 10, recipes.digits()) == Schedule(300, 20, 50)
    assert schedule_of("synthetic", 10, recipes.digits_table()) == Schedule(600, 20, 50)


def test_what_is_given_last_bounds_a_training():
    epochs = recipes.digits(**{"classify.epochs": 4})
    assert (epochs.classify.epochs, epochs.classify.steps) == (4, None)
    assert schedule_of("synthetic", 10, epochs) == Schedule(4 * 32, 20, 50)  # 200 images of each class
    steps = epochs.updated({"classify.steps": 7})
    assert (steps.classify.epochs, steps.classify.steps) == (None, 7)
    # A run of a version that knew steps alone.
    assert ClassifyConfig.model_validate({"steps": 3000}).epochs is None


def test_both_or_neither_is_an_error_that_names_them():
    for changes in ({"classify.epochs": 3, "classify.steps": 3}, {"classify.epochs": None}):
        with pytest.raises(ValueError, match=r"^classify: expected either epochs or steps; set the one that you mean"):
            ExperimentConfig().updated(changes)
