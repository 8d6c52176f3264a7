"""The classify stage: every setting of every run is a unit that all workers train together, fed by Ray Data.

Synthetic images are decoded by Ray Data's tasks and reach the workers through `ingest`. Where they fit in memory, the
result is the same for any number of workers and any history of kills.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import ray.data
import ray.train

from datadream.classify.ingest.feed import shuffle_buffer, synthetic_images
from datadream.classify.ingest.reader import (
    ENCODINGS,
    ROWS_PER_DECODE,
    Published,
    check_published,
    find_published,
)
from datadream.classify.model_selection import check_selection, selection_of
from datadream.classify.search.successive_halving import found_knobs
from datadream.config import TRAINED_SETTINGS, ExperimentConfig, Setting
from datadream.data.few_shot import FewShotSet
from datadream.run.cell import Cell
from datadream.run.layout import (
    FAILED_CLASSIFIERS,
    ClassifierMarker,
    SearchRecord,
    classifier_checkpoint,
    classifier_marker,
)
from datadream.run.store import RunStore
from datadream.runtime.data_parallel import DataParallel, Datasets, Report, Train, run_together
from datadream.runtime.failures import finish, retried
from datadream.runtime.map_units import quiet_data
from datadream.runtime.progress import Facts, Listener, Reporter
from datadream.runtime.unit import Unit, checkpoint_state, pending, titles
from datadream.runtime.workers import Workers
from datadream.seeds import derive_seed

# What imports open_clip is imported at use: that takes seconds, and the driver may not need it.
if TYPE_CHECKING:
    import torch

    from datadream.classify.ingest.batches import SyntheticImages
    from datadream.classify.loop import Checkpoints, Reading
    from datadream.classify.setting import Outcome, SettingTrainer
    from datadream.runtime.collectives import Collectives


@dataclass(frozen=True, slots=True)
class ClassifierJob:
    """One run whose classifiers are to be trained."""

    store: RunStore
    few_shot: FewShotSet
    config: ExperimentConfig
    images: RunStore
    """Where its synthetic images are published; the first `generate.images_per_class` of each class are used."""

    @property
    def missing(self) -> tuple[Setting, ...]:
        """Settings that the run does not hold yet."""
        return tuple(name for name in self.config.classify.settings if not self.store.exists(classifier_marker(name)))

    def unit(self, setting: Setting) -> Unit[ClassifierSpec]:
        """A setting as a unit, sized by the steps of all of its trainings."""
        steps = 0
        if setting in TRAINED_SETTINGS:
            steps = self.config.classify.steps
            steps *= selection_of(setting, self.few_shot, self.config.classify).n_trainings
        return Unit(
            run_url=self.store.url,
            name=setting,
            marker=classifier_marker(setting),
            payload=ClassifierSpec(self, setting),
            size=steps,
            checkpoints=classifier_checkpoint(setting, "*"),
        )


@dataclass(frozen=True, slots=True)
class ClassifierSpec:
    """One setting of one run."""

    job: ClassifierJob
    setting: Setting


@dataclass(frozen=True, slots=True)
class Images:
    """What a worker must know of a run's synthetic images to read them."""

    name: str
    """Among the stage's datasets."""
    n: int
    buffer: int
    """Images of a reader's shuffle buffer where they stream; 0: they are kept in memory."""


def classifier_jobs(cells: Sequence[Cell]) -> list[ClassifierJob]:
    """The jobs of runs."""
    return [ClassifierJob(cell.store, cell.few_shot, cell.config, cell.images) for cell in cells]


