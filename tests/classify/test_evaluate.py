"""Logits equal plain open_clip's."""

from __future__ import annotations

import open_clip
import pytest
import torch

from datadream.classify import evaluate
from datadream.classify.evaluate import PhotoBatches, count_correct, score
from datadream.classify.train_state import autocast_of
from datadream.data.datasets import open_source
from datadream.models.clip.load import load_clip

FP32 = autocast_of("fp32", torch.device("cpu"))


@pytest.fixture
def clip(clip_id):
    return load_clip(clip_id, None, "cpu")


def plain_logits(clip_id, few_shot, photo_folder) -> torch.Tensor:
    model, _, preprocess = open_clip.create_model_and_transforms(clip_id)
    model.eval()
    source = open_source(str(photo_folder))
    with torch.no_grad():
        images = torch.stack([preprocess(source.read(photo.key)) for photo in few_shot.test])
        return model.get_logits(images, open_clip.get_tokenizer(clip_id)(list(few_shot.prompts)))[0]


@pytest.mark.parametrize("batch", [7, 256])
def test_logits_equal_plain_open_clips(clip, clip_id, few_shot, photo_folder, monkeypatch, batch):
    monkeypatch.setattr(evaluate, "EVAL_BATCH", batch)
    photos = PhotoBatches(open_source(str(photo_folder)), few_shot.test, clip)
    tokens, plain = clip.tokenizer(list(few_shot.prompts)), plain_logits(clip_id, few_shot, photo_folder)
    scores = score(clip, tokens, photos, FP32)
    torch.testing.assert_close(scores.logits, plain, atol=1e-5, rtol=0)
    assert scores.labels.tolist() == [photo.label for photo in few_shot.test]
    correct = sum(row.argmax() == photo.label for row, photo in zip(plain, few_shot.test, strict=True))
    assert count_correct(clip, tokens, photos, FP32).tolist() == [correct, 30]


def test_logits_are_fp32_whatever_the_towers_compute_in(clip, few_shot, photo_folder):
    """Among a thousand classes, logits of 20 that are rounded to bf16's steps of an eighth would tie."""
    photos = PhotoBatches(open_source(str(photo_folder)), few_shot.test, clip)
    logits = score(
        clip, clip.tokenizer(list(few_shot.prompts)), photos, autocast_of("bf16", torch.device("cpu"))
    ).logits
    assert (logits != logits.bfloat16().float()).float().mean() > 0.9


@pytest.mark.parametrize("keep_bytes", [0, 2**20])
def test_photos_can_be_read_again(clip, few_shot, photo_folder, keep_bytes):
    photos = PhotoBatches(open_source(str(photo_folder)), few_shot.val, clip, keep_bytes)
    first, again = (torch.cat([images for images, _ in photos]) for _ in range(2))
    assert torch.equal(first, again)
    assert len(first) == len(photos) == 18


def test_without_photos_there_are_no_logits(clip, few_shot, photo_folder):
    photos = PhotoBatches(open_source(str(photo_folder)), (), clip)
    scores = score(clip, clip.tokenizer(list(few_shot.prompts)), photos, FP32)
    assert (scores.logits.shape, scores.labels.shape) == ((0, 3), (0,))
