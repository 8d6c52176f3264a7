"""The training loop: it learns, keeps its best reading, and does not care how many ranks share a batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from datadream.classify.images import read_photos, shuffled_batches
from datadream.classify.loop import Part, autocast_of, train
from datadream.classify.loop import _loss as batch_loss
from datadream.config import AugmentConfig, ClassifyConfig
from datadream.data.augment import Augment
from datadream.data.datasets import open_source
from datadream.models.clip import load_clip
from datadream.models.clip_training import make_trainable, trainable_parameters, trainable_state
from datadream.ranks import ALONE, Ranks

CPU = torch.device("cpu")


@pytest.fixture
def clip(clip_id):
    clip = load_clip(clip_id, None, "cpu")
    make_trainable(clip.model, rank=4, alpha=8, projections=("q", "k", "v", "out"), seed=0)
    return clip


@pytest.fixture
def tokens(clip, few_shot):
    return clip.tokenizer(list(few_shot.prompts))


@pytest.fixture
def shots(few_shot, photo_folder):
    return read_photos(open_source(str(photo_folder)), few_shot.photos, 16)


@pytest.fixture
def settings(config) -> ClassifyConfig:
    return config.classify


def augment_of(clip, **changes) -> Augment:
    return Augment(AugmentConfig(**changes), False, clip.size, clip.mean, clip.std)


def mild(clip) -> Augment:
    """Leaves the colours as they are: they are the classes."""
    return augment_of(clip, color_jitter=0.1, grayscale=0)


def part(pool, batch_size=12, weight=1.0, ranks=ALONE, seed=0) -> Part:
    return Part(shuffled_batches(pool, batch_size, ranks, seed), batch_size, weight)


def test_it_learns_colours(clip, tokens, shots, settings):
    trained = train(clip, tokens, [part(shots)], mild(clip), settings, seed=0, evaluate=lambda: None)
    assert [reading.step for reading in trained.curve] == [10, 20, 30]
    assert trained.curve[-1].loss < 0.1 < trained.curve[0].loss


def test_the_best_reading_is_kept_and_of_equals_the_later(clip, tokens, shots, settings):
    heard = iter([50.0, 80.0, 80.0, 20.0])
    states = []

    def evaluate() -> float:
        states.append(trainable_state(clip.model))
        return next(heard)

    schedule = settings.model_copy(update={"steps": 7, "eval_every": 2})
    trained = train(clip, tokens, [part(shots)], augment_of(clip), schedule, seed=0, evaluate=evaluate)
    assert [reading.step for reading in trained.curve] == [2, 4, 6, 7]
    assert (trained.step, trained.val_top1) == (6, 80.0)
    assert all(torch.equal(tensor, states[2][name]) for name, tensor in trained.state.items())


def test_without_validation_photos_the_last_weights_are_kept(clip, tokens, shots, settings):
    trained = train(clip, tokens, [part(shots)], mild(clip), settings, seed=0, evaluate=lambda: None)
    assert (trained.step, trained.val_top1) == (30, None)
    assert all(torch.equal(tensor, trained.state[name]) for name, tensor in trainable_state(clip.model).items())


def test_a_loss_that_is_no_number_stops_the_training(clip, tokens, shots, settings):
    with torch.no_grad():
        trainable_parameters(clip.model)[0].fill_(float("nan"))
    with pytest.raises(ValueError, match=r"loss became nan.*Lower classify.learning_rate"):
        train(clip, tokens, [part(shots)], mild(clip), settings, seed=0, evaluate=lambda: None)


def test_the_loss_is_the_weighted_sum_of_both_origins(clip, tokens, shots):
    off = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "color_jitter": 0, "grayscale": 0}
    parts = [part(shots, 6, 0.8, seed=1), part(shots, 4, 0.2, seed=2)]
    rng = torch.Generator().manual_seed(0)
    loss = batch_loss(clip, tokens, parts, augment_of(clip, **off), autocast_of("fp32", CPU), ALONE, rng)
    expected = 0.0
    for origin in (part(shots, 6, 0.8, seed=1), part(shots, 4, 0.2, seed=2)):
        batch = next(origin.batches)
        pixels = (batch.images.float() / 255 - 0.5) / 0.25
        image = clip.model.encode_image(pixels, normalize=True)
        logits = clip.model.logit_scale.exp() * image @ clip.model.encode_text(tokens, normalize=True).T
        expected += origin.weight * F.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_gradients_of_all_ranks_add_up_to_those_of_one(clip, tokens, shots, count):
    def gradients(ranks: Ranks) -> torch.Tensor:
        parts = [part(shots, 7, 0.8, ranks, seed=1), part(shots, 5, 0.2, ranks, seed=2)]
        rng = torch.Generator().manual_seed(0)
        loss = batch_loss(clip, tokens, parts, augment_of(clip), autocast_of("fp32", CPU), ranks, rng)
        return torch.cat(
            [gradient.flatten() for gradient in torch.autograd.grad(loss, trainable_parameters(clip.model))]
        )

    summed = sum(gradients(Ranks(rank, count)) for rank in range(count))
    torch.testing.assert_close(summed, gradients(ALONE), atol=1e-5, rtol=1e-4)


def test_bf16_learns_too(clip, tokens, shots, settings):
    half = settings.model_copy(update={"precision": "bf16"})
    trained = train(clip, tokens, [part(shots)], mild(clip), half, seed=0, evaluate=lambda: None)
    assert trained.curve[-1].loss < 0.2
    assert {tensor.dtype for tensor in trained.state.values()} == {torch.float32}


def test_every_step_is_reported(clip, tokens, shots, settings):
    heard = []
    schedule = settings.model_copy(update={"steps": 5, "eval_every": 2})
    hear = lambda step, reading: heard.append((step, reading is not None))  # noqa: E731
    train(clip, tokens, [part(shots)], augment_of(clip), schedule, seed=0, evaluate=lambda: None, report=hear)
    assert heard == [(1, False), (2, True), (3, False), (4, True), (5, True)]
