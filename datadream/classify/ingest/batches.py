"""Training images as uint8 pixels: endless seeded batches of them, from memory or from a stream.

Every rank draws the same global batches from memory and takes its share, so what is learnt does not depend on how many
ranks there are. A stream is for sets that do not fit: each rank shuffles its own split of it through a buffer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datadream.data.datasets import Photo, PhotoSource
from datadream.data.decode import square, whole
from datadream.runtime.collectives import Collectives
from datadream.runtime.device import upload
from datadream.runtime.failures import retried

DECODE_THREADS = 4
"""Pillow decodes and resizes outside of Python's lock; more threads than this only take memory."""

PINNED_BYTES = 2**28
"""The most that is copied to a GPU from pinned memory: a batch of 1,024 squares of 224 pixels has 154 MB."""
PHOTO_BYTES = 2**31
"""Of the shots that a worker keeps: 3,500 squares of 448 pixels, or 14,000 of 224."""


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images uint8 [n, 3, size, size] and labels int64 [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> LabelledImages:
        there = upload(rows, self.labels.device) if isinstance(rows, Tensor) else rows
        return LabelledImages(self.images[there], self.labels[there])

    def to(self, device: torch.device) -> LabelledImages:
        # PyTorch keeps the pinned copy that `upload` makes for the next one of its size: of a pool that is 2 GiB.
        move = upload if self.images.nbytes <= PINNED_BYTES else Tensor.to
        return LabelledImages(move(self.images, device), upload(self.labels, device))


@dataclass(frozen=True, slots=True)
class LabelledPhotos:
    """Whole photos uint8 [3, height, width], each of its own size, and labels int64 [n]."""

    images: tuple[Tensor, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> LabelledPhotos:
        return LabelledPhotos(
            tuple(self.images[row] for row in rows.tolist()), self.labels[upload(rows, self.labels.device)]
        )

    def to(self, device: torch.device) -> LabelledPhotos:
        return LabelledPhotos(tuple(upload(image, device) for image in self.images), upload(self.labels, device))


Labelled = LabelledImages | LabelledPhotos


@dataclass(frozen=True, slots=True)
class SyntheticImages:
    """The synthetic training images: how many there are, and this rank's share of seeded endless batches of them."""

    n: int
    batches: Callable[[int, int, int], Iterator[Labelled]]
    """(batch size over all ranks, seed, step) -> batches from that step on."""


def read_photo(source: PhotoSource, photo: Photo) -> Image.Image:
    """A photo, read again while only passing faults break it: its storage may be throttled."""
    return retried(partial(source.read, photo.key), f"reading photo {photo.key!r}")


def read_photos(source: PhotoSource, photos: Sequence[Photo], size: int) -> LabelledImages:
    """Decode photos into memory, as middle squares of `size` pixels a side."""
    with ThreadPoolExecutor(DECODE_THREADS) as threads:
        squares = list(threads.map(lambda photo: square(read_photo(source, photo), size), photos))
    return LabelledImages(torch.from_numpy(np.stack(squares)), torch.tensor([photo.label for photo in photos]))


def read_whole_photos(source: PhotoSource, photos: Sequence[Photo], size: int) -> LabelledPhotos:
    """Decode photos into memory for crops of `size` pixels a side.

    With a short side of up to twice that, so that a crop of a quarter of a photo is still sharp, but of less where
    all photos would take more than PHOTO_BYTES; never of less than `size`.
    """
    # As if all were squares: others take up to a half more.
    most = max(size, min(2 * size, math.isqrt(PHOTO_BYTES // (3 * len(photos)))))
    with ThreadPoolExecutor(DECODE_THREADS) as threads:
        pixels = list(threads.map(lambda photo: whole(read_photo(source, photo), size, most), photos))
    return LabelledPhotos(tuple(map(torch.from_numpy, pixels)), torch.tensor([photo.label for photo in photos]))


def shuffled_batches(
    pool: Labelled, batch_size: int, collectives: Collectives, seed: int, start: int = 0
) -> Iterator[Labelled]:
    """Our share of endless batches of `batch_size` images over all ranks; each epoch has every image once.

    From batch `start` on they are those of an undisturbed run; of what came before only the epochs' orders are made.
    """
    # On the CPU, whatever the pool's device: CUDA's generator gives other permutations for the same seed.
    rng = torch.Generator().manual_seed(seed)
    epochs, place = divmod(start * batch_size, len(pool))
    for _ in range(epochs):
        torch.randperm(len(pool), generator=rng)
    rows = torch.randperm(len(pool), generator=rng)[place:]
    while True:
        # Batches run across the ends of epochs, several where the pool is smaller than a batch: few shots mostly are.
        while len(rows) < batch_size:
            rows = torch.cat([rows, torch.randperm(len(pool), generator=rng)])
        batch, rows = rows[:batch_size], rows[batch_size:]
        yield pool[batch[collectives.share(batch_size)]]


def rows_per_read(batch_size: int, collectives: Collectives) -> int:
    """Images that every rank takes from its stream for a step.

    The same on all ranks, even where shares differ by one: all must come to the end of an epoch at the same step, or
    the one that waits for the next epoch and the one that waits for gradients wait for each other.
    """
    return -(-batch_size // collectives.count)


def buffered_batches(
    reads: Iterable[LabelledImages], batch_size: int, collectives: Collectives, buffer: int, seed: int
) -> Iterator[LabelledImages]:
    """Our share of batches from a stream of reads of `rows_per_read` images, shuffled through `buffer` images.

    A batch is taken from random places of the buffer, and the next read takes its place.
    """
    share = collectives.share(batch_size)
    size = share.stop - share.start
    rng = torch.Generator().manual_seed(seed)
    reads = iter(reads)
    n_reads = max(1, buffer // rows_per_read(batch_size, collectives))
    first = [read for _, read in zip(range(n_reads), reads, strict=False)]
    pool = LabelledImages(torch.cat([read.images for read in first]), torch.cat([read.labels for read in first]))
    for read in reads:
        # A read has rows_per_read images on all ranks, and our share may be one fewer: the last is dropped.
        places = torch.randperm(len(pool), generator=rng)[: len(read)]
        yield pool[places[:size]]  # a copy, so that the buffer may change under it
        pool.images[places], pool.labels[places] = read.images, read.labels
