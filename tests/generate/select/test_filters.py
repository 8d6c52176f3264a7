"""Decisions on hand-made features: who passes, who counts, who covers, and how many more to propose."""

import itertools

import numpy as np
import pytest

from datadream.config import ExperimentConfig
from datadream.generate.select.filters import MOST_ATTEMPTS, ClassSelection, k_center, next_candidates, select

PROMPTS = np.eye(4)[:3]
"""Three classes; the fourth axis is what no prompt says."""


def knobs(images_per_class: int, **select_knobs):
    return (
        ExperimentConfig()
        .updated({"generate": {"images_per_class": images_per_class, "select": select_knobs}})
        .generate
    )


def unit(*rows) -> np.ndarray:
    features = np.array(rows, np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


CANDIDATES = unit((9, 1, 0, 1), (1, 9, 0, 1), (5, 6, 0, 1), (5, 1, 0, 5), (2, 3, 4, 1), (9, 1, 0, 1.1), (9, 1, 0, 3))
SHOTS = unit((5, 1, 0, 5.1), (1, 1, 1, 1))


def test_an_image_is_kept_if_its_class_is_among_the_likeliest():
    first = select(CANDIDATES, 0, PROMPTS, SHOTS, knobs(100, label_top_k=1))
    assert first.chosen == (0, 3, 5, 6)
    assert first.rejected == {"label": 3, "copy": 0, "redundant": 0}
    assert first.clip_scores == pytest.approx(CANDIDATES[[0, 3, 5, 6], 0], abs=1e-4)
    assert select(CANDIDATES, 0, PROMPTS, SHOTS, knobs(100, label_top_k=2)).chosen == (0, 1, 2, 3, 5, 6)
    assert select(CANDIDATES, 0, PROMPTS, SHOTS, knobs(100, label_top_k=3)).rejected["label"] == 0


def test_a_copy_of_a_shot_is_left_out_and_counted_once():
    both = select(CANDIDATES, 0, PROMPTS, SHOTS, knobs(100, label_top_k=1, max_shot_similarity=0.99))
    assert both.chosen == (0, 5, 6)
    assert both.rejected == {"label": 3, "copy": 1, "redundant": 0}
    assert both.shot_similarity == pytest.approx(float(SHOTS[0] @ SHOTS[1]), abs=1e-4)
    alone = select(CANDIDATES, 0, PROMPTS, SHOTS[:1], knobs(100, max_shot_similarity=0.99))
    assert alone.chosen == (0, 1, 2, 4, 5, 6)
    assert alone.shot_similarity is None


def test_candidates_after_the_last_one_needed_change_nothing():
    settings = knobs(2, label_top_k=1)
    enough = select(CANDIDATES[:4], 0, PROMPTS, SHOTS, settings)
    assert (enough.chosen, enough.considered, enough.rejected["label"]) == ((0, 3), 4, 2)
    assert select(CANDIDATES, 0, PROMPTS, SHOTS, settings) == enough


def test_coverage_takes_what_differs_from_the_shots_and_from_each_other():
    shots = unit((1, 0, 0, 0.01))
    crowd = [(1, 0, 0, 0.02 + i / 1000) for i in range(4)]
    candidates = unit(*crowd, (1, 0, 0, 2), (1, 1, 0, 0), (1, 0, 0, 2.01), (1, 0, 1, 0))
    chosen = select(candidates, 0, PROMPTS, shots, knobs(4, coverage=2.0))
    assert set(chosen.chosen) >= {5, 7}
    assert len({4, 6} & set(chosen.chosen)) == 1
    assert len(chosen.chosen) == 4
    assert chosen.rejected == {"label": 0, "copy": 0, "redundant": 4}
    assert chosen.considered == 8
    few = select(candidates[:3], 0, PROMPTS, shots, knobs(4, coverage=2.0))
    assert few.chosen == (0, 1, 2), "where there is nothing to choose from, all are taken"


def test_k_center_is_within_twice_the_best_radius():
    rng = np.random.default_rng(0)
    points = unit(*rng.normal(size=(9, 3))).astype(np.float64)

    def radius(taken) -> float:
        centres = np.concatenate([points[:1], points[list(taken)]])
        return np.linalg.norm(points[:, None] - centres, axis=2).min(axis=1).max()

    greedy = k_center(points, points[:1], 3)
    assert len(set(greedy.tolist())) == 3
    assert radius(greedy) <= 2 * min(map(radius, itertools.combinations(range(9), 3))) + 1e-9


def passed(accepted: int) -> ClassSelection:
    return ClassSelection(accepted, 0, {}, (), (), None)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_a_few_attempts_suffice_and_propose_little_too_much(share):
    settings = knobs(500, label_top_k=1, max_candidates=60)
    proposed, attempts = 500, 1
    outcomes = np.random.default_rng(3).random(settings.candidates_per_class) < share
    while True:
        following = next_candidates(passed(min(500, int(outcomes[:proposed].sum()))), proposed, attempts - 1, settings)
        if following == proposed:
            break
        proposed, attempts = following, attempts + 1
    needed = int(np.flatnonzero(outcomes)[499]) + 1 if outcomes.sum() >= 500 else len(outcomes)
    assert attempts <= MOST_ATTEMPTS
    assert needed <= proposed <= 1.4 * needed


def test_a_class_that_never_passes_stops_at_its_limit():
    settings = knobs(10, label_top_k=1, max_candidates=3)
    assert next_candidates(passed(0), 10, 0, settings) == 30
    assert next_candidates(passed(0), 30, 1, settings) == 30
    assert next_candidates(passed(9), 20, MOST_ATTEMPTS - 2, settings) == 30
