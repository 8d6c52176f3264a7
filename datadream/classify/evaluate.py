"""Logits of photos, through open_clip's own preprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from datadream.classify.ingest.batches import DECODE_THREADS, read_photo
from datadream.data.datasets import Photo, PhotoSource
from datadream.models.clip.load import ClipModel

# Nothing is kept for gradients here, so that batches are larger than in training.
EVAL_BATCH = 256
KEEP_BYTES = 2**30
"""Preprocessed photos of one set that a worker keeps between readings; larger sets are decoded anew each time."""


class PhotoBatches:
    """Batches of preprocessed photos, float [n, 3, size, size] with labels [n]; iterate as often as needed."""

    def __init__(
        self, source: PhotoSource, photos: Sequence[Photo], clip: ClipModel, keep_bytes: int = KEEP_BYTES
    ) -> None:
        self._source, self._photos, self._preprocess = source, photos, clip.preprocess
        self._keep = len(photos) * 3 * clip.size**2 * 4 <= keep_bytes  # float32
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        """Photos, not batches."""
        return len(self._photos)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self._keep:
            return self._read()
        # Not kept while it is read: an iteration that was given up would leave a part of the photos for the next.
        self._kept = list(self._read()) if self._kept is None else self._kept
        return iter(self._kept)

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        with ThreadPoolExecutor(DECODE_THREADS) as threads:
            for start in range(0, len(self._photos), EVAL_BATCH):
                photos = self._photos[start : start + EVAL_BATCH]
                images = threads.map(lambda photo: self._preprocess(read_photo(self._source, photo)), photos)
                yield torch.stack(list(images)), torch.tensor([photo.label for photo in photos])


@dataclass(frozen=True, slots=True)
class Scores:
    """Logits float32 [n, n_classes] and labels int64 [n] of photos."""

    logits: Tensor
    labels: Tensor


@torch.inference_mode()
def score(
    clip: ClipModel, tokens: Tensor, batches: Iterable[tuple[Tensor, Tensor]], autocast: torch.autocast
) -> Scores:
    """CLIP's logits of all photos, on the device of `tokens`, the class prompts' ids [n_classes, context]."""
    # Cached: LoRA is added to the weights once for all batches.
    with parametrize.cached():
        with autocast:
            classes = clip.encode_text(tokens)
        features, labels = features_of(clip, batches, autocast, classes)
    # Not under autocast: logits reach the scale of 100, bf16 steps by an eighth from 16 on, and classes would tie.
    return Scores(clip.model.logit_scale.exp() * features @ classes.T, labels)


@torch.inference_mode()
def features_of(
    clip: ClipModel, batches: Iterable[tuple[Tensor, Tensor]], autocast: torch.autocast, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """Unit features float32 [n, D] and labels int64 [n] of batches of preprocessed photos, on the device of `classes`
    [n_classes, D]."""
    # Without photos the classes say what width and device the empty tensors have.
    features, labels = [classes[:0]], [classes.new_empty(0, dtype=torch.int64)]
    with autocast:
        for images, own in batches:
            features.append(clip.encode_image(images.to(classes.device, non_blocking=True)))
            labels.append(own.to(classes.device, non_blocking=True))
    return torch.cat(features), torch.cat(labels)


def count_correct(
    clip: ClipModel, tokens: Tensor, batches: Iterable[tuple[Tensor, Tensor]], autocast: torch.autocast
) -> Tensor:
    """How many photos were recognised and how many there are: int64 [2]; counts of several workers add up."""
    scores = score(clip, tokens, batches, autocast)
    hits = scores.logits.argmax(dim=1) == scores.labels
    return torch.stack([hits.sum(), torch.tensor(len(hits), device=hits.device)])
