"""The training loop: it learns, keeps its best reading, and goes on from a checkpoint as if nothing had happened."""

from __future__ import annotations

import pytest
import torch

from datadream.classify.loop import Checkpoints, Reading, mean_curve, train
from datadream.models.clip.trainable import trainable_parameters, trainable_state
from tests.classify.toy import augment_of, mild, part, training_of, with_lora


@pytest.fixture
def clip(clip_id):
    return with_lora(clip_id)


def fit(clip, settings, parts, augment, evaluate=lambda: None, **more):
    training = training_of(clip, settings, parts, augment)
    return train(training, settings.steps, settings.eval_every, evaluate=evaluate, **more)


def test_it_learns_colours(clip, shots, settings):
    trained = fit(clip, settings, [part(shots)], mild(clip))
    assert [reading.step for reading in trained.curve] == [10, 20, 30]
    assert trained.curve[-1].loss < 0.1 < trained.curve[0].loss


def test_the_best_reading_is_kept_and_of_equals_the_later(clip, shots, settings):
    heard = iter([50.0, 80.0, 80.0, 20.0])
    states = []

    def evaluate() -> float:
        states.append(trainable_state(clip.model))
        return next(heard)

    schedule = settings.model_copy(update={"steps": 7, "eval_every": 2})
    trained = fit(clip, schedule, [part(shots)], augment_of(clip), evaluate)
    assert [reading.step for reading in trained.curve] == [2, 4, 6, 7]
    assert (trained.step, trained.val_top1) == (6, 80.0)
    assert all(torch.equal(tensor, states[2][name]) for name, tensor in trained.state.items())


def test_without_validation_photos_the_last_weights_are_kept(clip, shots, settings):
    trained = fit(clip, settings, [part(shots)], mild(clip))
    assert (trained.step, trained.val_top1) == (30, None)
    assert all(torch.equal(tensor, trained.state[name]) for name, tensor in trainable_state(clip.model).items())


def test_a_loss_that_is_no_number_stops_the_training(clip, shots, settings):
    with torch.no_grad():
        trainable_parameters(clip.model)[0].fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss became nan.*Lower classify.learning_rate"):
        fit(clip, settings, [part(shots)], mild(clip))


def test_bf16_learns_too(clip, shots, settings):
    trained = fit(clip, settings.model_copy(update={"precision": "bf16"}), [part(shots)], mild(clip))
    assert trained.curve[-1].loss < 0.2
    assert {tensor.dtype for tensor in trained.state.values()} == {torch.float32}


def test_every_step_is_reported(clip, shots, settings):
    heard = []
    schedule = settings.model_copy(update={"steps": 5, "eval_every": 2})
    hear = lambda step, reading: heard.append((step, reading is not None))  # noqa: E731
    fit(clip, schedule, [part(shots)], augment_of(clip), report=hear)
    assert heard == [(1, False), (2, True), (3, False), (4, True), (5, True)]


@pytest.mark.parametrize("checkpoint", [0, 1, 2, 4, 5, 6])
def test_an_interrupted_training_ends_as_if_it_was_not(clip_id, shots, settings, checkpoint):
    """Checkpoints of steps 2, 4, ..., 14: before and after a reading, after the best one, and at the end."""
    knobs = settings.model_copy(update={"steps": 14, "eval_every": 5, "mixup": 1.0, "mix_probability": 0.5})
    accuracies = [50.0, 60.0, 40.0]
    saved: list[bytes] = []

    def run(read, heard):
        clip, accuracy = with_lora(clip_id), iter(heard)
        parts = [part(shots, 6, 0.8, seed=1), part(shots, 4, 0.2, seed=2)]
        checkpoints = Checkpoints(read, saved.append, every=2)
        return fit(clip, knobs, parts, augment_of(clip), lambda: next(accuracy), checkpoints=checkpoints)

    whole = run(lambda: None, accuracies)
    step = 2 * (checkpoint + 1)
    resumed = run(lambda: saved[checkpoint], accuracies[step // 5 if step < 14 else 3 :])
    assert resumed.starts == (0, step)
    assert (resumed.step, resumed.val_top1) == (whole.step, whole.val_top1) == (10, 60.0)
    assert all(torch.equal(tensor, resumed.state[name]) for name, tensor in whole.state.items())
    assert [reading.loss for reading in resumed.curve] == [reading.loss for reading in whole.curve]


def test_a_mean_curve_is_taken_step_by_step():
    curves = [(Reading(5, 1.0, 50.0), Reading(10, 0.5, 70.0)), (Reading(5, 2.0, 60.0), Reading(10, 1.5, 90.0))]
    assert mean_curve(curves) == (Reading(5, 1.5, 55.0), Reading(10, 1.0, 80.0))
