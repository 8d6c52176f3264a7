"""The synthetic images on their way to a worker that trains on them.

A set that fits is decoded once and every worker keeps all of it. A larger one streams, and every worker reads its own
split. Resume restarts the stream's epoch, since seeking would mean decoding all that comes before, so streamed runs
that were interrupted are not bit-identical: some images are seen once more and others once less.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from datadream.classify.ingest.batches import (
    LabelledImages,
    SyntheticImages,
    buffered_batches,
    rows_per_read,
    shuffled_batches,
)
from datadream.classify.ingest.reader import REMEDY, Published, check_labels, check_range
from datadream.hashing import derive_seed
from datadream.runtime.collectives import Collectives

MEMORY_LIMIT = 2 * 2**30
"""Bytes of decoded synthetic images that a worker keeps in memory; a larger set streams. 14,000 squares of 224 pixels:
a table of the small data sets fits, ImageNet does not."""
SHUFFLE_BYTES = 2**29
"""Bytes of the buffer through which a stream is shuffled: 3,500 squares of 224 pixels, several shards' worth."""


class Rows(Protocol):
    """Decoded rows as Ray Data's iterators hand them out, from the beginning at every call."""

    def iter_batches(self, *, batch_size: int | None, batch_format: str, drop_last: bool = False) -> Iterable[Any]: ...


def shuffle_buffer(published: Published, n_readers: int) -> int:
    """Images of a reader's shuffle buffer, at most the reader's split; 0 when the set fits in memory."""
    if published.n_bytes <= MEMORY_LIMIT:
        return 0
    # More than the split would make a start wait for the stream's next epoch before its first batch.
    return max(1, min(SHUFFLE_BYTES // (3 * published.size**2), published.n // n_readers))


def synthetic_images(
    rows: Rows, n: int, buffer: int, class_names: Sequence[str], device: torch.device, collectives: Collectives
) -> SyntheticImages:
    """The `n` synthetic images of a run as this worker sees them: kept in memory, or streamed through a buffer of
    `buffer` images where that is not 0.

    Raises ValueError when they are not as many as the marker says, or a label is no class's; of a stream, while its
    batches are read.
    """
    if not buffer:
        pool = collect(rows)
        if len(pool) != n:
            raise ValueError(f"the dataset holds {len(pool)} images, its marker says {n}. {REMEDY}")
        check_labels(pool.labels.numpy(), class_names)
        pool = pool.to(device)
        return SyntheticImages(n, lambda size, seed, step: shuffled_batches(pool, size, collectives, seed, step))

    def batches(batch_size: int, seed: int, step: int) -> Iterator[LabelledImages]:
        size = rows_per_read(batch_size, collectives)
        # Ray Data splits equally and drops what is left over, and so does every worker of its own split.
        reads = _reads(rows, size, n // collectives.count // size, len(class_names))
        # The step is in the seed: a training that goes on begins the stream anew, and does not repeat its first picks.
        return buffered_batches(reads, batch_size, collectives, buffer, derive_seed(seed, "stream", step))

    return SyntheticImages(n, batches)


def collect(rows: Rows) -> LabelledImages:
    """All rows, ordered by their keys: blocks may come in any order."""
    blocks = list(rows.iter_batches(batch_size=None, batch_format="numpy"))
    images, labels, keys = (
        np.concatenate([block[column] for block in blocks]) for column in ("image", "label", "key")
    )
    order = np.argsort(keys)
    return LabelledImages(torch.from_numpy(images[order]), torch.from_numpy(labels[order]))


def _reads(rows: Rows, size: int, per_epoch: int, n_classes: int) -> Iterator[LabelledImages]:
    """This worker's split, epoch after epoch, `size` images at a time, `per_epoch` times.

    A split of another length ends the training of all: workers that come to the end of an epoch at different steps
    would wait for each other.
    """
    if per_epoch == 0:
        raise ValueError(f"the synthetic images of a worker do not fill one batch of {size}. Use fewer workers.")
    while True:
        count = 0  # where the split has not one whole batch, the loop below sets none
        for count, batch in enumerate(rows.iter_batches(batch_size=size, batch_format="numpy", drop_last=True), 1):
            if count > per_epoch:
                break
            # The whole set's labels were checked before where they are cheap to read; of WebDatasets they are not.
            check_range(batch["label"], n_classes)
            # Copied: what Ray hands out is read-only.
            yield LabelledImages(torch.tensor(batch["image"]), torch.tensor(batch["label"]))
        if count != per_epoch:
            raise ValueError(
                f"the dataset does not hold as many images as its marker says: a worker should read {size} images "
                f"{per_epoch} times in an epoch, and found {'more' if count > per_epoch else count}. {REMEDY}"
            )
