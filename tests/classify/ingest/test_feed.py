"""What a worker reads of a stream, and that a start in mid-training reads nothing of what was passed."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from datadream.classify.ingest.batches import SyntheticImages
from datadream.classify.ingest.feed import synthetic_images
from datadream.classify.loop import Checkpoints, train
from datadream.classify.train_state import Part
from datadream.runtime.collectives import ALONE, Collectives
from tests.classify.colors import COLORS
from tests.classify.toy import mild, training_of, with_lora

BUFFER = 12


@dataclass
class Stream:
    """Numbered images as one of Ray Data's iterators hands them out, counted."""

    n: int
    decoded: list[int] = field(default_factory=list)

    def iter_batches(self, batch_size: int, **_: Any):
        for start in range(0, self.n - batch_size + 1, batch_size):
            numbers = np.arange(start, start + batch_size)
            self.decoded.extend(numbers)
            images = np.broadcast_to(numbers[:, None, None, None].astype(np.uint8), (batch_size, 3, 16, 16))
            yield {"image": images, "label": numbers % 3}


def streamed(stream: Stream, n: int, collectives: Collectives = ALONE) -> SyntheticImages:
    return synthetic_images(stream, n, BUFFER, tuple(COLORS), torch.device("cpu"), collectives)


def numbers(batches, count: int) -> list[list[int]]:
    return [batch.images[:, 0, 0, 0].tolist() for batch in islice(batches, count)]


def test_a_start_in_mid_training_decodes_nothing_that_was_passed():
    stream = Stream(60)
    synthetic = streamed(stream, 60)
    first, again, later = (numbers(synthetic.batches(4, 7, step), 5) for step in (0, 0, 1000))
    assert first == again != later
    assert stream.decoded == list(range(BUFFER + 5 * 4)) * 3, "the buffer, and a read for each batch"


def test_a_training_that_goes_on_reads_what_its_steps_need(clip_id, settings):
    stream, saved = Stream(60), []
    synthetic = streamed(stream, 60)

    def run(read, steps: int):
        clip = with_lora(clip_id)
        part = Part(lambda step: synthetic.batches(4, 0, step), 4, 1.0)
        checkpoints = Checkpoints(read, saved.append, every=8)
        return train(
            training_of(clip, settings, [part], mild(clip)), steps, 8, evaluate=lambda: None, checkpoints=checkpoints
        )

    run(lambda: None, 8)
    stream.decoded.clear()
    assert run(lambda: saved[0], 10).starts == (0, 8)
    assert len(stream.decoded) == BUFFER + 2 * 4


@pytest.mark.parametrize(("said", "found"), [(68, "15"), (56, "more")])
def test_a_worker_whose_epoch_has_another_length_stops_all(said, found):
    """Of 60 images: it would wait for the others at the epoch's end, and they for its gradients."""
    batches = streamed(Stream(60), said).batches(4, 0, 0)
    with pytest.raises(
        ValueError, match=f"a worker should read 4 images {said // 4} times in an epoch, and found {found}"
    ):
        list(islice(batches, 30))


def test_a_split_without_a_whole_batch_is_refused():
    batches = streamed(Stream(3), 6, Collectives(0, 2)).batches(8, 0, 0)
    with pytest.raises(ValueError, match=r"do not fill one batch of 4. Use fewer workers"):
        next(batches)
