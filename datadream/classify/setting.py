"""One row of the accuracy table: train, keep what is best on validation photos, then read the test photos."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from datadream.classify import gda
from datadream.classify.evaluate import PhotoBatches, Scores, count_correct, features_of, score
from datadream.classify.files import SavedClassifier
from datadream.classify.ingest.batches import (
    Labelled,
    SyntheticImages,
    read_photos,
    read_whole_photos,
    shuffled_batches,
)
from datadream.classify.loop import Checkpoints, Report, Trained, train
from datadream.classify.metrics import logits_parquet, measure
from datadream.classify.model_selection import ALL_SHOTS, Selection, chosen_of, readings, selection_of, train_chosen
from datadream.classify.protoaug import Regions, find_regions
from datadream.classify.schedule import Schedule, schedule_of
from datadream.classify.train_state import Part, Training, autocast_of
from datadream.config import GAUSSIAN_SETTINGS, GAUSSIAN_VIEWS, TRAINED_SETTINGS, ExperimentConfig, Setting
from datadream.data.augment import Augment
from datadream.data.datasets import Photo, open_source
from datadream.data.few_shot import FewShotSet
from datadream.hashing import derive_seed
from datadream.models.clip.context import name_prompts, with_context
from datadream.models.clip.load import load_clip
from datadream.models.clip.trainable import load_trainable_state, make_trainable, restore
from datadream.run.layout import LOGITS
from datadream.runtime.collectives import Collectives


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a setting leaves behind: files by name, and the metrics that announce them."""

    files: dict[str, bytes]
    metrics: dict[str, Any]


CheckpointsOf = Callable[[str], Checkpoints]
"""Where a training of a setting is saved, by its name: `fold-0`, ... or `all`."""


