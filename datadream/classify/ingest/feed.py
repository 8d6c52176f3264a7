"""The synthetic images of a job on their way to the workers that train on them.

A set that fits is decoded once and every worker keeps all of it. A larger one streams: every worker reads its own
split. A training that was interrupted begins a new epoch of its stream, its shards in another order and shuffled anew,
for to find its place it would have to decode all that it had seen. So what it learns is not the same to the bit: some
images are seen once more and others once less.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from ray.data import DataIterator

from datadream.classify.ingest.batches import (
    LabelledImages,
    SyntheticImages,
    buffered_batches,
    rows_per_read,
    shuffled_batches,
)
from datadream.classify.ingest.reader import REMEDY, Published, check_labels, check_range, open_published
from datadream.classify.job import ClassifierJob
from datadream.runtime.collectives import Ranks
from datadream.seeds import derive_seed

MEMORY_LIMIT = 2 * 2**30
"""Bytes of decoded synthetic images that a worker keeps in memory; a larger set streams."""
SHUFFLE_BYTES = 2**29
"""Bytes of the buffer through which a stream is shuffled."""


def published_images(job: ClassifierJob) -> Published | None:
    """The synthetic images of a job, if a setting that is missing needs any."""
    if not job.needs_synthetic:
        return None
    from datadream.models.clip.load import input_size

    size = input_size(job.config.classify.model)
    order = derive_seed(job.config.seed, "classifier", "shards", *job.checkpoints)
    return open_published(job.images, size, order, job.config.generate.images_per_class)


def shuffle_buffer(published: Published, n_readers: int) -> int:
    """Images of a reader's shuffle buffer, at most the reader's split; 0 when the set fits in memory."""
    if published.n_bytes <= MEMORY_LIMIT:
        return 0
    return max(1, min(SHUFFLE_BYTES // (3 * published.size**2), published.n // n_readers))


def synthetic_images(
    job: ClassifierJob, shard: DataIterator | None, n: int, buffer: int, device: torch.device, ranks: Ranks
) -> SyntheticImages | None:
    """The `n` synthetic images of a job as this worker draws them: kept in memory, or streamed through a buffer of
    `buffer` images where that is not 0. None without images."""
    if shard is None:
        return None
    class_names = job.few_shot.class_names
    if buffer:

        def batches(batch_size: int, seed: int, step: int) -> Iterator[LabelledImages]:
            rows = rows_per_read(batch_size, ranks)
            reads = _reads(shard, rows, n // ranks.count // rows, len(class_names))
            return buffered_batches(reads, batch_size, ranks, buffer, derive_seed(seed, "stream", step))

    else:
        pool = _collect(shard)
        if len(pool) != n:
            raise ValueError(f"the dataset holds {len(pool)} images, its marker says {n}. {REMEDY}")
        check_labels(pool.labels.numpy(), class_names)
        pool = pool.to(device)

        def batches(batch_size: int, seed: int, step: int) -> Iterator[LabelledImages]:
            return shuffled_batches(pool, batch_size, ranks, seed, step)

    return SyntheticImages(n, batches)


def _collect(shard: DataIterator) -> LabelledImages:
    """All rows, ordered by their keys: blocks may come in any order."""
    blocks = list(shard.iter_batches(batch_size=None, batch_format="numpy"))
    images, labels, keys = (
        np.concatenate([block[column] for block in blocks]) for column in ("image", "label", "key")
    )
    order = np.argsort(keys)
    return LabelledImages(torch.from_numpy(images[order]), torch.from_numpy(labels[order]))


def _reads(shard: DataIterator, rows: int, per_epoch: int, n_classes: int) -> Iterator[LabelledImages]:
    """This worker's split, epoch after epoch, `rows` images at a time, `per_epoch` times.

    A split of another length ends the training of all: workers that come to the end of an epoch at different steps
    would wait for each other.
    """
    if per_epoch == 0:
        raise ValueError(f"the synthetic images of a worker do not fill one batch of {rows}. Use fewer workers.")
    while True:
        count = 0
        for count, batch in enumerate(shard.iter_batches(batch_size=rows, batch_format="numpy", drop_last=True), 1):
            if count > per_epoch:
                break
            check_range(batch["label"], n_classes)
            # Copied: what Ray hands out is read-only.
            yield LabelledImages(torch.tensor(batch["image"]), torch.tensor(batch["label"]))
        if count != per_epoch:
            raise ValueError(
                f"the dataset does not hold as many images as its marker says: a worker should read {rows} images "
                f"{per_epoch} times in an epoch, and found {'more' if count > per_epoch else count}. {REMEDY}"
            )
