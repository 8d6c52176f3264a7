"""How a setting fills its batches; whole settings are tested with the trainer."""

from __future__ import annotations

import pytest

from datadream.classify.setting import batch_plan


@pytest.mark.parametrize(
    ("setting", "plan"),
    [
        ("zero-shot", []),
        ("real", [("real", 9, 1.0)]),
        ("synthetic", [("synthetic", 9, 1.0)]),
        ("real+synthetic", [("real", 5, 0.75), ("synthetic", 4, 0.25)]),
    ],
)
def test_batches_are_filled_as_the_setting_says(setting, plan):
    assert batch_plan(setting, 9, 0.75) == plan
