"""The result in words and the terminal's table."""

from __future__ import annotations

import pytest

from datadream.report.records import summarise
from datadream.report.text import (
    duration,
    number,
    result_sentences,
    sampling_error,
    signed,
    text_table,
    validation_note,
)
from tests.report.fabricate import record


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "–"), (4.21, "4.2 s"), (95, "95 s"), (122, "2 min 02 s"), (7384, "2 h 03 min")]
)
def test_durations_read_as_a_person_says_them(seconds, words):
    assert duration(seconds) == words


def test_numbers_have_a_true_minus_and_no_negative_zero():
    assert (number(-1.25), number(None), number(1234.0), number(-0.04)) == ("−1.2", "–", "1,234.0", "0.0")
    assert (signed(1.0), signed(-1.0), signed(-0.01)) == ("+1.0", "−1.0", "+0.0")


def test_sampling_error_of_a_half_right_hundred():
    found = [record("real", 50.0) | {"n_test": 100}, record("zero-shot", 99.0) | {"n_test": 100}]
    assert sampling_error(summarise(found)) == pytest.approx(5.0)
    assert sampling_error(summarise([record("real", None)])) is None


def test_one_sentence_sums_up_a_run():
    found = [record("zero-shot", 57.4), record("real", 86.8), record("real+synthetic", 87.9, method="datadream-cls")]
    assert result_sentences(summarise(found)) == [
        "4 photos per class: 57.4 % without training, 86.8 % on the photos alone, 87.9 % with 30 generated images."
    ]


def test_the_sentence_names_the_best_method_of_several():
    found = [
        record("real+synthetic", top1, seed, method, shots=1)
        for method, top1 in {"is-synth": 70.0, "datadream-cls": 75.0}.items()
        for seed in (0, 1)
    ]
    assert result_sentences(summarise(found)) == [
        "1 photo per class: 75.0 % with 30 generated images by datadream-cls, the best of 2 methods."
    ]


def test_the_terminal_table_lines_up():
    found = [record("zero-shot", 7.4)]
    found += [record("real", value, seed) for seed, value in enumerate((80.0, 82.0))]
    found += [record("real+synthetic", value, seed, "is-synth") for seed, value in enumerate((84.0, 83.0))]
    assert text_table(found).splitlines() == [
        "top-1 accuracy on 300 test photos, %, mean ± standard deviation over 2 seeds",
        "",
        "setting         method    4 shots",
        "zero-shot                  7.4",
        "real                      81.0 ± 1.4",
        "real+synthetic  is-synth  83.5 ± 0.7",
        "gain over real  is-synth  +2.5 ± 2.1",
    ]


def test_the_terminal_table_says_when_there_is_no_test_part():
    table = text_table([record("real", None)])
    assert table.startswith("no test photos: accuracy unknown. Accuracy on 120 validation photos")
    assert "80.0" in table


@pytest.mark.parametrize("by", ["shots", "folds"])
def test_the_terminal_table_calls_no_shots_validation_photos(by):
    found = [record(setting, None) | {"chosen_by": by} for setting in ("real", "synthetic")]
    title = text_table(found).splitlines()[0]
    read = "Accuracy on the 120 shots, left out in turn where real photos are trained on"
    assert f"{read}; synthetic has seen them" in title
    assert f"{read}, %" in text_table(found[:1]).splitlines()[0]
    assert "validation" not in title


def test_the_terminal_table_says_when_test_photos_chose():
    chosen = record("real", 80.0) | {"chosen_by": "test"}
    assert "weights chosen on the test photos themselves" in text_table([chosen]).splitlines()[0]
    assert "chosen" not in text_table([record("real", 80.0)])


def test_the_validation_note_says_whose_figure_it_is():
    notes = {by: validation_note(summarise([record("real", 80.0) | {"chosen_by": by}])) for by in ("val", "folds")}
    assert notes["val"].startswith("The 120 validation photos also chose")
    assert notes["folds"].startswith("Without validation photos of every class, the 120 shots chose how long to train")
    assert validation_note(summarise([record("real", 80.0) | {"n_val": 0, "chosen_by": None}])) == ""


@pytest.mark.parametrize("by", ["shots", "folds"])
def test_the_validation_note_says_that_shots_chose_the_searched_knobs(by):
    searched = record("real", 80.0) | {"chosen_by": by, "chosen_knobs": {"learning_rate": 1e-5}}
    assert "120 shots chose the searched knobs and how long to train" in validation_note(summarise([searched]))


def test_no_records_are_said_to_be_none():
    assert text_table([]) == "no results yet"


def test_a_curve_over_generated_images_is_a_table_of_its_own():
    found = [
        record("synthetic", top1 + seed, seed, "datadream-cls", images_per_class=n)
        for n, top1 in {10: 70.0, 100: 80.0}.items()
        for seed in (0, 2)
    ]
    lines = text_table([*found, record("real", 75.0)]).splitlines()
    assert lines[2:5] == [
        "setting    method         4 shots",
        "real                      75.0",
        "synthetic  datadream-cls  81.0 ± 1.4",
    ]
    assert lines[-4:] == [
        "by generated images per class, 4 shots",
        "",
        "setting    method         10 images   100 images",
        "synthetic  datadream-cls  71.0 ± 1.4  81.0 ± 1.4",
    ]


def test_what_adapts_without_training_is_a_row():
    found = [record("gda-real", 77.0), record("real", 75.0)]
    assert "gda-real          77.0" in text_table(found)
    assert result_sentences(summarise(found)) == ["4 photos per class: 75.0 % on the photos alone."]
