"""Training-free adaptation: Gaussian discriminant analysis on the features of the frozen CLIP.

The features of a class are taken to be Gaussian, with a mean of its own and a covariance that all classes share. That
makes a linear classifier in closed form, which is added to CLIP's zero-shot logits with a weight that validation
photos choose (Wang et al., "A hard-to-beat baseline for training-free CLIP-based adaptation", ICLR 2024, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from datadream.classify.train_state import Part
from datadream.data.augment import Augment
from datadream.models.clip.load import ClipModel
from datadream.runtime.collectives import Collectives

WEIGHTS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
"""Weights of the Gaussian logits that validation photos choose from (authors' code)."""
WEIGHT_WITHOUT_VALIDATION = 1.0
VIEWS = {"real": 10, "synthetic": 1}
"""Augmented views of an image, by origin. One shot has no spread of its own (authors' code: 10 views); generated
images are many."""


@dataclass(frozen=True, slots=True)
class LinearHead:
    """Logits features @ weight.T + bias for unit features [n, D]."""

    weight: Tensor
    """[n_classes, D]."""
    bias: Tensor
    """[n_classes]."""

    @classmethod
    def of_prompts(cls, text_features: Tensor, logit_scale: Tensor) -> LinearHead:
        """CLIP's zero-shot head."""
        return cls(logit_scale * text_features, torch.zeros(len(text_features), device=text_features.device))

    def __call__(self, features: Tensor) -> Tensor:
        return features @ self.weight.T + self.bias

    def plus(self, other: LinearHead, weight: float) -> LinearHead:
        """The sum of this head's logits and `weight` times those of another."""
        return LinearHead(self.weight + weight * other.weight, self.bias + weight * other.bias)


@dataclass(frozen=True, slots=True)
class Adapted:
    """A head that was adapted without training."""

    head: LinearHead
    weight: float
    """Of the Gaussian logits beside the zero-shot ones."""
    val_top1: float | None
    """Accuracy on validation photos in percent; None without any."""

    def to_tensors(self) -> dict[str, Tensor]:
        """As `SavedClassifier` takes it."""
        scale = torch.ones(())
        return {"text_features": self.head.weight.cpu(), "logit_scale": scale, "bias": self.head.bias.cpu()}


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

    def over(self, collectives: Collectives) -> Moments:
        """The sums over all workers; every rank must call this."""
        for tensor in (self.mass, self.first, self.second, self.squares):
            collectives.sum(tensor)
        return self


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
    """This rank's moments of the first `n_images` images of a part, augmented, which weigh `part.weight` together."""
    share, device = collectives.share(part.batch_size), zero_shot.weight.device
    n_classes, weight = len(zero_shot.bias), part.weight / n_images
    found = Moments.of(*_nothing(zero_shot), weight, n_classes)
    for start, batch in zip(range(0, n_images, part.batch_size), part.batches(0), strict=False):
        batch = batch.to(device)
        numbers = augment.draw(part.batch_size, rng)[share]
        left = max(0, min(len(batch), n_images - start - share.start))
        if left:
            with autocast:
                images = augment.apply(batch.images[:left], numbers[:left])
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
    precision_means = torch.linalg.solve(spread if trace > 1e-9 else identity, size * means.T).T
    return LinearHead(precision_means.float(), -0.5 * (precision_means * means).sum(dim=1).float())


@torch.inference_mode()
def features_of(
    clip: ClipModel, batches: Iterable[tuple[Tensor, Tensor]], autocast: torch.autocast, zero_shot: LinearHead
) -> tuple[Tensor, Tensor]:
    """Unit features [n, D] and labels [n] of batches of preprocessed photos."""
    pairs, device = [_nothing(zero_shot)], zero_shot.weight.device
    with autocast:
        for images, labels in batches:
            features = clip.encode_image(images.to(device, non_blocking=True))
            pairs.append((features.float(), labels.to(device)))
    return torch.cat([features for features, _ in pairs]), torch.cat([labels for _, labels in pairs])


def blend(
    zero_shot: LinearHead, gaussian: LinearHead, features: Tensor, labels: Tensor, collectives: Collectives
) -> Adapted:
    """Both heads' logits added, with the smallest of the weights that recognise most validation photos.

    Every rank must call this with its own photos, and gets the same; without any the weight is 1.
    """
    hits = torch.stack([_hits(zero_shot.plus(gaussian, weight), features, labels) for weight in WEIGHTS])
    n = torch.tensor(len(labels), device=hits.device)
    for tensor in (hits, n):
        collectives.sum(tensor)
    if not n:
        return Adapted(zero_shot.plus(gaussian, WEIGHT_WITHOUT_VALIDATION), WEIGHT_WITHOUT_VALIDATION, None)
    weight = WEIGHTS[hits.tolist().index(hits.max())]
    return Adapted(zero_shot.plus(gaussian, weight), weight, 100 * int(hits.max()) / int(n))


def _hits(head: LinearHead, features: Tensor, labels: Tensor) -> Tensor:
    return (head(features).argmax(dim=1) == labels).sum()


def _nothing(head: LinearHead) -> tuple[Tensor, Tensor]:
    """No features and no labels, as a head takes them."""
    return head.weight[:0], head.bias[:0].long()
