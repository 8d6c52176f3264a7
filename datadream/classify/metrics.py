"""What logits say of a classifier: accuracies in percent, with chance's part in them, and calibration."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

TOP = 5
ECE_BINS = 15
"""Of equal width (Guo et al., 2017)."""
RESAMPLES = 1000
"""Of the test photos, as is usual for such intervals: a bound is then known to 0.09 standard errors."""
MAX_CONFUSION = 100
"""Classes up to which metrics hold the confusion matrix; logits.parquet has it for any number."""
ROWS = 8192
"""Photos whose probabilities are computed at once, in float64."""

FIGURES = ("top1", "top5", "macro", "ece")
Figures = dict[str, float | None]


def measure(logits: Tensor, labels: Tensor, class_names: Sequence[str], seed: int) -> dict[str, Any]:
    """Metrics of logits [n, n_classes] with labels [n], as JSON holds them; None where no photo tells.

    `top1`, `top5` (with more than five classes), `macro` (mean over classes) and `ece` (expected calibration error:
    how far confidence is from accuracy; Guo et al., 2017, equation 3) are in percent; `intervals` holds the 95 %
    bootstrap interval of each; `confusion[i][j]` counts photos of class i taken for j.
    """
    n_classes = len(class_names)
    confusion = torch.zeros(n_classes, n_classes, dtype=torch.int64)
    confusion.view(-1).scatter_add_(0, labels * n_classes + logits.argmax(dim=1), torch.ones_like(labels))
    totals, correct = confusion.sum(dim=1).tolist(), confusion.diagonal().tolist()
    photos = JudgedPhotos.of(logits, labels)
    return {
        "n_test": len(labels),
        **photos.figures(np.ones(len(labels))),
        "intervals": photos.intervals(seed),
        "per_class": [
            {"name": name, "top1": 100 * right / total if total else None, "n": total}
            for name, right, total in zip(class_names, correct, totals, strict=True)
        ],
        "confusion": confusion.tolist() if n_classes <= MAX_CONFUSION and len(labels) else None,
    }


@dataclass(frozen=True, slots=True)
class JudgedPhotos:
    """All that the figures need to know of each of n photos, whatever the number of classes."""

    labels: NDArray[np.int64]
    hits: NDArray[np.float64]
    """1 where the most likely class is the photo's own, else 0."""
    top_hits: NDArray[np.float64] | None
    """1 where the photo's class is among the five most likely; None with five classes or fewer."""
    bins: NDArray[np.int64]
    """By confidence, for the calibration error."""
    gaps: NDArray[np.float64]
    """Hit minus confidence."""

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> JudgedPhotos:
        """Judge photos by logits [n, n_classes] and labels [n]."""
        hits = (logits.argmax(dim=1) == labels).double()
        top_hits = None
        if logits.shape[1] > TOP:
            top_hits = (logits.topk(TOP, dim=1).indices == labels[:, None]).any(dim=1).double().numpy()
        confidence = torch.cat([rows.double().softmax(dim=1).amax(dim=1) for rows in logits.split(ROWS)])
        # Bins are (i/15, (i+1)/15], as in the paper.
        bins = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
        return cls(labels.numpy(), hits.numpy(), top_hits, bins.numpy(), (hits - confidence).numpy())

    def figures(self, counts: NDArray[np.float64]) -> Figures:
        """Figures in percent of a set that has each photo so many times [n]; classes that it lacks are left out."""
        n = counts.sum()
        if not n:
            return dict.fromkeys(FIGURES)
        correct, totals = np.bincount(self.labels, counts * self.hits), np.bincount(self.labels, counts)
        there = totals > 0
        # Sums of products, not `@`: BLAS's threads make it slower.
        figures = {
            "top1": correct.sum() / n,
            "top5": None if self.top_hits is None else (counts * self.top_hits).sum() / n,
            "macro": (correct[there] / totals[there]).mean(),
            "ece": np.abs(np.bincount(self.bins, counts * self.gaps)).sum() / n,
        }
        return {name: None if share is None else 100 * float(share) for name, share in figures.items()}

    def intervals(self, seed: int) -> dict[str, list[float]]:
        """95 % percentile interval of each figure over sets of as many photos, resampled from these.

        Resampling adds to a calibration error, which cannot be negative: where it is small, its interval lies above.
        """
        n, rng = len(self.labels), np.random.default_rng(seed)
        if not n:
            return {}
        # One by one: a thousand at once, of ImageNet's 50,000 photos, would be 400 MB of counts.
        draws = (np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(RESAMPLES))
        resampled = [self.figures(counts.astype(np.float64)) for counts in draws]
        # The nearest: figures that some set of photos has, and not numbers between two of them.
        return {
            name: np.percentile([each[name] for each in resampled], [2.5, 97.5], method="nearest").tolist()
            for name, figure in resampled[0].items()
            if figure is not None
        }


def logits_parquet(keys: Sequence[str], labels: Tensor, logits: Tensor) -> bytes:
    """A row for each photo: key, label and logits."""
    rows = pa.FixedSizeListArray.from_arrays(pa.array(logits.flatten().numpy()), logits.shape[1])
    table = pa.table({"key": pa.array(keys, pa.string()), "label": labels.numpy(), "logits": rows})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
