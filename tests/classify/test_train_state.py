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

from datadream.classify.ingest.batches import LabelledImages
from datadream.classify.protoaug import find_regions
from datadream.classify.train_state import Part
from datadream.config import ClassifyConfig
from datadream.hashing import derive_seed
from datadream.models.clip.load import load_clip
from datadream.models.clip.lora_dropout import LoraDropout
from datadream.models.clip.trainable import make_trainable, trainable_parameters, trainable_state
from datadream.runtime.collectives import ALONE, Collectives
from tests.classify.toy import OFF, PROMPTS, augment_of, mild, part, training_of, with_lora
from tests.models.dropped_lora import keep_in_images, keep_in_prompts, with_dropped_lora

EVERYTHING = {"mixup": 1.0, "cutmix": 1.0, "mix_probability": 0.7, "label_smoothing": 0.1}


@pytest.fixture
def clip(clip_id):
    return with_lora(clip_id)


def both_parts(shots, collectives=ALONE) -> list[Part]:
    return [part(shots, 7, 0.8, collectives, seed=1), part(shots, 5, 0.2, collectives, seed=2)]


def gradients(clip, settings, parts, collectives=ALONE) -> torch.Tensor:
    training_of(clip, settings, parts, augment_of(clip), collectives).backward()
    found = [parameter.grad for parameter in trainable_parameters(clip.model)]
    clip.model.zero_grad(set_to_none=True)
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_steps_equal_those_of_a_plain_loop(clip, clip_id, shots, settings, rate):
    """Plain open_clip, whose attention weights are built as W + BA before each call, or loralib's attention with the
    same inputs dropped, and torch's own loss. What is learnt is evaluated without dropout."""
    knobs = {"learning_rate": 1e-3, "warmup_steps": 0, "steps": 1000, "label_smoothing": 0.1, "lora_dropout": rate}
    training = training_of(clip, settings.model_copy(update=knobs), both_parts(shots), augment_of(clip, **OFF))
    plain = open_clip.create_model(clip_id).eval().requires_grad_(False)
    lora = {name: tensor.requires_grad_() for name, tensor in trainable_state(clip.model).items()}
    optimizer = torch.optim.AdamW(lora.values(), weight_decay=settings.weight_decay)
    tokens = open_clip.get_tokenizer(clip_id)(list(PROMPTS))
    dropping = with_dropped_lora(open_clip.create_model(clip_id), lora, scale=8 / 4)
    origins = [(part.batches(0), part.weight) for part in both_parts(shots)]
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 1e-3 * (0.5 + 0.5 * math.cos(math.pi * step / 1000))
        batches = [next(origin) for origin, _ in origins]
        pixels = torch.cat([_normalised(batch) for batch in batches])
        if rate:
            images, text = _encode_dropped(dropping, clip.model, pixels, tokens, derive_seed(0, "dropout", step), rate)
        else:
            images, text = _encode_merged(plain, lora, pixels, tokens)
        logits = (plain.logit_scale.exp() * images @ text.T).split([len(batch) for batch in batches])
        loss = sum(
            weight * F.cross_entropy(own, batch.labels, label_smoothing=0.1)
            for (_, weight), batch, own in zip(origins, batches, logits, strict=True)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        training.step()
        assert training.mean_loss() == pytest.approx(loss.item(), abs=1e-5)
    for name, tensor in trainable_state(clip.model).items():
        torch.testing.assert_close(tensor, lora[name].detach(), atol=1e-5, rtol=0)
    images, text = _encode_merged(plain, lora, pixels, tokens)
    torch.testing.assert_close(clip.encode_image(pixels), images, atol=1e-4, rtol=0)
    torch.testing.assert_close(clip.encode_text(tokens), text, atol=1e-4, rtol=0)


def _normalised(batch: LabelledImages) -> torch.Tensor:
    return (batch.images.float() / 255 - 0.5) / 0.25


def _encode_merged(plain, lora, pixels, tokens):
    weights = _adapted(plain, lora, scale=8 / 4)
    return torch.func.functional_call(plain, weights, (pixels, tokens))[:2]


def _encode_dropped(plain, model, pixels, tokens, seed, rate):
    """`plain` with the masks that `model` is to use in the step of that seed."""
    dropout = LoraDropout(rate, seed)
    keep_in_images(plain, model, dropout.of_images(range(len(pixels))), pixels)
    keep_in_prompts(plain, model, dropout, tokens)
    return plain(pixels, tokens)[:2]


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
    ranks = [Collectives(rank, count) for rank in range(count)]
    summed = sum(gradients(clip, settings, both_parts(shots, each), each) for each in ranks)
    torch.testing.assert_close(summed, gradients(clip, settings, both_parts(shots)), atol=1e-5, rtol=1e-4)


def test_a_text_tower_that_does_not_learn_is_run_once(clip_id, shots, settings):
    clip = load_clip(clip_id, None, "cpu")
    make_trainable(clip.model, rank=4, alpha=8, projections=(), seed=0, image_tower="full")
    training = training_of(clip, settings, [part(shots)], mild(clip))
    before, runs = trainable_state(clip.model), []
    clip.model.ln_final.register_forward_hook(lambda *_: runs.append(1))
    for _ in range(3):
        training.step()
    assert len(runs) == 1
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trainable_state(clip.model).items())


