"""What classifiers said of test photos, and the paired difference of two of them."""

from __future__ import annotations

import numpy as np
import pytest

from datadream.report.judged import Judged, difference, judged, voted
from tests.report.fabricate import write_logits


def of(hits: list[bool], keys: str = "") -> Judged:
    n = len(hits)
    return Judged(
        tuple(keys or map(str, range(n))), np.zeros(n, np.int64), np.array([not hit for hit in hits], int), np.ones(n)
    )


def test_the_predicted_class_and_its_probability_are_read(make_run):
    store, _ = make_run("run", {"real": 80.0})
    assert judged(store, "real") is None
    write_logits(store, "real", [0, 1], [0, 2], 3)
    found = judged(store, "real")
    assert found.keys == ("<b>&x/0.png", "cat/1.png")
    assert (found.predicted.tolist(), found.hits.tolist()) == ([0, 2], [True, False])
    # One logit of 1 and then of 2 beside two of 0.
    assert found.confidence == pytest.approx([np.e / (np.e + 2), np.e**2 / (np.e**2 + 2)])


def test_several_settings_vote_by_their_mean_probability(make_run):
    store, _ = make_run("run", {"real": 80.0, "synthetic": 80.0})
    write_logits(store, "real", [0, 0], [0, 1], 3)
    both = [(store, "real"), (store, "synthetic")]
    assert voted(both) is None
    write_logits(store, "synthetic", [0, 0], [1, 0], 3)
    found = voted(both)
    # Equally sure of two classes, of which the first is taken.
    assert found.predicted.tolist() == [0, 0]
    sure, other = np.e / (np.e + 2), 1 / (np.e + 2)
    assert found.confidence[0] == pytest.approx((sure + other) / 2)
    assert (found.keys, found.labels.tolist()) == (judged(store, "real").keys, [0, 0])
    write_logits(store, "synthetic", [1, 0], [1, 0], 3)
    assert voted(both) is None, "they judged other photos"
    write_logits(store, "synthetic", [0, 0, 0], [1, 0, 0], 3)
    assert voted(both) is None, "one judged more"


def test_the_paired_interval_is_that_of_resampled_photos():
    rng = np.random.default_rng(0)
    real = rng.random(400) < 0.8
    both = np.where(rng.random(400) < 0.1, ~real, real)
    found = difference("real+synthetic", of(both.tolist()), of(real.tolist()), seed=1)
    steps = both.astype(int) - real.astype(int)
    drawn = [100 * rng.choice(steps, 400).mean() for _ in range(4000)]
    assert found.mean == pytest.approx(100 * steps.mean())
    assert (found.gained, found.lost) == ((steps > 0).sum(), (steps < 0).sum())
    assert [found.low, found.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist(), abs=0.5)


def test_equal_classifiers_differ_by_nothing_and_other_photos_do_not_compare():
    one = of([True, False, True])
    found = difference("synthetic", one, one, seed=0)
    assert (found.mean, found.low, found.high, found.gained, found.lost) == (0.0, 0.0, 0.0, 0, 0)
    assert difference("synthetic", one, of([True, False, True], keys="abc"), seed=0) is None
