"""ProtoAug (Nguyen et al., ICML 2025): images that look alike are to get like logits, real and synthetic ones as well.

Which images look alike is said by regions of the space of pixels, found once by k-means. They are known by their
centres alone, so that any worker can tell the region of any image, also of a stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from datadream.classify.ingest.batches import Labelled, LabelledImages
from datadream.runtime.collectives import Collectives

if TYPE_CHECKING:
    from datadream.classify.train_state import Part

PIXELS = 32
"""Side of the squares whose pixels are compared. The authors compare those of 224: 31 GB for 100 classes of 500."""
MOST_SAMPLED = 10_000
"""Images of each origin that k-means sees."""


@dataclass(frozen=True, slots=True)
class Regions:
    """Regions of the space of pixels: an image is in that of the nearest centre."""

    centres: Tensor
    """[n_regions, 3 * PIXELS**2]."""
    n_synthetic: int
    """All synthetic images, by which the losses are divided."""

    def of(self, images: Labelled) -> Tensor:
        """The regions of images [n], on the centres' device."""
        return torch.cdist(_thumbnails(images).to(self.centres.device), self.centres).argmin(dim=1)


def find_regions(
    parts: Sequence[Part],
    n_images: Sequence[int],
    n_regions: int,
    *,
    seed: int,
    device: torch.device,
    collectives: Collectives,
) -> Regions:
    """Regions of all images, of which each of `parts` has `n_images`; the last one has the synthetic images.

    Every rank must ask, and gets the same; where the images are kept in memory, the same for any number of ranks.
    """
    from sklearn.cluster import KMeans  # not above: it takes a second, and few ask for it

    samples = []
    for part, n in zip(parts, n_images, strict=True):
        batches, n_sampled = part.batches(0), min(n, MOST_SAMPLED)
        own = (_thumbnails(next(batches)) for _ in range(math.ceil(n_sampled / part.batch_size)))
        samples.append(
            torch.cat([collectives.gather(rows.to(device), part.batch_size).cpu() for rows in own])[:n_sampled]
        )
    sampled = torch.cat(samples)
    centres = torch.zeros(min(n_regions, len(sampled)), sampled.shape[1], device=device)
    # By one rank for all: another's machine might round otherwise, and put an image into another region.
    if collectives.rank == 0:
        # As faiss begins, which the authors use: k-means++ takes longer than all that follows.
        # Seeds here have 63 bits, and scikit-learn takes 32.
        k_means = KMeans(len(centres), init="random", n_init=1, random_state=seed % 2**32)
        centres.copy_(torch.from_numpy(k_means.fit(sampled.numpy()).cluster_centers_))
    collectives.sum(centres)
    return Regions(centres, n_images[-1])


def disagreement(real: tuple[Tensor, Tensor] | None, synthetic: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """How far the logits of a batch are apart within regions: the sums over the regions of their discrepancy and of
    their robustness, as yet not divided by the number of all synthetic images.

    `real` and `synthetic` are logits [n, n_classes] and regions [n]. The distance of two images is the mean over the
    classes of their logits' squared difference. Discrepancy is the sum over the pairs of a real and a synthetic image,
    divided by the region's real images; robustness that over the pairs of synthetic images, divided by these, of the
    regions that have a real image or, without `real`, of all.
    """
    logits, regions = synthetic
    together = regions[:, None] == regions
    # Above the diagonal: every pair once, and no image with itself.
    robustness = (_distances(logits, logits) * together.triu(1) / together.sum(dim=1, keepdim=True)).sum(dim=1)
    if real is None:
        return logits.new_zeros(()), robustness.sum()
    real_logits, real_regions = real
    across = real_regions[:, None] == regions
    of_region = (real_regions[:, None] == real_regions).sum(dim=1, keepdim=True)
    discrepancy = _distances(real_logits, logits) * across / of_region
    return discrepancy.sum(), (robustness * across.any(dim=0)).sum()


def _distances(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours[:, None] - theirs).square().mean(dim=2)


def _thumbnails(images: Labelled) -> Tensor:
    """Pixels from 0 to 1 of the middle squares, fp32 [n, 3 * PIXELS**2]."""
    if isinstance(images, LabelledImages):
        return F.interpolate(images.images.float() / 255, (PIXELS, PIXELS), mode="area").flatten(1)
    squares = []
    for photo in images.images:
        side = min(photo.shape[1:])
        top, left = ((n - side) // 2 for n in photo.shape[1:])
        square = photo[None, :, top : top + side, left : left + side].float() / 255
        squares.append(F.interpolate(square, (PIXELS, PIXELS), mode="area"))
    return torch.cat(squares).flatten(1)
