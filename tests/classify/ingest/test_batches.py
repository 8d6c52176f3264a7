"""Photos whole and as squares, and seeded batches from memory and from a stream."""

from __future__ import annotations

import io
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from datadream.classify.ingest import batches
from datadream.classify.ingest.batches import (
    LabelledImages,
    buffered_batches,
    read_photos,
    read_whole_photos,
    rows_per_read,
    shuffled_batches,
)
from datadream.data.datasets import open_source
from datadream.data.decode import decode_squares, square
from datadream.runtime.collectives import ALONE, Collectives


def numbered(n: int) -> LabelledImages:
    """Images that show their own label."""
    labels = torch.arange(n)
    return LabelledImages(labels.to(torch.uint8).view(n, 1, 1, 1).expand(n, 3, 2, 2).clone(), labels)


def test_a_square_is_the_middle_of_the_photo():
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 200
    assert (square(Image.fromarray(pixels), 8) == 200).all()
    assert square(Image.fromarray(pixels), 8).shape == (3, 8, 8)


def test_a_square_of_the_right_size_keeps_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert (decode_squares([buffer.getvalue()], ["0"], 8)[0] == pixels.transpose(2, 0, 1)).all()


def test_a_broken_image_is_named():
    with pytest.raises(ValueError, match=r"image '3.png' of the dataset cannot be decoded"):
        decode_squares([b"no image"], ["3.png"], 8)


def test_a_photo_whose_storage_is_throttled_once_is_read(few_shot, photo_folder):
    source, throttled = open_source(str(photo_folder)), []

    class Throttled:
        def read(self, key: str) -> Image.Image:
            if not throttled:
                throttled.append(key)
                raise TimeoutError("slow down")
            return source.read(key)

    plain, again = (read_photos(each, few_shot.photos, 16) for each in (source, Throttled()))
    assert throttled
    assert torch.equal(plain.images, again.images)


def test_photos_keep_their_labels(few_shot, photo_folder):
    shots = read_photos(open_source(str(photo_folder)), few_shot.photos, 16)
    assert shots.images.shape == (6, 3, 16, 16)
    assert shots.images.dtype == torch.uint8
    assert shots.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert shots.images.float().mean((2, 3)).argmax(1).tolist() == [2, 2, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("photo", "size", "kept"),
    [((20, 24), 8, (16, 19)), ((24, 20), 8, (19, 16)), ((20, 24), 16, (20, 24)), ((20, 24), 40, (40, 48))],
)
def test_whole_photos_are_kept_at_one_to_twice_the_size(tmp_path, photo, size, kept):
    source = folder_of(tmp_path, photo)
    found = read_whole_photos(source, source.dataset().pool, size)
    assert [tuple(image.shape) for image in found.images] == [(3, *kept)] * 2
    assert found.labels.tolist() == [0, 1]


def test_many_whole_photos_are_kept_smaller_but_not_below_the_size(tmp_path, monkeypatch):
    source = folder_of(tmp_path, (40, 60))
    for budget, short in ((2 * 3 * 12**2, 12), (2 * 3 * 4**2, 8)):
        monkeypatch.setattr(batches, "PHOTO_BYTES", budget)
        found = read_whole_photos(source, source.dataset().pool, 8)
        assert {min(image.shape[1:]) for image in found.images} == {short}


def test_photos_at_the_size_are_the_squares_of_them(tmp_path):
    source = folder_of(tmp_path, (16, 16))
    squares, photos = (read(source, source.dataset().pool, 16) for read in (read_photos, read_whole_photos))
    assert torch.equal(torch.stack(photos.images), squares.images)
    for ours, theirs in zip(
        islice(shuffled_batches(photos, 3, ALONE, seed=0), 4),
        islice(shuffled_batches(squares, 3, ALONE, seed=0), 4),
        strict=True,
    ):
        assert torch.equal(torch.stack(ours.images), theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


def folder_of(root, shape: tuple[int, int]):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(root / name / "0.png")
    return open_source(str(root))


def test_every_image_is_drawn_once_in_each_epoch():
    batches = list(islice(shuffled_batches(numbered(10), 4, ALONE, seed=0), 10))
    drawn = torch.cat([batch.labels for batch in batches])
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in drawn.split(10))
    assert len({tuple(epoch.tolist()) for epoch in drawn.split(10)}) == 4
    assert all(torch.equal(batch.images[:, 0, 0, 0].long(), batch.labels) for batch in batches)


def test_ranks_share_the_batches_that_one_would_draw():
    pool = numbered(10)
    alone = list(islice(shuffled_batches(pool, 7, ALONE, seed=3), 5))
    shared = [list(islice(shuffled_batches(pool, 7, Collectives(rank, 3), seed=3), 5)) for rank in range(3)]
    for step, batch in enumerate(alone):
        assert torch.equal(torch.cat([batches[step].labels for batches in shared]), batch.labels)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (10, 5), (3, 8)])
def test_batches_from_a_step_on_are_those_of_an_undisturbed_run(n, batch_size):
    pool = numbered(n)
    whole = list(islice(shuffled_batches(pool, batch_size, ALONE, seed=0), 12))
    for start in range(12):
        rest = islice(shuffled_batches(pool, batch_size, ALONE, seed=0, start=start), 12 - start)
        assert all(torch.equal(batch.labels, own.labels) for batch, own in zip(rest, whole[start:], strict=True))


def test_a_small_set_fills_a_large_batch():
    batch = next(shuffled_batches(numbered(3), 8, ALONE, seed=0))
    assert sorted(batch.labels.bincount().tolist()) == [2, 3, 3]


def reads(pool: LabelledImages, rows: int, epochs: int):
    for _ in range(epochs):
        for start in range(0, len(pool) - rows + 1, rows):
            yield pool[slice(start, start + rows)]


def test_a_stream_is_shuffled_through_its_buffer():
    pool = numbered(40)
    drawn = [batch.labels for batch in buffered_batches(reads(pool, 4, 5), 4, ALONE, buffer=12, seed=0)]
    again = [batch.labels for batch in buffered_batches(reads(pool, 4, 5), 4, ALONE, buffer=12, seed=0)]
    assert all(torch.equal(*pair) for pair in zip(drawn, again, strict=True))
    flat = torch.cat(drawn)
    assert len(flat) == 5 * 40 - 12
    assert flat.bincount(minlength=40).min() >= 3
    assert not torch.equal(flat[:40], torch.arange(40))
    assert (flat[:8] < 20).all(), "the first images come from the buffer"


@pytest.mark.parametrize("rank", [0, 1])
def test_unequal_shares_read_their_streams_at_the_same_pace(rank):
    collectives = Collectives(rank, 2)
    rows = rows_per_read(5, collectives)
    batches = list(buffered_batches(reads(numbered(30), rows, 1), 5, collectives, buffer=6, seed=0))
    assert rows == 3
    assert [len(batch) for batch in batches] == [2 + rank] * 8
