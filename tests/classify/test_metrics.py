"""Metrics by hand and against scikit-learn, and logits that others can read."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn import metrics as sklearn

from datadream.classify.metrics import calibration_error, logits_parquet, measure

NAMES = tuple(f"class {i}" for i in range(7))


@pytest.fixture
def scored() -> tuple[torch.Tensor, torch.Tensor]:
    """200 photos of seven classes, recognised more often than not."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (200,), generator=rng)
    return torch.randn(200, 7, generator=rng) + 1.5 * torch.nn.functional.one_hot(labels, 7), labels


def test_accuracies_are_scikit_learns(scored):
    logits, labels = scored
    found, predicted = measure(*scored, NAMES, seed=0), logits.argmax(dim=1)
    assert found["top1"] == pytest.approx(100 * sklearn.accuracy_score(labels, predicted))
    assert found["macro"] == pytest.approx(100 * sklearn.balanced_accuracy_score(labels, predicted))
    assert found["top5"] == pytest.approx(100 * sklearn.top_k_accuracy_score(labels, logits, k=5))
    assert found["confusion"] == sklearn.confusion_matrix(labels, predicted).tolist()
    assert [(entry["name"], entry["n"]) for entry in found["per_class"]] == [
        (name, int((labels == label).sum())) for label, name in enumerate(NAMES)
    ]
    assert found["n_test"] == 200


def test_the_interval_is_that_of_resampled_photos(scored):
    found = measure(*scored, NAMES, seed=0)
    hits = (scored[0].argmax(dim=1) == scored[1]).numpy()
    resampled = np.random.default_rng(1).choice(hits, (4000, len(hits))).mean(axis=1)
    low, high = found["top1_interval"]
    assert low < found["top1"] < high
    assert [low, high] == pytest.approx((100 * np.percentile(resampled, [2.5, 97.5])).tolist(), abs=0.6)
    assert measure(*scored, NAMES, seed=0) == found


def test_calibration_error_by_hand():
    # Confidence 0.9 and right once in two: off by 0.4; confidence 0.6 and right: off by 0.4.
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]).log()
    assert calibration_error(logits, torch.tensor([0, 1, 1])) == pytest.approx(40)
    assert calibration_error(1000 * logits, torch.tensor([0, 0, 1])) == pytest.approx(0)


def test_what_no_photo_tells_is_none():
    nothing = measure(torch.empty(0, 7), torch.empty(0, dtype=torch.int64), NAMES, seed=0)
    assert [nothing[name] for name in ("top1", "top5", "macro", "ece", "top1_interval", "confusion")] == [None] * 6
    few = measure(torch.eye(3), torch.tensor([0, 1, 1]), ("cat", "dog", "owl"), seed=0)
    assert [entry["top1"] for entry in few["per_class"]] == [100.0, 50.0, None]
    assert (few["macro"], few["top5"]) == (75.0, None)


def test_many_classes_have_no_matrix():
    names = tuple(map(str, range(101)))
    assert measure(torch.eye(101), torch.arange(101), names, seed=0)["confusion"] is None


def test_logits_can_be_read_again(scored):
    logits, labels = scored
    keys = [f"photo-{i}" for i in range(200)]
    table = pq.read_table(io.BytesIO(logits_parquet(keys, labels, logits)))
    assert table["key"].to_pylist() == keys
    assert table["label"].to_pylist() == labels.tolist()
    assert np.array_equal(np.stack(table["logits"].to_numpy()), logits.numpy())
