"""The state of a CLIP in training, alone or as one rank of several, and one optimiser step of it.

The loss of a batch is a weighted sum over its images whose weights add up to one over all ranks. Summing gradients is
then exact for any number of ranks, and lambda*CE(real) + (1-lambda)*CE(synthetic) is just a choice of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrize

from datadream.classify.ingest.batches import Labelled
from datadream.classify.protoaug import Regions, disagreement
from datadream.classify.schedule import Schedule
from datadream.config import ClassifyConfig
from datadream.data.augment import Augment
from datadream.data.mix import draw_mix
from datadream.hashing import derive_seed
from datadream.models.clip.load import ClipModel
from datadream.models.clip.lora_dropout import LoraDropout
from datadream.models.clip.trainable import (
    check_dropout,
    load_trainable_state,
    trainable_parameters,
    trainable_state,
)
from datadream.runtime.collectives import ALONE, Collectives
from datadream.runtime.device import dtype_of, upload


@dataclass(frozen=True, slots=True)
class Part:
    """One origin of the images of every batch."""

    batches: Callable[[int], Iterator[Labelled]]
    """Step -> this rank's share of endless batches from that step on."""
    batch_size: int
    """Images of a batch over all ranks."""
    weight: float
    """Share of the loss."""


class Batch(NamedTuple):
    """This rank's images of a step, augmented."""

    pixels: Tensor
    """Normalised, float [n, 3, size, size]."""
    labels: Tensor
    """int64 [n]."""
    weights: Tensor
    """Of each image in the loss, [n]."""
    other_labels: Tensor
    """Labels of the images that were mixed in, [n]."""
    shares: Tensor
    """Share of the own label, [n]; 1 where nothing was mixed in."""
    numbers: Tensor
    """Of each image among those of all parts and ranks, [n] on the CPU."""
    regions: Tensor
    """Of the images before augmentation, int64 [n]; 0 without regions."""


