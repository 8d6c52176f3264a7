"""How far a set of images is from a set of photos, by features [n, D] of a model that both were shown to.

All are symmetric in what they do, but for `neighbours`, which asks how far each set lies within the other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics.pairwise import euclidean_distances, polynomial_kernel, rbf_kernel

Features = NDArray[np.floating]

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
"""Width of the Gaussian kernel, and a factor for readers (Jayasumana et al., CVPR 2024)."""
NEIGHBOURS = 5
"""The k of k-nearest neighbours (Naeem et al., ICML 2020)."""


def frechet_distance(one: Features, other: Features) -> float:
    """Squared distance of the Gaussians that fit two sets of features (FID: Heusel et al., NeurIPS 2017).

    |mean - mean'|^2 + tr(C + C' - 2 (C C')^(1/2)). With few images it is biased upwards, the more the fewer: compare
    only sets of equal sizes. Raises ValueError for fewer than two images.
    """
    for features in (one, other):
        if len(features) < 2:
            raise ValueError(f"a Fréchet distance needs 2 images or more in each set, got {len(features)}.")
    # In float64: a distance is a small difference of large traces.
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    means = one.mean(axis=0) - other.mean(axis=0)
    # Of each an R of which the covariance is R^T R. numpy's types know no mode of qr that returns one array.
    first, second = (
        np.asarray(np.linalg.qr((features - features.mean(axis=0)) / np.sqrt(len(features) - 1), mode="r"))
        for features in (one, other)
    )
    # The trace of (C C')^(1/2) is the sum of the singular values of R R'^T, which is no larger than the number of
    # images, where a class has fewer of them than a model has features.
    root = np.linalg.svdvals(first @ second.T).sum()
    return float(means @ means + (first**2).sum() + (second**2).sum() - 2 * root)


def kernel_distance(one: Features, other: Features) -> float:
    """KID (Binkowski et al., ICLR 2018): unbiased for any number of images, so that it may be a little negative."""
    # scikit-learn's own factor of the product, 1 / D, is that of KID: (x . y / D + 1)^3.
    return _squared_mmd(one, other, lambda x, y: polynomial_kernel(x, y, degree=3, coef0=1))


def cmmd(one: Features, other: Features) -> float:
    """CMMD of unit features (Jayasumana et al., CVPR 2024), by the paper's unbiased estimate; their code keeps the
    diagonal, and so gives a little more."""
    return CMMD_SCALE * _squared_mmd(one, other, lambda x, y: rbf_kernel(x, y, gamma=1 / (2 * CMMD_SIGMA**2)))


def _squared_mmd(one: Features, other: Features, kernel: Callable[[Features, Features], Features]) -> float:
    """Squared maximum mean discrepancy; raises ValueError for fewer than two images."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    within = 0.0
    for features in (one, other):
        if (n := len(features)) < 2:
            raise ValueError(f"a kernel distance needs 2 images or more in each set, got {n}.")
        similar = kernel(features, features)
        # Without the diagonal, an image's similarity to itself, by which the estimate is unbiased.
        within += (similar.sum() - similar.trace()) / (n * (n - 1))
    return float(within - 2 * kernel(one, other).mean())


def neighbours(photos: Features, images: Features, k: int = NEIGHBOURS) -> dict[str, float]:
    """How far images lie among photos and photos among images, 0 to 1 but for density, which may exceed 1.

    A set is taken to be where its members are: within the distance of each to its k-th nearest fellow. `precision` is
    the share of images among the photos, `recall` that of photos among the images (Kynkäänniemi et al., NeurIPS 2019);
    `density` is among how many of the photos, over k, an image is in the mean, and `coverage` the share of photos that
    have an image next to them (Naeem et al., ICML 2020). Raises ValueError unless both sets have more than k members.
    """
    for features in (photos, images):
        if len(features) <= k:
            raise ValueError(
                f"the {k} nearest neighbours need {k + 1} images or more in each set, got {len(features)}."
            )
    photos, images = np.asarray(photos, np.float64), np.asarray(images, np.float64)
    # The nearest of all is a member itself, at place 0.
    reach, reach_of_images = (np.partition(euclidean_distances(each), k, axis=1)[:, k] for each in (photos, images))
    apart = euclidean_distances(photos, images)
    within = apart < reach[:, None]
    return {
        "precision": float(within.any(axis=0).mean()),
        "recall": float((apart < reach_of_images).any(axis=1).mean()),
        "density": float(within.sum(axis=0).mean() / k),
        "coverage": float(within.any(axis=1).mean()),
    }


def nearest(images: Features, shots: Features) -> tuple[NDArray[np.int64], Features]:
    """Of unit features, each image's most similar shot [n] and their cosine similarity [n]."""
    similarity = images @ shots.T
    return similarity.argmax(axis=1), similarity.max(axis=1)
