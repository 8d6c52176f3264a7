"""The classify stage: every setting of every run is a data-parallel unit of all workers, fed by Ray Data.

Synthetic images are decoded by Ray Data's tasks and reach the workers through `ingest`. Where they fit in memory, the
result is the same for any number of workers and any history of kills.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import ray.data
import ray.train
from ray.exceptions import RayTaskError

from datadream.classify.ingest.feed import Rows, shuffle_buffer, synthetic_images
from datadream.classify.ingest.reader import (
    ENCODINGS,
    FOLDER,
    ROWS_PER_DECODE,
    Published,
    check_published,
    find_published,
)
from datadream.classify.model_selection import check_selection, selection_of
from datadream.classify.schedule import Schedule, schedule_of
from datadream.classify.search.successive_halving import found_knobs
from datadream.config import TRAINED_SETTINGS, ExperimentConfig, Setting
from datadream.data.few_shot import FewShotSet
from datadream.hashing import derive_seed
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
from datadream.runtime.ray_errors import failure_of
from datadream.runtime.unit import Unit, checkpoint_state, pending, titles
from datadream.runtime.workers import Workers

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

    def schedule(self, setting: Setting) -> Schedule:
        """How long a setting is trained, at a time."""
        return schedule_of(setting, len(self.few_shot.class_names), self.config)

    def unit(self, setting: Setting) -> Unit[ClassifierSpec]:
        """A setting as a unit, sized by the steps of all of its trainings."""
        steps = 0
        if setting in TRAINED_SETTINGS:
            steps = self.schedule(setting).steps
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
    """A run's synthetic images as workers read them."""

    rows: Callable[[], Rows]
    """Called in a worker, where they are read."""
    n: int
    buffer: int
    """Images of a reader's shuffle buffer where they stream; 0: they are kept in memory."""
    unreadable: str = ""
    """Why the rows cannot be read; empty where they can."""


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
        for setting in set(job.config.classify.settings).difference(job.missing):
            _remove_checkpoints(job.store, setting)  # of a kill between a commit and this
    units = [job.unit(setting) for job in jobs for setting in job.config.classify.settings]
    failures: dict[tuple[str, str], str] = {}
    if missing := pending(units):
        # Each rank needs a part of each half of a batch.
        smallest = min(unit.payload.job.config.classify.batch_size for unit in missing)
        how = DataParallel(load=_load, load_from=None, most=max(1, smallest // 2), datasets=_datasets)
        total, left = sum(unit.size for unit in units), sum(unit.size for unit in missing)
        with (
            quiet_data(in_order=True),
            Reporter("classify", total, "step", listeners, total - left, "workers to start") as reporter,
        ):
            failures = run_together(store, missing, how, workers, reporter, before=total - left)
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


def open_images(
    job: ClassifierJob, settings: Sequence[Setting], n_readers: int
) -> tuple[ray.data.Dataset, Images] | None:
    """The synthetic images of a job, if one of these settings needs any, for so many workers to read: the rows of all,
    and what a worker must know of them. Where they fit in memory they are decoded here."""
    if not any("synthetic" in setting for setting in settings):
        return None
    from datadream.models.clip.load import input_size

    size = input_size(job.config.classify.model)
    # A stream that goes on begins with other shards than those that were read before the interruption.
    states = [state for setting in settings for state in checkpoint_state(job.unit(setting))]
    order = derive_seed(job.config.seed, "classifier", "shards", *states)
    published = find_published(job.images, size, order, job.config.generate.images_per_class)
    rows, buffer, unreadable = open_rows(published), shuffle_buffer(published, n_readers), ""
    if not buffer:
        try:
            # Decoded once for all workers and settings, into memory that a node's workers share.
            rows = rows.materialize()
        except RayTaskError as error:
            unreadable = failure_of(error).reason
    return rows, Images(rows.iterator, published.n, buffer, unreadable)


def open_rows(published: Published) -> ray.data.Dataset:
    """The decoded rows of a dataset; nothing is read yet."""
    fs, paths = published.store.fs, [published.store.path(posixpath.join(FOLDER, shard)) for shard in published.shards]
    if published.format == "parquet":
        encoded = ray.data.read_parquet(paths, filesystem=fs, columns=["image", "label"])
    else:
        suffixes = [*(f"*.{name}" for name in ENCODINGS), "*.cls"]
        # No decoder: `decode` takes encoded images, so that no block holds them in full size.
        encoded = ray.data.read_webdataset(paths, filesystem=fs, decoder=None, suffixes=suffixes)
    return encoded.map_batches(published.decode, batch_size=ROWS_PER_DECODE, batch_format="pyarrow")


def _datasets(units: Sequence[Unit[ClassifierSpec]], n_workers: int) -> tuple[Datasets, dict[str, Images]]:
    """The streams of the runs whose units are left, and by run what a worker must know of its own.

    A run whose images cannot be decoded loses the settings that need them, and nothing else does.
    """
    by_run: dict[str, list[Unit[ClassifierSpec]]] = defaultdict(list)
    for unit in units:
        by_run[unit.run_url].append(unit)
    rows: dict[str, ray.data.Dataset] = {}
    images: dict[str, Images] = {}
    unreadable: dict[tuple[str, str], str] = {}
    for number, (url, own) in enumerate(by_run.items()):
        opened = open_images(own[0].payload.job, [unit.payload.setting for unit in own], n_workers)
        if opened is None:
            continue
        if reason := opened[1].unreadable:
            unreadable |= {unit.key: reason for unit in own if "synthetic" in unit.payload.setting}
            continue
        # Ray Train hands every worker its part by name; a run's URL would become the name of a log file.
        name = f"synthetic-{number}"
        rows[name] = opened[0]
        images[url] = replace(opened[1], rows=partial(ray.train.get_dataset_shard, name))
    streams = [name for name, found in zip(rows, images.values(), strict=True) if found.buffer]
    return Datasets(rows, streams, unreadable), images


def _load(images: dict[str, Images], device: torch.device, collectives: Collectives) -> Train:
    """What every worker does with a unit."""
    from datadream.classify.setting import SettingTrainer

    held = HeldRun(SettingTrainer, images, device, collectives)

    def train(unit: Unit[ClassifierSpec], report: Report) -> None:
        job, setting = unit.payload.job, unit.payload.setting
        report(0, {"setting": setting})
        trainer, synthetic = held.of(job, setting)
        found = found_knobs(job.store, setting)
        tuned = trainer.with_knobs(dict(found.knobs)) if found else trainer
        checkpoints = partial(_checkpoints, job, setting, collectives)
        outcome = tuned.run(setting, synthetic, partial(_tell, report, unit.payload), checkpoints)
        if collectives.rank == 0:
            retried(lambda: _commit(job.store, setting, outcome, found), f"committing {setting}")

    return train


@dataclass(slots=True)
class HeldRun:
    """What a worker holds in memory: settings of one run share its CLIP, its photos and its synthetic images."""

    load: type[SettingTrainer]
    images: dict[str, Images]
    """By run."""
    device: torch.device
    collectives: Collectives
    _url: str = ""
    _trainer: SettingTrainer | None = None
    _synthetic: SyntheticImages | None = None

    def of(self, job: ClassifierJob, setting: Setting) -> tuple[SettingTrainer, SyntheticImages | None]:
        """The trainer of the job's run, and its synthetic images if the setting needs them.

        Images are loaded by the first setting that needs them: where they are broken, the others are still trained.
        Raises ValueError when they cannot be read.
        """
        if self._trainer is None or job.store.url != self._url:
            self._trainer = self._synthetic = None  # first, because a device need not have room for two
            self._url = job.store.url
            self._trainer = self.load(job.config, job.few_shot, self.device, self.collectives)
        if "synthetic" not in setting:
            return self._trainer, None
        if self._synthetic is None:
            found, names = self.images[job.store.url], job.few_shot.class_names
            if found.unreadable:
                raise ValueError(found.unreadable)
            self._synthetic = synthetic_images(
                found.rows(), found.n, found.buffer, names, self.device, self.collectives
            )
        return self._trainer, self._synthetic


def _tell(report: Report, spec: ClassifierSpec, step: int, reading: Reading | None) -> None:
    """Of a step, and of its reading when there was one."""
    # By the name of the photos that choose: a figure of test photos must not pass for one of validation.
    facts: Facts = {"loss": reading.loss} if reading else {}
    if reading and reading.val_top1 is not None:
        facts["test_top1" if spec.job.config.classify.select_on == "test" else "val_top1"] = reading.val_top1
    report(step, facts)


def _checkpoints(job: ClassifierJob, setting: Setting, collectives: Collectives, training: str) -> Checkpoints:
    from datadream.classify.loop import Checkpoints

    name, store = classifier_checkpoint(setting, training), job.store

    def write(data: bytes) -> None:
        retried(partial(store.write_bytes, name, data), f"writing {name}")

    return Checkpoints(
        read=lambda: retried(lambda: store.read_bytes(name) if store.exists(name) else None, f"reading {name}"),
        write=write if collectives.rank == 0 else None,
        every=job.config.cluster.checkpoint_steps,
    )


def _commit(store: RunStore, setting: Setting, outcome: Outcome, found: SearchRecord | None) -> None:
    marker = classifier_marker(setting)
    folder = marker.rpartition("/")[0]
    # The marker last: what is read after it is whole.
    for name, data in outcome.files.items():
        store.write_bytes(f"{folder}/{name}", data)
    search: dict[str, Any] = {"search": found.to_json()} if found else {}
    store.write_json(marker, ClassifierMarker.from_json(outcome.metrics | search).to_json())
    _remove_checkpoints(store, setting)  # after the marker, or a kill between the two would cost the training


def _remove_checkpoints(store: RunStore, setting: Setting) -> None:
    checkpoints = store.path(classifier_checkpoint(setting, "")).rpartition("/")[0]
    if store.fs.exists(checkpoints):
        store.fs.rm(checkpoints, recursive=True)
