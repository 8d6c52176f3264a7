"""Records, means, spreads and paired gains."""

from __future__ import annotations

import pytest

from datadream.report.records import FURTHER, records, summarise, unique
from datadream.run.layout import classifier_marker
from tests.report.fabricate import record, write_selection


def test_a_run_gives_one_record_for_each_committed_setting(make_run):
    store, config = make_run("run", {"zero-shot": 50.0, "real": 80.0, "real+synthetic": 85.0}, seed=3)
    found = records(store, config)
    assert [(r["method"], r["setting"], r["top1"]) for r in found] == [
        ("none", "zero-shot", 50.0),
        ("none", "real", 80.0),
        ("datadream-cls", "real+synthetic", 85.0),
    ]
    assert {(r["shots"], r["seed"], r["n_test"], r["n_val"], r["dataset"]) for r in found} == {
        (4, 3, 300, 120, "photos")
    }
    assert [r["n_synthetic"] for r in found] == [0, 0, 30]


def test_filters_count_in_the_run_that_generated_alone(make_run):
    generated, config = make_run("generated", {"synthetic": 80.0})
    write_selection(generated)
    uses, _ = make_run("uses", {"synthetic": 80.0}, dataset=None)
    assert records(generated, config)[0]["selection"]["published"] == 30
    assert records(uses, config)[0]["selection"] is None


def test_a_baseline_that_cells_share_counts_once():
    cells = [record("real", 80.0), record("real", 80.0), record("real", 82.0, seed=1)]
    assert len(unique(cells)) == 2
    (row,) = summarise(cells).rows
    assert (row.mean, row.n_seeds) == (81.0, 2)


def test_means_and_sample_deviations_by_hand():
    both = [record("real+synthetic", value, seed, "datadream-cls") for seed, value in enumerate((84.0, 86.0, 91.0))]
    real = [record("real", value, seed) for seed, value in enumerate((80.0, 82.0, 84.0))]
    summary = summarise(both + real + [record("real", 90.0, seed=7)])
    row = summary.find("datadream-cls", "real+synthetic", 4)
    # Deviations from 87: -3, -1, 4; their squares sum to 26, over n - 1 = 2.
    assert (row.mean, row.sd) == (pytest.approx(87.0), pytest.approx(13**0.5))
    # Differences of the common seeds: 4, 4, 7.
    (gain,) = summary.gains
    assert (gain.mean, gain.sd, gain.n_seeds) == (pytest.approx(5.0), pytest.approx(3**0.5), 3)


def test_one_seed_has_no_spread():
    (row,) = summarise([record("real", 80.0)]).rows
    assert row.sd is None


def test_rows_come_in_the_order_of_the_paper():
    found = [
        record("real+synthetic", 1.0, method="datadream-cls"),
        record("real+synthetic", 1.0, method="is-synth"),
        record("synthetic", 1.0, method="datadream-cls"),
        record("synthetic", 1.0, method="is-synth"),
        record("real", 1.0),
        record("zero-shot", 1.0),
    ]
    assert [(row.setting, row.method) for row in summarise(found).rows] == [
        ("zero-shot", "none"),
        ("real", "none"),
        ("synthetic", "is-synth"),
        ("synthetic", "datadream-cls"),
        ("real+synthetic", "is-synth"),
        ("real+synthetic", "datadream-cls"),
    ]


def test_further_figures_are_means_and_an_interval_is_one_runs():
    (row,) = summarise([record("real", 80.0)]).rows
    assert (row.top5, row.macro, row.ece, row.chosen_by) == (99.0, 80.0, 5.5, "val")
    assert row.intervals == {"top1": [78.0, 82.0], "top5": [98.0, 100.0], "macro": [77.0, 83.0], "ece": [4.5, 7.5]}
    (row,) = summarise([record("real", 80.0), record("real", 90.0, seed=1)]).rows
    assert (row.macro, row.intervals) == (85.0, {})


def test_records_of_older_versions_know_less():
    old = {name: value for name, value in record("real", 80.0).items() if name not in (*FURTHER, "intervals")}
    (row,) = summarise([old]).rows
    assert (row.mean, row.ece, row.intervals, row.chosen_by) == (80.0, None, {}, None)


def test_a_classifier_of_an_older_version_has_the_interval_that_it_knew(make_run):
    store, config = make_run("run", {"real": 80.0, "synthetic": 70.0})
    for setting, older in {"real": {"top1_interval": [77.0, 83.0]}, "synthetic": {}}.items():
        name = classifier_marker(setting)
        known = store.read_json(name)
        del known["intervals"]
        store.write_json(name, known | older)
    assert [r["intervals"] for r in records(store, config)] == [{"top1": [77.0, 83.0]}, {}]


def test_without_test_photos_there_is_no_gain_and_no_mean():
    summary = summarise([record("real", None), record("real+synthetic", None, method="is-synth")])
    assert not summary.has_test
    assert not summary.gains
    assert [row.mean for row in summary.rows] == [None, None]
    assert [row.val_mean for row in summary.rows] == [80.0, 80.0]
