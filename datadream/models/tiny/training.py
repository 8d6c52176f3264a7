"""What the three pre-training stages share: the cosine schedule, one optimizer step, and the record of a run."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor, nn

from datadream.models.tiny.painting import Batch

Sampler = Callable[[int, torch.Generator], Batch]
"""Paints so many images, by a generator's random numbers."""

logger = logging.getLogger(__name__)

CURVE_POINTS = 50
WARMUP_STEPS = 100


@dataclass(kw_only=True, slots=True)
class StageRecord:
    """What one stage did: enough to repeat it and to judge it."""

    stage: str
    seed: int
    steps: int
    batch_size: int
    loss: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean loss since the previous point), about CURVE_POINTS of them."""
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Runs clipped AdamW steps on a cosine schedule and keeps the thinned loss curve in the record."""

    def __init__(self, module: nn.Module, record: StageRecord, *, lr: float, weight_decay: float) -> None:
        self.module = module
        self.record = record
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=weight_decay, foreach=True)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, WARMUP_STEPS, record.steps)
        self._window: list[float] = []
        self.done = 0
        self._started = time.monotonic()

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self._window.append(loss.item())
        self.done += 1
        if len(self._window) >= max(1, self.record.steps // CURVE_POINTS) or self.done == self.record.steps:
            self.record.loss.append((self.done, round(sum(self._window) / len(self._window), 5)))
            self.record.seconds = round(time.monotonic() - self._started, 1)
            logger.info("%s step %d loss %.5f", self.record.stage, *self.record.loss[-1])
            self._window.clear()

    def save(self, checkpoint: Path, averaged: nn.Module) -> None:
        """Keep all that `resume` goes on from; a kill leaves the old file or the new one."""
        states = {name: part.state_dict() for name, part in self._parts(averaged).items()}
        torch.save(states | {"done": self.done, "record": self.record}, unfinished := checkpoint.with_suffix(".tmp"))
        unfinished.replace(checkpoint)

    def resume(self, checkpoint: Path | None, averaged: nn.Module) -> None:
        """Take up the checkpoint's state, where there is one; raises ValueError where it is of another training."""
        if checkpoint is None or not checkpoint.exists():
            return
        state = torch.load(checkpoint, weights_only=False)
        found, asked = ((record.seed, record.steps, record.batch_size) for record in (state["record"], self.record))
        if found != asked:
            raise ValueError(
                f"{checkpoint} has seed, steps and batch size {found}, not {asked}. Delete it to begin anew."
            )
        for name, part in self._parts(averaged).items():
            part.load_state_dict(state[name])
        self.done = state["done"]
        self.record.loss, self.record.seconds = state["record"].loss, state["record"].seconds
        self._started = time.monotonic() - self.record.seconds

    def _parts(self, averaged: nn.Module) -> dict[str, Any]:
        return {
            "module": self.module,
            "averaged": averaged,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }
