"""One optimiser step: a plain loop's, whatever the number of ranks and of micro-batches."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import open_clip
import pytest
import torch
import torch.distributed
import torch.multiprocessing
import torch.nn.functional as F

from datadream.classify.images import LabelledImages
from datadream.classify.training import Part
from datadream.config import ClassifyConfig
from datadream.models.clip_training import trainable_parameters, trainable_state
from datadream.ranks import ALONE, Ranks
from tests.classify.toy import OFF, PROMPTS, augment_of, mild, part, training_of, with_lora

EVERYTHING = {"mixup": 1.0, "cutmix": 1.0, "mix_probability": 0.7, "label_smoothing": 0.1}


@pytest.fixture
def clip(clip_id):
    return with_lora(clip_id)


def both_parts(shots, ranks=ALONE) -> list[Part]:
    return [part(shots, 7, 0.8, ranks, seed=1), part(shots, 5, 0.2, ranks, seed=2)]


def gradients(clip, settings, parts, ranks=ALONE) -> torch.Tensor:
    training_of(clip, settings, parts, augment_of(clip), ranks).backward()
    found = [parameter.grad for parameter in trainable_parameters(clip.model)]
    clip.model.zero_grad(set_to_none=True)
    return torch.cat([gradient.flatten() for gradient in found])


def test_steps_equal_those_of_a_plain_loop(clip, clip_id, shots, settings):
    """Plain open_clip, whose attention weights are built as W + BA before each call, and torch's own loss."""
    knobs = {"learning_rate": 1e-3, "warmup_steps": 0, "steps": 1000, "label_smoothing": 0.1}
    training = training_of(clip, settings.model_copy(update=knobs), both_parts(shots), augment_of(clip, **OFF))
    plain = open_clip.create_model(clip_id).eval().requires_grad_(False)
    lora = {name: tensor.requires_grad_() for name, tensor in trainable_state(clip.model).items()}
    optimizer = torch.optim.AdamW(lora.values(), weight_decay=settings.weight_decay)
    tokens = open_clip.get_tokenizer(clip_id)(list(PROMPTS))
    origins = both_parts(shots)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 1e-3 * (0.5 + 0.5 * math.cos(math.pi * step / 1000))
        weights = _adapted(plain, lora, scale=8 / 4)
        text = torch.func.functional_call(plain, weights, (None, tokens))[1]
        loss = 0.0
        for origin in origins:
            batch = next(origin.batches)
            image = torch.func.functional_call(plain, weights, ((batch.images.float() / 255 - 0.5) / 0.25, None))[0]
            logits = plain.logit_scale.exp() * image @ text.T
            loss = loss + origin.weight * F.cross_entropy(logits, batch.labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        training.step()
        assert training.mean_loss() == pytest.approx(loss.item(), abs=1e-5)
    for name, tensor in trainable_state(clip.model).items():
        torch.testing.assert_close(tensor, lora[name].detach(), atol=1e-5, rtol=0)


def _adapted(plain, lora, scale):
    """The weights of the attention layers with their updates, by name."""
    weights = {}
    for name, layer in plain.named_modules():
        if isinstance(layer, torch.nn.MultiheadAttention):
            update = {
                p: scale * lora[f"{name}.{p}.lora_B"] @ lora[f"{name}.{p}.lora_A"] for p in ("q", "k", "v", "out")
            }
            packed = torch.cat([update[projection] for projection in ("q", "k", "v")])
            weights[f"{name}.in_proj_weight"] = layer.in_proj_weight + packed
            weights[f"{name}.out_proj.weight"] = layer.out_proj.weight + update["out"]
    return weights


@pytest.mark.parametrize("changes", [{}, EVERYTHING])
@pytest.mark.parametrize("size", [1, 4, 5])
def test_micro_batches_give_the_gradients_of_the_batch(clip, shots, settings, size, changes):
    def found(micro: int | None) -> torch.Tensor:
        knobs = settings.model_copy(update={"micro_batch_size": micro, **changes})
        return gradients(clip, knobs, both_parts(shots))

    torch.testing.assert_close(found(size), found(None), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_gradients_of_all_ranks_add_up_to_those_of_one(clip, shots, settings, count):
    ranks = [Ranks(rank, count) for rank in range(count)]
    summed = sum(gradients(clip, settings, both_parts(shots, each), each) for each in ranks)
    torch.testing.assert_close(summed, gradients(clip, settings, both_parts(shots)), atol=1e-5, rtol=1e-4)


def test_mixed_images_are_labelled_as_both(clip, shots, settings):
    knobs = settings.model_copy(update={"mixup": 1.0, "mix_probability": 1.0})
    training = training_of(clip, knobs, [part(shots, 6)], augment_of(clip, **OFF))
    batch = training._draw()
    share = batch.shares[0].item()
    assert 0 < share < 1
    assert torch.equal(batch.other_labels, batch.labels.roll(1))
    pixels = (next(part(shots, 6).batches).images.float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(batch.pixels, share * pixels + (1 - share) * pixels.roll(1, 0), atol=1e-4, rtol=0)
    features = clip.encode_image(batch.pixels)
    classes = clip.encode_text(clip.tokenizer(PROMPTS))
    target = share * F.one_hot(batch.labels, 3) + (1 - share) * F.one_hot(batch.other_labels, 3)
    expected = F.cross_entropy(clip.model.logit_scale.exp() * features @ classes.T, target, reduction="none")
    torch.testing.assert_close(training._losses_of(batch, features, classes), expected, atol=1e-4, rtol=1e-4)


def test_a_batch_of_a_wrong_size_is_refused(clip, shots, settings):
    wrong = Part(itertools.repeat(LabelledImages(shots.images[:3], shots.labels[:3])), 4, 1.0)
    with pytest.raises(ValueError, match="a batch holds 3 images, but rank 0 of 1 needs 4 of the 4"):
        training_of(clip, settings, [wrong], mild(clip)).step()


def test_any_number_of_ranks_learns_the_same(clip_id, shots, settings, tmp_path):
    """Processes with a process group, which exchange gradients and, to mix them, images."""
    knobs = settings.model_dump() | EVERYTHING | {"learning_rate": 1e-3}
    for count in (1, 2, 4):
        _train_ranks(count, tmp_path, clip_id, knobs, shots)
    (alone, alone_loss), *others = (torch.load(tmp_path / f"weights-{count}.pt") for count in (1, 2, 4))
    start = trainable_state(with_lora(clip_id).model)
    assert max((tensor - start[name]).abs().max() for name, tensor in alone.items()) > 5e-3
    for weights, loss in others:
        assert loss == pytest.approx(alone_loss, abs=1e-5)
        for name, tensor in alone.items():
            torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=0)


def _train_ranks(count: int, folder: Path, clip_id: str, knobs: dict, shots: LabelledImages) -> None:
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.classify.toy"])  # what takes seconds to import
    pool = (shots.images, shots.labels)
    processes = [
        context.Process(target=_train_rank, args=(rank, count, folder, clip_id, knobs, pool)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count


def _train_rank(rank: int, count: int, folder: Path, clip_id: str, knobs: dict, pool: tuple) -> None:
    """Twenty steps as one of some processes; rank 0 leaves the weights in a file."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/store-{count}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    clip, ranks = with_lora(clip_id), Ranks(rank, count)
    parts = both_parts(LabelledImages(*pool), ranks)
    training = training_of(clip, ClassifyConfig(**knobs), parts, augment_of(clip), ranks)
    for _ in range(20):
        training.step()
    loss = training.mean_loss()
    if rank == 0:
        torch.save((trainable_state(clip.model), loss), folder / f"weights-{count}.pt")
    torch.distributed.destroy_process_group()
