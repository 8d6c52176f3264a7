"""What logits say of a classifier: accuracies in percent, with chance's part in them, and calibration."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

TOP = 5
ECE_BINS = 15
"""Of equal width (Guo et al., 2017)."""
RESAMPLES = 10_000
MAX_CONFUSION = 100
"""Classes up to which metrics hold the confusion matrix; logits.parquet has it for any number."""


def measure(logits: Tensor, labels: Tensor, class_names: Sequence[str], seed: int) -> dict[str, Any]:
    """Metrics of logits [n, n_classes] with labels [n], as JSON holds them; None where no photo tells.

    `top1`, `top5` (with more than five classes), `macro` (mean over classes) and `ece` are in percent;
    `top1_interval` holds 95 % of the accuracies of sets resampled from these photos; `confusion[i][j]` counts photos
    of class i taken for j.
    """
    n_classes = len(class_names)
    confusion = torch.zeros(n_classes, n_classes, dtype=torch.int64)
    confusion.view(-1).scatter_add_(0, labels * n_classes + logits.argmax(dim=1), torch.ones_like(labels))
    totals, correct = confusion.sum(dim=1).tolist(), confusion.diagonal().tolist()
    shares = [_percent(right, total) for right, total in zip(correct, totals, strict=True)]
    known = [share for share in shares if share is not None]
    return {
        "top1": _percent(sum(correct), len(labels)),
        "n_test": len(labels),
        "top1_interval": _bootstrap_interval(sum(correct), len(labels), seed),
        "top5": _top(logits, labels) if n_classes > TOP else None,
        "macro": sum(known) / len(known) if known else None,
        "ece": calibration_error(logits, labels),
        "per_class": [
            {"name": name, "top1": share, "n": total}
            for name, share, total in zip(class_names, shares, totals, strict=True)
        ],
        "confusion": confusion.tolist() if n_classes <= MAX_CONFUSION and len(labels) else None,
    }


def calibration_error(logits: Tensor, labels: Tensor) -> float | None:
    """Expected calibration error in points: how far confidence is from accuracy (Guo et al., 2017, equation 3)."""
    if not len(labels):
        return None
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    bins = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    gaps = torch.zeros(ECE_BINS, dtype=torch.float64).index_add(0, bins, (predicted == labels).double() - confidence)
    return 100 * gaps.abs().sum().item() / len(labels)


def logits_parquet(keys: Sequence[str], labels: Tensor, logits: Tensor) -> bytes:
    """A row for each photo: key, label and logits."""
    rows = pa.FixedSizeListArray.from_arrays(pa.array(logits.flatten().numpy()), logits.shape[1])
    table = pa.table({"key": pa.array(keys, pa.string()), "label": labels.numpy(), "logits": rows})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _top(logits: Tensor, labels: Tensor) -> float | None:
    hits = (logits.topk(TOP, dim=1).indices == labels[:, None]).any(dim=1)
    return _percent(int(hits.sum()), len(labels))


def _bootstrap_interval(correct: int, n: int, seed: int) -> list[float] | None:
    """95 % percentile interval in percent: resampled photos are right as often as a binomial draw says."""
    if not n:
        return None
    accuracies = 100 * np.random.default_rng(seed).binomial(n, correct / n, RESAMPLES) / n
    return [float(bound) for bound in np.percentile(accuracies, [2.5, 97.5], method="nearest")]


def _percent(correct: int, total: int) -> float | None:
    return 100 * correct / total if total else None