class SettingTrainer:
    """A CLIP and the real photos, loaded once for all settings."""

    def __init__(
        self, config: ExperimentConfig, few_shot: FewShotSet, device: torch.device, collectives: Collectives
    ) -> None:
        self._config, self._few_shot, self._device, self._collectives = config, few_shot, device, collectives
        self.clip = load_clip(config.classify.model, config.classify.pretrained, device)
        self._prompts = self.clip.tokenizer(list(few_shot.prompts)).to(device)
        # Made once: the text tower knows prompts that it has packed by their tensor.
        self._names = self._prompts
        self._words: list[int] = []
        if config.classify.context:
            names = self.clip.tokenizer(name_prompts(few_shot.class_names)).to(device)
            self._names, self._words = with_context(self.clip.model, names, config.classify.context)
        self._autocast = autocast_of(config.classify.precision, device)
        self._source = open_source(config.data.source, config.data.background)
        self._batches: dict[tuple[Photo, ...], PhotoBatches] = {}
        # A list, not a value: copies made by `with_knobs` before the shots are decoded must share them too.
        self._decoded: list[Labelled] = []
        self._found_regions: dict[tuple[Setting, int], Regions] = {}

    def with_knobs(self, changes: dict[str, Any]) -> SettingTrainer:
        """A trainer with other knobs of `classify`, by their names, on the same loaded CLIP and photos.

        Raises ValueError for knobs that are about what is loaded.
        """
        # A copy shares the CLIP, the shots and the photos that are kept; nothing of these depends on other knobs.
        loaded = {"model", "pretrained", "precision", "augment.crop_from", "context"} & changes.keys()
        if loaded:
            raise ValueError(
                f"classify.{min(loaded)} cannot be changed on a CLIP that is loaded. Make another trainer."
            )
        other = copy.copy(self)
        other._config = self._config.updated({f"classify.{name}": value for name, value in changes.items()})
        return other

    def run(
        self,
        setting: Setting,
        synthetic: SyntheticImages | None,
        report: Report,
        checkpoints_of: CheckpointsOf | None = None,
    ) -> Outcome:
        """Train and test one setting; every rank takes part and gets the same outcome.

        Raises FloatingPointError when the loss is no longer a number.
        """
        start = time.monotonic()
        selection = selection_of(setting, self._few_shot, self._config.classify)
        trained, adapted, val_top1 = None, None, None
        try:
            if setting in TRAINED_SETTINGS:
                train = partial(self._train, setting, synthetic, report, checkpoints_of)
                trained = train_chosen(self._few_shot, selection, self._schedule(setting).steps, train)
                val_top1 = trained.val_top1
                load_trainable_state(self.clip.model, trained.state)
            elif setting in GAUSSIAN_SETTINGS:
                adapted = self._adapt(setting, selection, synthetic)
                val_top1 = adapted.val_top1
            elif selection.photos:
                val_top1 = self._top1(setting, selection.photos)
            test = self._test(setting, adapted)
            saved = self._saved(setting, trained, adapted)
        finally:
            # The same CLIP serves the next setting, and other knobs.
            restore(self.clip.model)
        # Test photos that chose are no validation photos beside: their figure is top1, which chosen_by marks.
        uses_test = selection.chosen_by == "test"
        metrics = {
            "setting": setting,
            **measure(test.logits, test.labels, self._few_shot.class_names, self._seed(setting, "bootstrap")),
            "chosen_by": selection.chosen_by,
            "val_top1": None if uses_test else val_top1,
            "n_val": 0 if uses_test else selection.n_photos,
            "best_step": trained.step if trained else 0,
            "starts": list(trained.starts) if trained else [],
            "curve": [asdict(reading) for reading in trained.curve] if trained else [],
            "seconds": round(time.monotonic() - start, 3),
            "n_synthetic": synthetic.n if synthetic and "synthetic" in setting else 0,
            "n_real": len(self._few_shot.photos) if "real" in setting else 0,
            **({"gaussian_weight": adapted.weight} if adapted else {}),
        }
        files = saved.to_files()
        if keys := [photo.key for photo in self._few_shot.test]:
            files[LOGITS] = logits_parquet(keys, test.labels, test.logits)
        return Outcome(files, metrics)

    def choose(self, setting: Setting, synthetic: SyntheticImages | None, report: Report) -> dict[str, Any]:
        """How well the knobs do, by the readings that would choose the weights: the part of `run`'s metrics that
        needs neither the chosen weights nor a test photo.

        Raises FloatingPointError when the loss is no longer a number.
        """
        start = time.monotonic()
        selection = selection_of(setting, self._few_shot, self._config.classify)
        train = partial(self._train, setting, synthetic, report, None)
        try:
            curve = readings(self._few_shot, selection, self._schedule(setting).steps, train)
        finally:
            restore(self.clip.model)
        best = chosen_of(curve, selection)
        return {
            "val_top1": best.val_top1,
            "chosen_by": selection.chosen_by,
            "best_step": best.step,
            "curve": [asdict(reading) for reading in curve],
            "seconds": round(time.monotonic() - start, 3),
        }

    def _train(
        self,
        setting: Setting,
        synthetic: SyntheticImages | None,
        report: Report,
        checkpoints_of: CheckpointsOf | None,
        name: str,
        few_shot: FewShotSet,
        stop: int,
        *,
        before: int,
    ) -> Trained:
        """One training of a setting, as `model_selection` asks for it; the model is left as it learnt."""
        # The training before, of another fold or with other knobs, left what it has learnt.
        restore(self.clip.model)
        config, schedule = self._config.classify, self._schedule(setting)
        # The training whose weights are kept has the same seed with folds and without, and its bytes are the same.
        seed = partial(self._seed, setting) if name == ALL_SHOTS else partial(self._seed, setting, name)
        make_trainable(self.clip.model, **self._learning(), seed=seed("lora"), name=config.model)
        training = Training(
            self.clip,
            self._tokens(setting),
            self._parts(setting, few_shot, synthetic, seed),
            self._augment(),
            config,
            schedule,
            seed=seed("augment"),
            collectives=self._collectives,
            regions=self._regions(setting, synthetic),
        )
        return train(
            training,
            stop,
            schedule.eval_every,
            evaluate=lambda: self._top1(setting, few_shot.val) if few_shot.val else None,
            report=lambda step, reading: report(before + step, reading),
            checkpoints=checkpoints_of(name) if checkpoints_of else None,
        )

    def _adapt(self, setting: Setting, selection: Selection, synthetic: SyntheticImages | None) -> gda.Adapted:
        """Adapt to the setting's images without training; every rank gets the same."""
        text_features, logit_scale = self._classes_and_scale(setting)
        no_bias = torch.zeros(len(text_features), device=self._device)
        zero_shot = gda.LinearHead(logit_scale * text_features, no_bias)
        origins, config = cast(Setting, setting.removeprefix("gda-")), self._config.classify

        def measured(few_shot: FewShotSet, plan: list[tuple[str, int, float]], *name: str) -> list[gda.Moments]:
            rng = torch.Generator().manual_seed(self._seed(setting, "augment", *name))
            parts, found = self._parts(origins, few_shot, synthetic, partial(self._seed, setting, *name)), []
            for (origin, *_), part in zip(plan, parts, strict=False):
                n = GAUSSIAN_VIEWS[origin] * (
                    len(few_shot.photos) if origin == "real" else cast(SyntheticImages, synthetic).n
                )
                found.append(
                    gda.measure(self.clip, part, n, self._augment(), self._autocast, zero_shot, self._collectives, rng)
                )
            return found

        def fitted(found: list[gda.Moments]) -> gda.LinearHead:
            moments = sum(found[1:], found[0])
            for tensor in (moments.mass, moments.first, moments.second, moments.squares):
                self._collectives.sum(tensor)
            return gda.fit(moments)

        def hits(gaussian: gda.LinearHead, photos: tuple[Photo, ...]) -> Tensor:
            batches = self._photo_batches(photos)
            return gda.count_hits(
                zero_shot, gaussian, *features_of(self.clip, batches, self._autocast, zero_shot.weight)
            )

        # Real and generated images weigh what they do in the loss of a training.
        plan = batch_plan(origins, config.batch_size, config.real_weight)
        whole = measured(self._few_shot, plan)
        gaussian = fitted(whole)
        if selection.folds:
            # A fold lacks shots; the generated images, which come last, are the same.
            lacking = [
                (fitted(measured(fold, plan[:1], f"fold-{number}") + whole[1:]), fold.val)
                for number, fold in enumerate(selection.folds)
            ]
            counts = torch.stack([hits(head, left_out) for head, left_out in lacking]).sum(dim=0)
        else:
            counts = hits(gaussian, selection.photos)
        self._collectives.sum(counts)
        return gda.choose(zero_shot, gaussian, counts)

    def _schedule(self, setting: Setting) -> Schedule:
        # Of the run's classes, also in folds, which lack shots and no class.
        return schedule_of(setting, len(self._few_shot.class_names), self._config)

    def _augment(self) -> Augment:
        config = self._config.classify.augment
        flip = self._few_shot.flippable if config.flip is None else config.flip
        return Augment(config, flip, self.clip.size, self.clip.mean, self.clip.std)

    def _parts(
        self, setting: Setting, few_shot: FewShotSet, synthetic: SyntheticImages | None, seed: Callable[[str], int]
    ) -> list[Part]:
        config, parts = self._config.classify, []
        for origin, batch_size, weight in batch_plan(setting, config.batch_size, config.real_weight):
            if origin == "real":
                if not self._decoded:
                    read = read_whole_photos if config.augment.crop_from == "photo" else read_photos
                    photos: Labelled = read(self._source, self._few_shot.photos, self.clip.size)
                    self._decoded.append(photos.to(self._device))
                # `few_shot` may be a fold: its shots are among the run's, which are decoded once.
                kept = set(few_shot.photos)
                rows = [row for row, photo in enumerate(self._few_shot.photos) if photo in kept]
                shots = self._decoded[0][torch.tensor(rows)]
                batches = partial(shuffled_batches, shots, batch_size, self._collectives, seed(origin))
            else:
                assert synthetic is not None  # check_job asks for a dataset
                batches = partial(synthetic.batches, batch_size, seed(origin))
            parts.append(Part(batches, batch_size, weight))
        return parts

    def _regions(self, setting: Setting, synthetic: SyntheticImages | None) -> Regions | None:
        """Those of all shots and synthetic images of a setting, found once for all of its trainings."""
        config = self._config.classify
        if synthetic is None or "synthetic" not in setting or not config.protoaug.on:
            return None
        n_regions = config.protoaug.regions or 2 * len(self._few_shot.class_names)
        if (setting, n_regions) not in self._found_regions:
            n_images = {"real": len(self._few_shot.photos), "synthetic": synthetic.n}
            seed = partial(self._seed, setting, "regions")
            self._found_regions[setting, n_regions] = find_regions(
                self._parts(setting, self._few_shot, synthetic, seed),
                [n_images[origin] for origin, *_ in batch_plan(setting, config.batch_size, config.real_weight)],
                n_regions,
                seed=seed("k-means"),
                device=self._device,
                collectives=self._collectives,
            )
        return self._found_regions[setting, n_regions]

    def _photo_batches(self, photos: tuple[Photo, ...]) -> PhotoBatches:
        """This rank's share of photos; what is kept of them is kept for all settings."""
        if photos not in self._batches:
            share = photos[self._collectives.share(len(photos))]
            self._batches[photos] = PhotoBatches(self._source, share, self.clip)
        return self._batches[photos]

    def _tokens(self, setting: Setting) -> Tensor:
        """Ids of what names the classes [n_classes, context]: the prompts, or learned words and the names."""
        return self._names if setting in TRAINED_SETTINGS else self._prompts

    def _top1(self, setting: Setting, photos: tuple[Photo, ...]) -> float:
        """Accuracy on photos over all ranks, in percent."""
        counts = count_correct(self.clip, self._tokens(setting), self._photo_batches(photos), self._autocast)
        self._collectives.sum(counts)
        correct, total = counts.tolist()
        return 100 * correct / total

    def _test(self, setting: Setting, adapted: gda.Adapted | None) -> Scores:
        """Logits of all test photos, on the CPU."""
        photos = self._few_shot.test
        batches = self._photo_batches(photos)
        if adapted is None:
            ours = score(self.clip, self._tokens(setting), batches, self._autocast)
        else:
            features, labels = features_of(self.clip, batches, self._autocast, adapted.head.weight)
            ours = Scores(adapted.head(features), labels)
        logits, labels = (self._collectives.gather(tensor, len(photos)).cpu() for tensor in (ours.logits, ours.labels))
        return Scores(logits, labels)

    def _learning(self) -> dict[str, Any]:
        """What learns, as `make_trainable` takes it."""
        # As JSON, for labels.json: a reader of another version gives them to `make_trainable` as they are.
        knobs = self._config.classify.model_dump(mode="json")
        learning = {name: knobs[name] for name in ("rank", "alpha", "projections", "image_tower")}
        return learning | ({"context": self._words} if self._words else {})

    def _saved(self, setting: Setting, trained: Trained | None, adapted: gda.Adapted | None) -> SavedClassifier:
        if adapted is None:
            text_features, logit_scale = self._classes_and_scale(setting)
            bias = torch.zeros(len(text_features))
        else:
            # A Gaussian head has CLIP's factor in its weights.
            text_features, bias, logit_scale = adapted.head.weight, adapted.head.bias, torch.ones(())
        config = self._config.classify
        return SavedClassifier(
            classes=self._few_shot.class_names,
            prompts=self._few_shot.prompts,
            model=config.model,
            pretrained=config.pretrained,
            learning=self._learning() if trained else None,
            state=trained.state if trained else {},
            text_features=text_features.cpu(),
            logit_scale=logit_scale.cpu(),
            bias=bias.cpu(),
            background=self._config.data.background,
        )

    @torch.no_grad()
    def _classes_and_scale(self, setting: Setting) -> tuple[Tensor, Tensor]:
        """Unit features of the classes [n_classes, D], and the factor of the cosine similarities."""
        return self.clip.encode_text(self._tokens(setting)), self.clip.model.logit_scale.exp()

    def _seed(self, setting: Setting, *purpose: str) -> int:
        return derive_seed(self._config.seed, "classifier", setting, *purpose)


def batch_plan(setting: Setting, batch_size: int, real_weight: float) -> list[tuple[str, int, float]]:
    """Origins of a batch's images, how many from each over all ranks, and their share of the loss (paper, section 3:
    lambda for real photos, the rest for synthetic images)."""
    # Synthetic images come last: ProtoAug's regions and losses take the last part for theirs.
    if setting == "real+synthetic":
        return [("real", batch_size - batch_size // 2, real_weight), ("synthetic", batch_size // 2, 1 - real_weight)]
    return [] if setting == "zero-shot" else [(setting, batch_size, 1.0)]
