"""Each measure against its textbook formula, written out, and where its value is known."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from datadream.images.metrics import cmmd, frechet_distance, kernel_distance, nearest, neighbours


def features(n: int, width: int = 6, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    """Correlated features."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) + shift


def gaussian(n: int, mean: float, scale: float) -> np.ndarray:
    """Features whose sample mean and covariance are exactly those asked for."""
    centred = features(n, 4)
    centred -= centred.mean(axis=0)
    return mean + scale * centred @ np.linalg.inv(np.linalg.cholesky(np.cov(centred, rowvar=False))).T


@pytest.mark.parametrize(("n", "m"), [(40, 60), (5, 60), (4, 3)])
def test_frechet_distance_is_the_formula_with_any_number_of_images(n, m):
    one, other = features(n, seed=1), features(m, shift=0.5, seed=2)
    c, d = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    means = one.mean(axis=0) - other.mean(axis=0)
    # Two singular covariances have a product whose root scipy takes by shifting both a little.
    root = sqrtm((c + 1e-12 * np.eye(6)) @ (d + 1e-12 * np.eye(6))).real
    expected = means @ means + np.trace(c + d - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(one.astype(np.float32), other.astype(np.float32)) == pytest.approx(expected, rel=1e-3)


def test_frechet_distance_of_gaussians_of_known_mean_and_spread():
    """4 features: 4 * (3 - 1)^2 for the means and 4 * (2 - 1)^2 for the spreads."""
    assert frechet_distance(gaussian(50, 1, 1), gaussian(70, 3, 2)) == pytest.approx(20)
    assert frechet_distance(features(50), features(50)[::-1]) == pytest.approx(0, abs=1e-9)


def mmd(one, other, kernel):
    """The unbiased estimate, pair by pair."""

    def within(x):
        return np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])

    return within(one) + within(other) - 2 * np.mean([kernel(a, b) for a in one for b in other])


def test_kernel_distances_are_their_sums_over_pairs():
    one, other = features(9, seed=1), features(7, shift=0.5, seed=2)
    expected = mmd(one, other, lambda a, b: (a @ b / 6 + 1) ** 3)
    assert kernel_distance(one, other) == pytest.approx(expected)
    one, other = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (one, other))
    expected = 1000 * mmd(one, other, lambda a, b: np.exp(-((a - b) ** 2).sum() / 200))
    assert cmmd(one, other) == pytest.approx(expected)


def test_kernel_distance_of_one_distribution_is_nothing_in_the_mean():
    rng = np.random.default_rng(0)
    found = [kernel_distance(rng.normal(size=(5, 3)), rng.normal(size=(6, 3))) for _ in range(300)]
    assert abs(np.mean(found)) < 3 * np.std(found) / len(found) ** 0.5


def test_neighbours_are_counted_pair_by_pair():
    photos, images, k = features(20, seed=1), features(30, shift=0.4, seed=2), 3

    def reach(of, among):
        return sorted(np.linalg.norm(of - each) for each in among)[k]

    def inside(point, centres):
        return [np.linalg.norm(point - each) < reach(each, centres) for each in centres]

    expected = {
        "precision": np.mean([any(inside(image, photos)) for image in images]),
        "recall": np.mean([any(inside(photo, images)) for photo in photos]),
        "density": np.mean([sum(inside(image, photos)) / k for image in images]),
        "coverage": np.mean([min(np.linalg.norm(images - p, axis=1)) < reach(p, photos) for p in photos]),
    }
    assert neighbours(photos, images, k) == pytest.approx(expected)
    assert 0 < expected["recall"] < 1
    assert expected["recall"] != expected["coverage"]


def test_images_of_the_photos_themselves_and_far_from_them():
    photos = features(30)
    assert neighbours(photos, photos) == {
        "precision": 1,
        "recall": 1,
        "density": pytest.approx(1, abs=0.5),
        "coverage": 1,
    }
    assert set(neighbours(photos, photos + 1000).values()) == {0}


def test_the_nearest_shot():
    places, similarity = nearest(np.array([[1.0, 0], [0.6, 0.8]]), np.array([[0, 1.0], [1.0, 0]]))
    assert places.tolist() == [1, 0]
    assert similarity.tolist() == [1, 0.8]


def test_too_few_images_are_named():
    with pytest.raises(ValueError, match="Fréchet distance needs 2 images or more in each set, got 1"):
        frechet_distance(features(1), features(5))
    with pytest.raises(ValueError, match="kernel distance needs 2 images or more in each set, got 1"):
        kernel_distance(features(5), features(1))
    with pytest.raises(ValueError, match="5 nearest neighbours need 6 images or more in each set, got 5"):
        neighbours(features(5), features(9))
