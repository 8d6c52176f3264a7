"""Accuracy equals what plain open_clip code counts."""

from __future__ import annotations

import open_clip
import pytest
import torch

from datadream.classify import evaluate
from datadream.classify.evaluate import PhotoBatches, count_correct, summarise
from datadream.classify.loop import autocast_of
from datadream.data.datasets import open_source
from datadream.models.clip import load_clip

FP32 = autocast_of("fp32", torch.device("cpu"))


@pytest.fixture
def clip(clip_id):
    return load_clip(clip_id, None, "cpu")


def plain_counts(clip_id, few_shot, photo_folder) -> list[list[int]]:
    model, _, preprocess = open_clip.create_model_and_transforms(clip_id)
    model.eval()
    source, counts = open_source(str(photo_folder)), [[0, 0, 0], [0, 0, 0]]
    with torch.no_grad():
        text = model.encode_text(open_clip.get_tokenizer(clip_id)(list(few_shot.prompts)), normalize=True)
        for photo in few_shot.test:
            image = model.encode_image(preprocess(source.read(photo.key))[None], normalize=True)
            counts[0][photo.label] += int((image @ text.T).argmax() == photo.label)
            counts[1][photo.label] += 1
    return counts


@pytest.mark.parametrize("batch", [7, 256])
def test_counts_equal_a_plain_open_clip_loop(clip, clip_id, few_shot, photo_folder, monkeypatch, batch):
    monkeypatch.setattr(evaluate, "EVAL_BATCH", batch)
    photos = PhotoBatches(open_source(str(photo_folder)), few_shot.test, clip)
    counts = count_correct(clip, clip.tokenizer(list(few_shot.prompts)), photos, FP32)
    assert counts.tolist() == plain_counts(clip_id, few_shot, photo_folder)


def test_counts_of_ranks_add_up(clip, few_shot, photo_folder):
    tokens, source = clip.tokenizer(list(few_shot.prompts)), open_source(str(photo_folder))
    whole, first, second = (
        count_correct(clip, tokens, PhotoBatches(source, photos, clip), FP32)
        for photos in (few_shot.test, few_shot.test[::2], few_shot.test[1::2])
    )
    assert torch.equal(whole, first + second)


@pytest.mark.parametrize("keep_bytes", [0, 2**20])
def test_photos_can_be_read_again(clip, few_shot, photo_folder, keep_bytes):
    photos = PhotoBatches(open_source(str(photo_folder)), few_shot.val, clip, keep_bytes)
    first, again = (torch.cat([images for images, _ in photos]) for _ in range(2))
    assert torch.equal(first, again)
    assert len(first) == len(photos) == 18


def test_summary_is_in_percent():
    accuracy = summarise(torch.tensor([[3, 0, 0], [4, 1, 0]]), ["cat", "dog", "owl"])
    assert (accuracy.top1, accuracy.n) == (60.0, 5)
    assert accuracy.per_class_json() == [
        {"name": "cat", "top1": 75.0, "n": 4},
        {"name": "dog", "top1": 0.0, "n": 1},
        {"name": "owl", "top1": None, "n": 0},
    ]


def test_without_photos_there_is_no_accuracy(clip, few_shot, photo_folder):
    photos = PhotoBatches(open_source(str(photo_folder)), (), clip)
    counts = count_correct(clip, clip.tokenizer(list(few_shot.prompts)), photos, FP32)
    assert summarise(counts, few_shot.class_names).top1 is None
