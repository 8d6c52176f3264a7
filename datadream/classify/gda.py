"""Training-free adaptation: Gaussian discriminant analysis on the features of the frozen CLIP.

The features of a class are taken to be Gaussian, with a mean of its own and a covariance that all classes share. That
makes a linear classifier in closed form, which is added to CLIP's zero-shot logits with a weight that validation
photos choose (Wang et al., "A hard-to-beat baseline for training-free CLIP-based adaptation", ICLR 2024, section 3),
or where there are none, shots that were left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datadream.classify.train_state import Part
from datadream.data.augment import Augment
from datadream.models.clip.load import ClipModel
from datadream.runtime.collectives import Collectives

WEIGHTS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
"""Weights of the Gaussian logits that photos choose from (authors' code)."""
WEIGHT_WITHOUT_VALIDATION = 1.0
"""One of WEIGHTS."""


@dataclass(frozen=True, slots=True)
class LinearHead:
    """Logits features @ weight.T + bias for unit features [n, D]."""

    weight: Tensor
    """[n_classes, D]."""
    bias: Tensor
    """[n_classes]."""

    def __call__(self, features: Tensor) -> Tensor:
        return features @ self.weight.T + self.bias


@dataclass(frozen=True, slots=True)
class Adapted:
    """A head that was adapted without training."""

    head: LinearHead
    weight: float
    """Of the Gaussian logits beside the zero-shot ones."""
    val_top1: float | None
    """Accuracy on the photos that chose the weight, in percent; None without any."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Weighted sums over features, in float64; those of several origins and workers add up."""

    mass: Tensor
    """Weights by class [n_classes]."""
    first: Tensor
    """Weighted features by class [n_classes, D]."""
    second: Tensor
    """Weighted outer products over all classes [D, D]."""
    squares: Tensor
    """Squared weights, []."""

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, weight: float, n_classes: int) -> Moments:
        """Sums over features [n, D] with labels [n] of `weight` each."""
        # In float64: a covariance is a small difference of large sums.
        features = features.double()
        members = torch.nn.functional.one_hot(labels, n_classes).double().T
        squares = torch.tensor(len(labels) * weight**2, dtype=torch.float64, device=features.device)
        return cls(weight * members.sum(dim=1), weight * members @ features, weight * features.T @ features, squares)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.mass + other.mass,
            self.first + other.first,
            self.second + other.second,
            self.squares + other.squares,
        )


@torch.inference_mode()
def measure(
    clip: ClipModel,
    part: Part,
    n_images: int,
    augment: Augment,
    autocast: torch.autocast,
    zero_shot: LinearHead,
    collectives: Collectives,
    rng: torch.Generator,
) -> Moments:
    """This rank's moments of the first `n_images` images of a part, augmented, which weigh `part.weight` together.

    More than the part has go around it again, augmented anew; `rng` must have the same state on all ranks.
    """
    share, device = collectives.share(part.batch_size), zero_shot.weight.device
    n_classes, weight = len(zero_shot.bias), part.weight / n_images
    # Zeros of the right shapes: a rank's share may have no image.
    found = Moments.of(zero_shot.weight[:0], zero_shot.bias[:0].long(), weight, n_classes)
    for start, batch in zip(range(0, n_images, part.batch_size), part.batches(0), strict=False):
        batch = batch.to(device)
        # Drawn for the batch of all ranks, even where our share is past the end: all generators stay in step.
        numbers = augment.draw(part.batch_size, rng)[share]
        left = max(0, min(len(batch), n_images - start - share.start))
        if left:
            images = augment.apply(batch.images[:left], numbers[:left])  # in fp32, as in training
            with autocast:
                features = clip.encode_image(images)
            found += Moments.of(features, batch.labels[:left], weight, n_classes)
    return found


def fit(moments: Moments) -> LinearHead:
    """The Gaussian logits, up to a constant (paper, section 3; classes are equally likely).

    The covariance is shrunk for few images as there: precision = D ((n - 1) cov + tr(cov) I)^-1, where n is the
    number of images, or with unequal weights Kish's effective number. Where nothing spreads, the nearest mean wins.
    Raises ValueError when a class has no image.
    """
    if not bool((moments.mass > 0).all()):
        missing = int((moments.mass == 0).nonzero()[0])
        raise ValueError(f"class {missing} has no image to estimate its mean from. Give every class one.")
    total = moments.mass.sum()
    means = moments.first / moments.mass[:, None]
    covariance = (moments.second - means.T @ (moments.mass[:, None] * means)) / total
    n, trace, size = total**2 / moments.squares, covariance.trace(), len(covariance)
    identity = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    spread = (n - 1) * covariance + trace * identity
    # Of single or equal images the trace is rounding alone: features have length one, and what spreads exceeds 1e-9.
    precision_means = torch.linalg.solve(spread if trace > 1e-9 else identity, size * means.T).T
    # x' P m - m' P m / 2 for a mean m and precision P: x' P x is the same for all classes, and left out.
    return LinearHead(precision_means.float(), -0.5 * (precision_means * means).sum(dim=1).float())


def blended(zero_shot: LinearHead, gaussian: LinearHead, weight: float) -> LinearHead:
    """Zero-shot logits, and `weight` times the Gaussian ones."""
    return LinearHead(zero_shot.weight + weight * gaussian.weight, zero_shot.bias + weight * gaussian.bias)


def count_hits(zero_shot: LinearHead, gaussian: LinearHead, features: Tensor, labels: Tensor) -> Tensor:
    """How many of n photos are recognised with each of WEIGHTS, and last n: int64 [len(WEIGHTS) + 1].

    Counts of several workers, and of several parts of the photos, add up.
    """
    hits = [(blended(zero_shot, gaussian, weight)(features).argmax(dim=1) == labels).sum() for weight in WEIGHTS]
    return torch.stack([*hits, torch.tensor(len(labels), device=labels.device)])


def choose(zero_shot: LinearHead, gaussian: LinearHead, counts: Tensor) -> Adapted:
    """Both heads' logits added, with the smallest of the weights that recognise most photos by `count_hits`; without
    any photos the weight is 1."""
    *hits, n = counts.tolist()
    # WEIGHTS ascend, and the first of equals is the smallest: closest to what CLIP knew without the images.
    best = hits.index(max(hits)) if n else WEIGHTS.index(WEIGHT_WITHOUT_VALIDATION)
    return Adapted(blended(zero_shot, gaussian, WEIGHTS[best]), WEIGHTS[best], 100 * hits[best] / n if n else None)