class Training:
    """Trains what `make_trainable` left to learn of a CLIP, in place."""

    def __init__(
        self,
        clip: ClipModel,
        tokens: Tensor,
        parts: Sequence[Part],
        augment: Augment,
        config: ClassifyConfig,
        schedule: Schedule,
        *,
        seed: int,
        collectives: Collectives = ALONE,
        regions: Regions | None = None,
    ) -> None:
        """`tokens` are the class prompts' ids [n_classes, context] on the model's device. With `regions`, the last
        of `parts` has the synthetic images."""
        self.steps = 0
        """Optimiser steps done."""
        self._clip, self._tokens, self._parts, self._augment, self._config = clip, tokens, parts, augment, config
        self._seed, self._collectives, self._regions = seed, collectives, regions
        self._rng = torch.Generator().manual_seed(seed)
        self._batches = [part.batches(0) for part in parts]
        self._parameters = trainable_parameters(clip.model)
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=tokens.is_cuda
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: _rate(step, schedule.warmup_steps, schedule.steps)
        )
        self._autocast = autocast_of(config.precision, tokens.device)
        self._loss_sum, self._losses = torch.zeros((), device=tokens.device), 0
        self._frozen_classes: Tensor | None = None
        # A tower whose LoRA cannot be dropped is refused before any batch is read.
        if config.lora_dropout:
            check_dropout(clip.model, config.model)

    def step(self) -> None:
        """One optimiser step on the next batch."""
        self._optimizer.zero_grad(set_to_none=True)
        self._loss_sum += self.backward()  # on the device: reading it every step would wait for the device
        self._losses += 1
        self._collectives.sum_gradients(self._parameters)
        self._optimizer.step()
        self._schedule.step()
        self.steps += 1

    def backward(self) -> Tensor:
        """This rank's part of the next batch's loss, whose gradients are added to those of the parameters.

        The classes are encoded once however many micro-batches there are: their gradients are gathered first.
        """
        batch, rate = self._draw(), self._config.lora_dropout
        dropout = LoraDropout(rate, derive_seed(self._seed, "dropout", self.steps)) if rate else None
        classes = self._frozen_classes
        if classes is None:
            # Cached: attention asks for its weight several times, and LoRA would be added anew each time.
            with self._autocast, parametrize.cached():
                classes = self._clip.encode_text(self._tokens, self._collectives, dropout)
            # A text tower that LoRA does not fit is frozen, and runs once for all steps.
            self._frozen_classes = None if classes.requires_grad else classes
        gathered = classes.detach().requires_grad_(classes.requires_grad)
        total = torch.zeros((), device=self._tokens.device)
        size = self._config.micro_batch_size or len(batch.labels)
        for micro in map(Batch, *(field.split(size) for field in batch)):
            with self._autocast, parametrize.cached():
                features = self._clip.encode_image(micro.pixels, dropout and dropout.of_images(micro.numbers.tolist()))
            loss = self._losses_of(micro, features, gathered) @ micro.weights
            if self._regions is not None:
                loss = loss + self._disagreement(micro, features, gathered, self._regions)
            loss.backward()
            total += loss.detach()
        if classes.requires_grad:
            classes.backward(gathered.grad)
        return total

    def mean_loss(self) -> float:
        """Of the steps since this was last asked, over all ranks, which must all ask.

        Raises FloatingPointError when the loss is no longer a number.
        """
        loss = self._loss_of_all_ranks() / self._losses
        self._loss_sum.zero_()
        self._losses = 0
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the classifier's loss became {loss}. Lower classify.learning_rate, or use classify.precision=fp32."
            )
        return loss

    def weights(self) -> dict[str, Tensor]:
        """CPU copies of what is trained."""
        return trainable_state(self._clip.model)

    def state(self) -> dict[str, Any]:
        """All that `resume` needs to take the same steps that would have followed; every rank must ask."""
        return {
            "weights": self.weights(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "rng": self._rng.get_state(),
            "steps": self.steps,
            "loss_sum": self._loss_of_all_ranks(),
            "losses": self._losses,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of any number of ranks, with the batches that follow."""
        # Copied in place: the optimizer holds these very tensors.
        load_trainable_state(self._clip.model, state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._rng.set_state(state["rng"])
        self.steps, self._losses = state["steps"], state["losses"]
        # The saved sum is that of all ranks, and is summed over all again.
        self._loss_sum.fill_(state["loss_sum"] if self._collectives.rank == 0 else 0)
        self._batches = [part.batches(self.steps) for part in self._parts]

    def check_ranks_agree(self) -> None:
        """Raises RuntimeError when ranks are not at the same step."""
        self._collectives.check_same_step(self.steps, self._tokens.device)

    def _draw(self) -> Batch:
        """Our share of the next batch of every part."""
        drawn, first, device = [], 0, self._tokens.device
        for number, (part, batches) in enumerate(zip(self._parts, self._batches, strict=True)):
            images, rows = next(batches).to(device), self._collectives.share(part.batch_size)
            n = rows.stop - rows.start
            if len(images) != n:
                raise ValueError(
                    f"a batch holds {len(images)} images, but rank {self._collectives.rank} of "
                    f"{self._collectives.count} needs {n} of the {part.batch_size}."
                )
            # Drawn for the batch of all ranks: an image's crop does not depend on how many share the batch.
            numbers = self._augment.draw(part.batch_size, self._rng)
            pixels = self._augment.apply(images.images, numbers[rows]).to(device)
            other_labels, share = images.labels, 1.0
            # A generator of its own for each step and part: mixing or not moves no other random number.
            mix = draw_mix(self._config, self._clip.size, derive_seed(self._seed, "mix", self.steps, number))
            if mix is not None:
                # Every image with the one before it in the batch of all ranks, as in torchvision.
                before = torch.arange(rows.start, rows.stop) - 1
                there = upload(before, device)
                others, other_labels = (
                    self._collectives.gather(ours, part.batch_size)[there] for ours in (pixels, images.labels)
                )
                pixels, share = mix.apply(pixels, others), mix.share
            weights, shares = (
                torch.full((n,), value, device=device) for value in (part.weight / part.batch_size, share)
            )
            numbers_of_all = torch.arange(first + rows.start, first + rows.stop)
            regions = torch.zeros_like(images.labels) if self._regions is None else self._regions.of(images)
            drawn.append((pixels, images.labels, weights, other_labels, shares, numbers_of_all, regions))
            first += part.batch_size
        return Batch(*(torch.cat(fields) for fields in zip(*drawn, strict=True)))

    def _losses_of(self, batch: Batch, features: Tensor, classes: Tensor) -> Tensor:
        """Cross-entropy of each image [n]."""
        logits = self._logits(features, classes)
        own, other = (
            F.cross_entropy(logits, labels, reduction="none", label_smoothing=self._config.label_smoothing)
            for labels in (batch.labels, batch.other_labels)
        )
        return other.lerp(own, batch.shares)

    def _disagreement(self, batch: Batch, features: Tensor, classes: Tensor, found: Regions) -> Tensor:
        """This rank's part of ProtoAug's losses, which are about pairs of images and so of those of all ranks."""
        sizes = [part.batch_size for part in self._parts]
        ours = [self._collectives.share(size) for size in sizes]
        pieces = [
            rows.split([share.stop - share.start for share in ours])
            for rows in (self._logits(features, classes), batch.regions)
        ]
        *real, synthetic = (
            tuple(self._collectives.gather(rows, size) for rows in both)
            for size, *both in zip(sizes, *pieces, strict=True)
        )
        discrepancy, robustness = disagreement(real[0] if real else None, synthetic)
        weights = self._config.protoaug
        total = weights.discrepancy * discrepancy + weights.robustness * robustness
        # Every rank has the same sum, and gathering adds their gradients up: a rank's part is one of `count`.
        return total / found.n_synthetic / self._collectives.count

    def _logits(self, features: Tensor, classes: Tensor) -> Tensor:
        return self._clip.model.logit_scale.exp() * features @ classes.T

    def _loss_of_all_ranks(self) -> float:
        total = self._loss_sum.clone()
        self._collectives.sum(total)
        return total.item()


def autocast_of(precision: str, device: torch.device) -> torch.autocast:
    """The number type of the towers for a `precision` knob: bf16 or fp32."""
    dtype = dtype_of(precision, device, on_cuda=torch.bfloat16)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def _rate(step: int, warmup: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup  # not from 0, where the first step would learn nothing
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