def train_classifiers(
    store: RunStore, jobs: Sequence[ClassifierJob], workers: Workers, listeners: Sequence[Listener] = ()
) -> None:
    """Train and test every setting that the runs do not hold yet.

    `store` lends scratch space. Raises ValueError when a setting needs synthetic images that were not generated,
    RuntimeError naming the settings that failed and why, after all others were trained.
    """
    for job in jobs:
        check_job(job)
        for setting in job.config.classify.settings:
            if setting not in job.missing:
                _remove_checkpoints(job.store, setting)  # of a kill between a commit and this
    units = [job.unit(setting) for job in jobs for setting in job.config.classify.settings]
    missing = pending(units)
    if not missing:
        return
    smallest = min(unit.payload.job.config.classify.batch_size for unit in missing)
    # Each rank needs a part of each half of a batch.
    how = DataParallel(load=_load, load_from=None, most=max(1, smallest // 2), datasets=_datasets)
    before = sum(unit.size for unit in units) - sum(unit.size for unit in missing)
    total = before + sum(unit.size for unit in missing)
    waiting_for = "workers to start"
    with (
        quiet_data(in_order=True),
        Reporter("classify", total, "step", listeners, before, waiting_for) as reporter,
    ):
        failures = run_together(store, missing, how, workers, reporter, before)
    names = titles(units)
    named = [f"{names[key]}: {reason}" for key, reason in failures.items()]
    finish(store, FAILED_CLASSIFIERS, named, f"training {len(named)} of {len(units)} classifiers")


def check_job(job: ClassifierJob) -> None:
    """Find what would fail later. Raises ValueError or FileNotFoundError."""
    check_selection(job.few_shot, job.config.classify)
    missing = job.missing
    if job.config.classify.batch_size < 2 and "real+synthetic" in missing:
        raise ValueError(
            "classify.batch_size is 1, but real+synthetic takes half of a batch from each. Use 2 or more."
        )
    if any("synthetic" in setting for setting in missing):
        check_published(job.images, job.few_shot.class_names)


def published_images(job: ClassifierJob, settings: Sequence[Setting]) -> Published | None:
    """The synthetic images of a job, if one of these settings needs any."""
    if not any("synthetic" in setting for setting in settings):
        return None
    from datadream.models.clip.load import input_size

    size = input_size(job.config.classify.model)
    # A stream that goes on begins with other shards than those that were read before the interruption.
    states = [state for setting in settings for state in checkpoint_state(job.unit(setting))]
    order = derive_seed(job.config.seed, "classifier", "shards", *states)
    return find_published(job.images, size, order, job.config.generate.images_per_class)


def open_rows(published: Published) -> ray.data.Dataset:
    """The decoded rows of a dataset; nothing is read yet."""
    paths, fs = published.paths, published.store.fs
    if published.format == "parquet":
        encoded = ray.data.read_parquet(paths, filesystem=fs, columns=["image", "label"])
    else:
        suffixes = [*(f"*.{name}" for name in ENCODINGS), "*.cls"]
        encoded = ray.data.read_webdataset(paths, filesystem=fs, decoder=None, suffixes=suffixes)
    return encoded.map_batches(published.decode, batch_size=ROWS_PER_DECODE, batch_format="pyarrow")


def _datasets(units: Sequence[Unit[ClassifierSpec]], n_workers: int) -> tuple[Datasets, dict[str, Images]]:
    """The streams of the runs whose units are left, and by run what a worker must know of its own."""
    rows: dict[str, ray.data.Dataset] = {}
    images: dict[str, Images] = {}
    jobs = {unit.run_url: unit.payload.job for unit in units}
    for number, (url, job) in enumerate(jobs.items()):
        published = published_images(job, [unit.payload.setting for unit in units if unit.run_url == url])
        if published is None:
            continue
        found = Images(f"synthetic-{number}", published.n, shuffle_buffer(published, n_workers))
        images[url] = found
        opened = open_rows(published)
        # Materialised: decoded once for all workers and settings, into memory that a node's workers share.
        rows[found.name] = opened if found.buffer else opened.materialize()
    return Datasets(rows, [found.name for found in images.values() if found.buffer]), images


def _load(images: dict[str, Images], device: torch.device, collectives: Collectives) -> Train:
    """What every worker does: settings of one run share its CLIP, its photos and its synthetic images."""
    from datadream.classify.setting import SettingTrainer

    loaded: dict[str, tuple[SettingTrainer, SyntheticImages | None]] = {}

    def load(job: ClassifierJob) -> tuple[SettingTrainer, SyntheticImages | None]:
        synthetic = None
        if found := images.get(job.store.url):
            shard = ray.train.get_dataset_shard(found.name)
            names = job.few_shot.class_names
            synthetic = synthetic_images(shard, found.n, found.buffer, names, device, collectives)
        return SettingTrainer(job.config, job.few_shot, device, collectives), synthetic

    def train(unit: Unit[ClassifierSpec], report: Report) -> None:
        job, setting = unit.payload.job, unit.payload.setting
        if unit.run_url not in loaded:
            loaded.clear()  # the run before is done, and a device holds one
            loaded[unit.run_url] = load(job)
        trainer, synthetic = loaded[unit.run_url]
        found = found_knobs(job.store, setting)
        tuned = trainer.with_knobs(dict(found.knobs)) if found else trainer
        checkpoints = partial(_checkpoints, job, setting, collectives)
        outcome = tuned.run(setting, synthetic, _telling(report, unit.payload), checkpoints)
        if collectives.rank == 0:
            retried(lambda: _commit(job.store, setting, outcome, found), f"committing {setting}")

    return train


def _telling(report: Report, spec: ClassifierSpec) -> Callable[[int, Reading | None], None]:
    """Tells of a setting's steps and readings."""
    chosen_on = "test" if spec.job.config.classify.select_on == "test" else "val"

    def tell(step: int, reading: Reading | None) -> None:
        facts: Facts = {}
        if reading:
            facts = {"setting": spec.setting, "loss": reading.loss}
            if reading.val_top1 is not None:
                facts[f"{chosen_on}_top1"] = reading.val_top1
        report(step, facts)

    return tell


def _checkpoints(job: ClassifierJob, setting: Setting, collectives: Collectives, training: str) -> Checkpoints:
    from datadream.classify.loop import Checkpoints

    name = classifier_checkpoint(setting, training)
    return Checkpoints(
        read=lambda: job.store.read_bytes(name) if job.store.exists(name) else None,
        write=partial(job.store.write_bytes, name) if collectives.rank == 0 else None,
        every=job.config.cluster.checkpoint_steps,
    )


def _commit(store: RunStore, setting: Setting, outcome: Outcome, found: SearchRecord | None) -> None:
    marker = classifier_marker(setting)
    folder = marker.rpartition("/")[0]
    for name, data in outcome.files.items():
        store.write_bytes(f"{folder}/{name}", data)
    search: dict[str, Any] = {"search": found.to_json()} if found else {}
    store.write_json(marker, ClassifierMarker.from_json(outcome.metrics | search).to_json())
    _remove_checkpoints(store, setting)


def _remove_checkpoints(store: RunStore, setting: Setting) -> None:
    checkpoints = store.path(classifier_checkpoint(setting, "")).rpartition("/")[0]
    if store.fs.exists(checkpoints):
        store.fs.rm(checkpoints, recursive=True)
