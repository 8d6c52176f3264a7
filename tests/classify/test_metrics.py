"""Metrics by hand and against scikit-learn, and logits that others can read."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn import metrics as sklearn

from datadream.classify.metrics import JudgedPhotos, logits_parquet, measure

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


def test_intervals_are_those_of_a_plain_bootstrap(scored):
    """Sets of photos drawn with replacement, each measured anew; three photos of class 6, which a few sets lack."""
    logits, labels = scored
    few = (labels != 6) | ((labels == 6).cumsum(0) <= 3)
    logits, labels = logits[few], labels[few]
    found = measure(logits, labels, NAMES, seed=0)
    one_photo = 100 / len(labels)
    rng, sets = np.random.default_rng(1), []
    for _ in range(1000):
        drawn = rng.choice(len(labels), len(labels))
        probabilities, own = logits[drawn].double().softmax(dim=1).numpy(), labels[drawn].numpy()
        predicted = probabilities.argmax(axis=1)
        top5 = np.mean((probabilities.argsort(axis=1)[:, -5:] == own[:, None]).any(axis=1))
        recalls = [np.mean(predicted[own == label] == label) for label in np.unique(own)]
        sets.append((np.mean(predicted == own), top5, np.mean(recalls), plain_calibration_error(probabilities, own)))
    for name, resampled in zip(("top1", "top5", "macro", "ece"), 100 * np.array(sets).T, strict=True):
        low, high = np.percentile(resampled, [2.5, 97.5])
        assert found["intervals"][name] == pytest.approx([low, high], abs=one_photo + 0.08 * (high - low)), name
        assert low < found[name] < high
    assert measure(logits, labels, NAMES, seed=0) == found


def plain_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Bins one by one (Guo et al., 2017, equation 3)."""
    confidence, hits = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, 16)
    inside = [(low < confidence) & (confidence <= high) for low, high in itertools.pairwise(edges)]
    return sum(each.mean() * abs(hits[each].mean() - confidence[each].mean()) for each in inside if each.any())


def test_many_photos_of_many_classes_have_intervals():
    n, rng = 50_000, np.random.default_rng(0)
    labels, hits, confidence = np.arange(n) % 1000, (rng.random(n) < 0.8).astype(float), rng.random(n)
    photos = JudgedPhotos(labels, hits, hits, (15 * confidence).astype(int), hits - confidence)
    low, high = photos.intervals(seed=0)["top1"]
    assert high - low == pytest.approx(2 * 1.96 * 100 * np.sqrt(0.8 * 0.2 / n), rel=0.1)


def test_calibration_error_by_hand():
    # Confidence 0.9 and right once in two: off by 0.4; confidence 0.6 and right: off by 0.4.
    logits, names = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]).log(), ("cat", "dog")
    assert measure(logits, torch.tensor([0, 1, 1]), names, seed=0)["ece"] == pytest.approx(40)
    assert measure(1000 * logits, torch.tensor([0, 0, 1]), names, seed=0)["ece"] == pytest.approx(0)


def test_what_no_photo_tells_is_none():
    nothing = measure(torch.empty(0, 7), torch.empty(0, dtype=torch.int64), NAMES, seed=0)
    assert [nothing[name] for name in ("top1", "top5", "macro", "ece", "confusion")] == [None] * 5
    assert nothing["intervals"] == {}
    few = measure(torch.eye(3), torch.tensor([0, 1, 1]), ("cat", "dog", "owl"), seed=0)
    assert [entry["top1"] for entry in few["per_class"]] == [100.0, 50.0, None]
    assert (few["macro"], few["top5"]) == (75.0, None)
    assert few["intervals"].keys() == {"top1", "macro", "ece"}


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
