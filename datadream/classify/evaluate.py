"""Accuracy on photos, through open_clip's own preprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from datadream.classify.images import DECODE_THREADS
from datadream.data.datasets import Photo, PhotoSource
from datadream.models.clip import ClipModel

EVAL_BATCH = 256
KEEP_BYTES = 2**30
"""Preprocessed photos that a worker keeps between readings; larger sets are decoded anew each time."""


class PhotoBatches:
    """Batches of preprocessed photos, float [n, 3, size, size] with labels [n]; iterate as often as needed."""

    def __init__(
        self, source: PhotoSource, photos: Sequence[Photo], clip: ClipModel, keep_bytes: int = KEEP_BYTES
    ) -> None:
        self._source, self._photos, self._preprocess = source, photos, clip.preprocess
        self._keep = len(photos) * 3 * clip.size**2 * 4 <= keep_bytes
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        """Photos, not batches."""
        return len(self._photos)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._kept is not None:
            return iter(self._kept)
        if self._keep:
            self._kept = list(self._read())
            return iter(self._kept)
        return self._read()

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        with ThreadPoolExecutor(DECODE_THREADS) as threads:
            for start in range(0, len(self._photos), EVAL_BATCH):
                photos = self._photos[start : start + EVAL_BATCH]
                yield (
                    torch.stack(list(threads.map(self._load, photos))),
                    torch.tensor([photo.label for photo in photos]),
                )

    def _load(self, photo: Photo) -> Tensor:
        return self._preprocess(self._source.read(photo.key))


@torch.inference_mode()
def count_correct(
    clip: ClipModel, tokens: Tensor, batches: Iterable[tuple[Tensor, Tensor]], autocast: torch.autocast
) -> Tensor:
    """How many photos of each class were recognised and how many there are: int64 [2, n_classes] on `tokens`' device.

    `tokens` are the class prompts' ids [n_classes, context]; counts of several workers add up.
    """
    counts = torch.zeros(2, len(tokens), dtype=torch.int64, device=tokens.device)
    # Cached: LoRA is added to the weights once for all batches.
    with autocast, parametrize.cached():
        classes = clip.encode_text(tokens)
        for images, labels in batches:
            features = clip.encode_image(images.to(tokens.device, non_blocking=True))
            labels = labels.to(tokens.device, non_blocking=True)
            hits = (features @ classes.T).argmax(dim=1) == labels
            counts[0] += labels[hits].bincount(minlength=len(tokens))
            counts[1] += labels.bincount(minlength=len(tokens))
    return counts


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """Accuracy on one class's photos, in percent; None without photos."""

    name: str
    top1: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy over all photos, in percent; None without photos."""

    top1: float | None
    n: int
    per_class: tuple[ClassAccuracy, ...]

    def per_class_json(self) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in self.per_class]


def summarise(counts: Tensor, class_names: Sequence[str]) -> Accuracy:
    """Accuracy from counts [2, n_classes] of recognised and of all photos."""
    rows = [
        ClassAccuracy(name, _percent(correct, total), total)
        for name, correct, total in zip(class_names, *counts.tolist(), strict=True)
    ]
    correct, total = counts.sum(dim=1).tolist()
    return Accuracy(_percent(correct, total), total, tuple(rows))


def _percent(correct: int, total: int) -> float | None:
    return 100 * correct / total if total else None
