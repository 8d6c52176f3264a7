"""Train CLIP's LoRA on batches of images: plain PyTorch on one device, alone or as one rank of several.

The loss of a batch is a weighted sum over its images whose weights add up to one over all ranks. Summing gradients is
then exact for any number of ranks, and lambda*CE(real) + (1-lambda)*CE(synthetic) is just a choice of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrize

from datadream.classify.images import LabelledImages
from datadream.config import ClassifyConfig
from datadream.data.augment import Augment
from datadream.device import dtype_of
from datadream.models.clip import ClipModel
from datadream.models.clip_training import trainable_parameters, trainable_state
from datadream.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class Part:
    """One origin of the images of every batch."""

    batches: Iterator[LabelledImages]
    """This rank's share of endless batches."""
    batch_size: int
    """Images of a batch over all ranks."""
    weight: float
    """Share of the loss."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The mean loss since the last reading, and the accuracy on validation photos in percent."""

    step: int
    loss: float
    val_top1: float | None


Report = Callable[[int, Reading | None], None]
"""Hears of every step, with its reading when there was one."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The best weights (the last ones without validation photos), their step, and all readings."""

    state: dict[str, Tensor]
    step: int
    curve: tuple[Reading, ...]

    @property
    def val_top1(self) -> float | None:
        return next(reading.val_top1 for reading in self.curve if reading.step == self.step)


def autocast_of(precision: str, device: torch.device) -> torch.autocast:
    """The number type of the towers for a `precision` knob: bf16 or fp32."""
    dtype = dtype_of(precision, device, on_cuda=torch.bfloat16)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def train(
    clip: ClipModel,
    tokens: Tensor,
    parts: Sequence[Part],
    augment: Augment,
    config: ClassifyConfig,
    *,
    seed: int,
    evaluate: Callable[[], float | None],
    ranks: Ranks = ALONE,
    report: Report = lambda step, reading: None,
) -> Trained:
    """Train what `make_trainable` left to learn of a CLIP, in place, for `config.steps` steps.

    `tokens` are the class prompts' ids [n_classes, context] on the model's device. `evaluate` gives the accuracy on
    all validation photos, the same number on all ranks.
    Raises ValueError when the loss is no longer a number.
    """
    parameters = trainable_parameters(clip.model)
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=tokens.is_cuda
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate(step, config.warmup_steps, config.steps)
    )
    autocast = autocast_of(config.precision, tokens.device)
    rng = torch.Generator().manual_seed(seed)
    curve: list[Reading] = []
    best: Trained | None = None
    loss_sum = torch.zeros((), device=tokens.device)
    for step in range(1, config.steps + 1):
        loss = _loss(clip, tokens, parts, augment, autocast, ranks, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        ranks.sum_gradients(parameters)
        optimizer.step()
        schedule.step()
        loss_sum += loss.detach()
        reading = None
        if step % config.eval_every == 0 or step == config.steps:
            last = curve[-1].step if curve else 0
            reading = Reading(step, _mean_loss(loss_sum, step - last, ranks), evaluate())
            loss_sum.zero_()
            curve.append(reading)
            if best is None or _at_least(reading.val_top1, best.val_top1):
                best = Trained(trainable_state(clip.model), step, tuple(curve))
        report(step, reading)
    return Trained(best.state, best.step, tuple(curve))


def _loss(
    clip: ClipModel,
    tokens: Tensor,
    parts: Sequence[Part],
    augment: Augment,
    autocast: torch.autocast,
    ranks: Ranks,
    rng: torch.Generator,
) -> Tensor:
    """This rank's part of the loss of the next batch."""
    images, labels, weights = [], [], []
    for part in parts:
        batch = next(part.batches).to(tokens.device)
        # Drawn for the batch of all ranks: an image's crop does not depend on how many share the batch.
        numbers = augment.draw(part.batch_size, rng)[ranks.share(part.batch_size)]
        images.append(augment.apply(batch.images, numbers))
        labels.append(batch.labels)
        weights.append(torch.full((len(batch),), part.weight / part.batch_size, device=tokens.device))
    # Cached: attention asks for its weight several times, and LoRA would be added anew each time.
    with autocast, parametrize.cached():
        classes = clip.encode_text(tokens, ranks)
        features = clip.encode_image(torch.cat(images))
    logits = clip.model.logit_scale.exp() * features @ classes.T
    return F.cross_entropy(logits, torch.cat(labels), reduction="none") @ torch.cat(weights)


def _mean_loss(loss_sum: Tensor, steps: int, ranks: Ranks) -> float:
    total = loss_sum.clone()
    ranks.sum(total)
    loss = total.item() / steps
    if not math.isfinite(loss):
        raise ValueError(
            f"the classifier's loss became {loss}. Lower classify.learning_rate, or use classify.precision=fp32."
        )
    return loss


def _rate(step: int, warmup: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _at_least(accuracy: float | None, best: float | None) -> bool:
    """Of equal readings, and of those without validation photos, the later one is kept."""
    return accuracy is None or best is None or accuracy >= best
