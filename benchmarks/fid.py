"""Fréchet distance between two sets of image features (FID: Heusel et al., NeurIPS 2017)."""

from __future__ import annotations

import numpy as np


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Squared distance of the Gaussians that fit two sets of features [n, D] and [m, D].

    |mean - mean'|^2 + tr(C + C' - 2 (C C')^(1/2)). With fewer images than features it is biased upwards: compare only
    sets of equal sizes. Raises ValueError for fewer than two images.
    """
    for features in (one, other):
        if len(features) < 2:
            raise ValueError(f"a Fréchet distance needs 2 images or more in each set, got {len(features)}.")
    means = one.mean(axis=0) - other.mean(axis=0)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    # The eigenvalues of a product of two covariances are real and not negative, up to rounding.
    root = np.sqrt(np.linalg.eigvals(first @ second).real.clip(min=0)).sum()
    return float(means @ means + np.trace(first) + np.trace(second) - 2 * root)
