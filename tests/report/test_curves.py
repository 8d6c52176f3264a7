"""Charts of a table: which curves they have, and when there is none."""

from typing import get_args

from datadream.config import MethodName
from datadream.report.curves import METHOD_COLORS, SETTING_COLORS, accuracy_by_images, accuracy_by_shots
from datadream.report.records import summarise
from tests.report.fabricate import record

METHODS = ("is-synth", "datadream-cls")


def test_closed_forms_take_no_trained_setting_off_the_chart():
    settings = {"synthetic": 60.0, "gda-real+synthetic": 70.0}
    found = [
        record(setting, top1 + n, method=method, images_per_class=n)
        for setting, top1 in settings.items()
        for method in METHODS
        for n in (10, 20)
    ]
    chart = accuracy_by_images(summarise(found))
    assert [name for name, _ in chart.legend] == [f"synthetic, {method}" for method in METHODS]


def test_closed_forms_alone_have_no_chart():
    found = [record("gda-synthetic", 60.0, method="is-synth", shots=n, images_per_class=10 * n) for n in (1, 2)]
    assert accuracy_by_shots(summarise(found)) is None
    assert accuracy_by_images(summarise(found)) is None


def test_no_two_methods_have_one_colour_or_that_of_real_photos():
    assert set(METHOD_COLORS) == set(get_args(MethodName))
    assert len({*METHOD_COLORS.values(), SETTING_COLORS["real"]}) == len(METHOD_COLORS) + 1
