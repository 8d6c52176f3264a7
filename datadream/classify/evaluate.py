"""Logits of photos, through open_clip's own preprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from datadream.classify.ingest.batches import DECODE_THREADS
from datadream.data.datasets import Photo, PhotoSource
from datadream.models.clip.load import ClipModel

EVAL_BATCH = 256
KEEP_BYTES = 2**30
"""Preprocessed photos of one set that a worker keeps between readings; larger sets are decoded anew each time."""


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
    features: list[Tensor] = []
    labels = [torch.empty(0, dtype=torch.int64, device=tokens.device)]
    # Cached: LoRA is added to the weights once for all batches.
    with autocast, parametrize.cached():
        classes = clip.encode_text(tokens)
        for images, own in batches:
            features.append(clip.encode_image(images.to(tokens.device, non_blocking=True)))
            labels.append(own.to(tokens.device, non_blocking=True))
    # Not under autocast: with a scale of 100, bf16 logits would tie.
    features = torch.cat([classes[:0], *features])
    return Scores(clip.model.logit_scale.exp() * features @ classes.T, torch.cat(labels))


def count_correct(
    clip: ClipModel, tokens: Tensor, batches: Iterable[tuple[Tensor, Tensor]], autocast: torch.autocast
) -> Tensor:
    """How many photos were recognised and how many there are: int64 [2]; counts of several workers add up."""
    scores = score(clip, tokens, batches, autocast)
    hits = scores.logits.argmax(dim=1) == scores.labels
    return torch.stack([hits.sum(), torch.tensor(len(hits), device=hits.device)])