def test_mixed_images_are_labelled_as_both(clip, shots, settings):
    knobs = settings.model_copy(update={"mixup": 1.0, "mix_probability": 1.0})
    training = training_of(clip, knobs, [part(shots, 6)], augment_of(clip, **OFF))
    batch = training._draw()
    share = batch.shares[0].item()
    assert 0 < share < 1
    assert torch.equal(batch.other_labels, batch.labels.roll(1))
    pixels = (next(part(shots, 6).batches(0)).images.float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(batch.pixels, share * pixels + (1 - share) * pixels.roll(1, 0), atol=1e-4, rtol=0)
    features = clip.encode_image(batch.pixels)
    classes = clip.encode_text(clip.tokenizer(PROMPTS))
    target = share * F.one_hot(batch.labels, 3) + (1 - share) * F.one_hot(batch.other_labels, 3)
    expected = F.cross_entropy(clip.model.logit_scale.exp() * features @ classes.T, target, reduction="none")
    torch.testing.assert_close(training._losses_of(batch, features, classes), expected, atol=1e-4, rtol=1e-4)


def test_a_batch_of_a_wrong_size_is_refused(clip, shots, settings):
    wrong = Part(lambda step: itertools.repeat(shots[:3]), 4, 1.0)
    with pytest.raises(ValueError, match="a batch holds 3 images, but rank 0 of 1 needs 4 of the 4"):
        training_of(clip, settings, [wrong], mild(clip)).step()


def test_any_number_of_ranks_learns_the_same(clip_id, shots, settings, tmp_path):
    """Processes with a process group, which exchange gradients and, to mix and compare them, images."""
    protoaug = {"discrepancy": 4.0, "robustness": 40.0}
    knobs = settings.model_dump() | EVERYTHING | {"learning_rate": 1e-3, "protoaug": protoaug}
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
    clip, collectives = with_lora(clip_id), Collectives(rank, count)
    parts = both_parts(LabelledImages(*pool), collectives)
    n_images = [len(pool[0])] * 2
    regions = find_regions(parts, n_images, 2, seed=0, device=torch.device("cpu"), collectives=collectives)
    training = training_of(clip, ClassifyConfig(**knobs), parts, augment_of(clip), collectives, regions)
    for _ in range(20):
        training.step()
    loss = training.mean_loss()
    if rank == 0:
        torch.save((trainable_state(clip.model), loss), folder / f"weights-{count}.pt")
    torch.distributed.destroy_process_group()
