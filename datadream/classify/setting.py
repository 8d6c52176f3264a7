"""One row of the accuracy table: train, keep what is best on validation photos, read the test photos once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from datadream.classify.evaluate import Accuracy, PhotoBatches, count_correct, summarise
from datadream.classify.images import LabelledImages, read_photos, shuffled_batches
from datadream.classify.loop import Part, Report, Trained, autocast_of, train
from datadream.classify.saved import SavedClassifier
from datadream.config import ExperimentConfig, Setting
from datadream.data.augment import Augment
from datadream.data.datasets import open_source
from datadream.data.few_shot import FewShotSet
from datadream.models.clip import load_clip
from datadream.models.clip_training import load_trainable_state, make_trainable, restore
from datadream.ranks import Ranks
from datadream.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class SyntheticImages:
    """The synthetic training images: how many there are, and this rank's share of seeded endless batches of them."""

    n: int
    batches: Callable[[int, int], Iterator[LabelledImages]]
    """(batch size over all ranks, seed) -> batches."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a setting leaves behind: files by name, and the metrics that announce them."""

    files: dict[str, bytes]
    metrics: dict[str, Any]


class SettingTrainer:
    """A CLIP and the real photos, loaded once for all settings."""

    def __init__(self, config: ExperimentConfig, few_shot: FewShotSet, device: torch.device, ranks: Ranks) -> None:
        self._config, self._few_shot, self._device, self._ranks = config, few_shot, device, ranks
        self.clip = load_clip(config.classify.model, config.classify.pretrained, device)
        self._tokens = self.clip.tokenizer(list(few_shot.prompts)).to(device)
        self._autocast = autocast_of(config.classify.precision, device)
        self._source = open_source(config.data.source)
        self._val, self._test = (
            PhotoBatches(self._source, photos[ranks.rank :: ranks.count], self.clip)
            for photos in (few_shot.val, few_shot.test)
        )

    def run(self, setting: Setting, synthetic: SyntheticImages | None, report: Report) -> Outcome:
        """Train and test one setting; every rank takes part and gets the same outcome.

        Raises ValueError when the loss is no longer a number.
        """
        start = time.monotonic()
        trained = None
        try:
            if setting != "zero-shot":
                trained = self._train(setting, synthetic, report)
                load_trainable_state(self.clip.model, trained.state)
            val_top1 = trained.val_top1 if trained else self._accuracy(self._val).top1
            test = self._accuracy(self._test)
            saved = self._saved(trained)
        finally:
            restore(self.clip.model)
        metrics = {
            "setting": setting,
            "top1": test.top1,
            "n_test": test.n,
            "val_top1": val_top1,
            "n_val": len(self._few_shot.val),
            "best_step": trained.step if trained else 0,
            "per_class": test.per_class_json(),
            "curve": [asdict(reading) for reading in trained.curve] if trained else [],
            "seconds": round(time.monotonic() - start, 3),
            "n_synthetic": synthetic.n if synthetic and "synthetic" in setting else 0,
            "n_real": len(self._few_shot.photos) if "real" in setting else 0,
        }
        return Outcome(saved.to_files(), metrics)

    def _train(self, setting: Setting, synthetic: SyntheticImages | None, report: Report) -> Trained:
        config = self._config.classify
        make_trainable(self.clip.model, **self._learning(), seed=self._seed(setting, "lora"), name=config.model)
        flip = self._few_shot.flippable if config.augment.flip is None else config.augment.flip
        return train(
            self.clip,
            self._tokens,
            self._parts(setting, synthetic),
            Augment(config.augment, flip, self.clip.size, self.clip.mean, self.clip.std),
            config,
            seed=self._seed(setting, "augment"),
            evaluate=lambda: self._accuracy(self._val).top1,
            ranks=self._ranks,
            report=report,
        )

    def _parts(self, setting: Setting, synthetic: SyntheticImages | None) -> list[Part]:
        config, parts = self._config.classify, []
        for origin, batch_size, weight in batch_plan(setting, config.batch_size, config.real_weight):
            seed = self._seed(setting, origin)
            if origin == "real":
                batches = shuffled_batches(self._shots, batch_size, self._ranks, seed)
            else:
                batches = synthetic.batches(batch_size, seed)
            parts.append(Part(batches, batch_size, weight))
        return parts

    @cached_property
    def _shots(self) -> LabelledImages:
        shots = read_photos(self._source, self._few_shot.photos, self.clip.size)
        return shots.to(self._device)

    def _accuracy(self, photos: PhotoBatches) -> Accuracy:
        counts = count_correct(self.clip, self._tokens, photos, self._autocast)
        self._ranks.sum(counts)
        return summarise(counts, self._few_shot.class_names)

    def _learning(self) -> dict[str, Any]:
        """What learns, as `make_trainable` takes it."""
        knobs = self._config.classify.model_dump(mode="json")
        return {name: knobs[name] for name in ("rank", "alpha", "projections", "image_tower")}

    @torch.no_grad()
    def _saved(self, trained: Trained | None) -> SavedClassifier:
        config = self._config.classify
        return SavedClassifier(
            classes=self._few_shot.class_names,
            prompts=self._few_shot.prompts,
            model=config.model,
            pretrained=config.pretrained,
            learning=self._learning() if trained else None,
            state=trained.state if trained else {},
            text_features=self.clip.encode_text(self._tokens).cpu(),
            logit_scale=self.clip.model.logit_scale.exp().cpu(),
        )

    def _seed(self, setting: Setting, purpose: str) -> int:
        return derive_seed(self._config.seed, "classifier", setting, purpose)


def batch_plan(setting: Setting, batch_size: int, real_weight: float) -> list[tuple[str, int, float]]:
    """Origins of a batch's images, how many from each, and their share of the loss."""
    if setting == "real+synthetic":
        return [("real", batch_size - batch_size // 2, real_weight), ("synthetic", batch_size // 2, 1 - real_weight)]
    return [] if setting == "zero-shot" else [(setting, batch_size, 1.0)]
