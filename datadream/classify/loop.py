"""The training loop of a classifier: readings of loss and validation accuracy, the best weights, and checkpoints."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from datadream.classify.train_state import Training


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
    starts: tuple[int, ...] = (0,)
    """Steps from which the training went on: 0, and one for each interruption."""

    @property
    def val_top1(self) -> float | None:
        return next(reading.val_top1 for reading in self.curve if reading.step == self.step)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where a training that is interrupted goes on from."""

    read: Callable[[], bytes | None]
    """The last one; None where nothing was saved."""
    write: Callable[[bytes], None] | None
    """None on all ranks but one."""
    every: int
    """Steps between checkpoints."""


def train(
    training: Training,
    steps: int,
    eval_every: int,
    *,
    evaluate: Callable[[], float | None],
    report: Report = lambda step, reading: None,
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Take `steps` steps, from the last checkpoint if there is one, with a reading every `eval_every` and at the end.

    `evaluate` gives the accuracy on all validation photos, the same number on all ranks.
    Raises FloatingPointError when the loss is no longer a number, RuntimeError when ranks read different checkpoints.
    """
    best = Trained({}, 0, ())
    saved = checkpoints.read() if checkpoints else None
    if saved is not None:
        import torch  # not above: the driver, which only checks, would start two seconds later

        state = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
        training.resume(state["training"])
        (weights, step), curve = state["best"], tuple(Reading(*reading) for reading in state["curve"])
        best = Trained(weights, step, curve, (*state["starts"], training.steps))
    # A rank that began at a later step would end earlier, and the others would wait for it in a sum.
    training.check_ranks_agree()
    while training.steps < steps:
        training.step()
        step, reading = training.steps, None
        if step % eval_every == 0 or step == steps:
            reading = Reading(step, training.mean_loss(), evaluate())
            top1, best_top1 = reading.val_top1, best.val_top1 if best.curve else None
            # Of equal readings, and of those without validation photos, the later one is kept.
            if top1 is None or best_top1 is None or top1 >= best_top1:
                best = replace(best, state=training.weights(), step=step)
            best = replace(best, curve=(*best.curve, reading))
        report(step, reading)
        if checkpoints and (step % checkpoints.every == 0 or step == steps):
            _save(training, best, checkpoints)
    return best


def mean_curve(curves: Sequence[Sequence[Reading]]) -> tuple[Reading, ...]:
    """The readings of trainings of equal length, averaged step by step."""
    return tuple(
        Reading(
            readings[0].step,
            statistics.fmean(reading.loss for reading in readings),
            statistics.fmean(reading.val_top1 for reading in readings),
        )
        for readings in zip(*curves, strict=True)
    )


def _save(training: Training, best: Trained, checkpoints: Checkpoints) -> None:
    # Tuples and not our classes, so that torch.load needs no pickled code (`weights_only`).
    curve = [astuple(reading) for reading in best.curve]
    # On every rank, though one alone writes: the state's loss is a sum over all.
    state = {"training": training.state(), "best": (best.state, best.step), "starts": best.starts, "curve": curve}
    if checkpoints.write is not None:
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        checkpoints.write(buffer.getvalue())
