"""The Fréchet distance where it is known."""

import numpy as np
import pytest

from benchmarks.fid import frechet_distance


def gaussian(n: int, mean: float, scale: float) -> np.ndarray:
    """Features whose sample mean and covariance are exactly those asked for."""
    features = np.random.default_rng(0).normal(size=(n, 4))
    features -= features.mean(axis=0)
    whitened = features @ np.linalg.inv(np.linalg.cholesky(np.cov(features, rowvar=False))).T
    return mean + scale * whitened


def test_equal_sets_have_no_distance():
    features = np.random.default_rng(1).normal(size=(50, 8))
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-6)


def test_gaussians_of_known_mean_and_spread():
    """4 features: 4 * (3 - 1)^2 for the means and 4 * (2 - 1)^2 for the spreads."""
    assert frechet_distance(gaussian(50, 1, 1), gaussian(70, 3, 2)) == pytest.approx(20)


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="needs 2 images or more in each set, got 1"):
        frechet_distance(np.zeros((1, 4)), np.zeros((5, 4)))
