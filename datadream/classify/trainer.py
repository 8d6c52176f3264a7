"""Train classifiers on Ray: one Ray Train run for all settings that are missing, fed by Ray Data.

Synthetic images are decoded by Ray Data's tasks. A set that fits is decoded once and every worker keeps all of it, so
that the result is the same for any number of workers; a larger one streams, each worker reading its own split of it.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.train
import torch
from ray.actor import ActorHandle
from ray.train import TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from datadream.classify.images import LabelledImages, buffered_batches, rows_per_read, shuffled_batches
from datadream.classify.published import Published, open_published, quiet_ordered_data
from datadream.cluster import (
    Workers,
    collective_backend,
    failure_text,
    lost_a_worker,
    shared_worker_device,
    train_storage,
)
from datadream.config import ExperimentConfig, Setting
from datadream.data.few_shot import FewShotSet
from datadream.device import use_threads
from datadream.monitor import show, start_monitor
from datadream.progress import Facts, Progress, polled
from datadream.ranks import Ranks
from datadream.run_store import RunStore, classifier_marker

# What imports open_clip is imported at use: that takes seconds, and the driver may not need it.
if TYPE_CHECKING:
    from datadream.classify.loop import Reading, Report
    from datadream.classify.setting import Outcome, SyntheticImages

log = logging.getLogger(__name__)

MEMORY_LIMIT = 2 * 2**30
"""Bytes of decoded synthetic images that a worker keeps in memory; a larger set streams."""
SHUFFLE_BYTES = 2**29
"""Bytes of the buffer through which a stream is shuffled."""
SECONDS_BETWEEN_REPORTS = 0.5
MAX_RESTARTS = 3
"""Times that training goes on after losing a worker; errors of our own making are never retried."""


@dataclass(frozen=True, slots=True)
class ClassifierJob:
    """One run whose classifiers are to be trained."""

    store: RunStore
    few_shot: FewShotSet
    config: ExperimentConfig

    @property
    def missing(self) -> tuple[Setting, ...]:
        """Settings that the run does not hold yet."""
        return tuple(name for name in self.config.classify.settings if not self.store.exists(classifier_marker(name)))


@dataclass(frozen=True, slots=True)
class _Task:
    """What the workers are told of one job."""

    job: ClassifierJob
    settings: tuple[Setting, ...]
    dataset: str
    """Name of its synthetic images among Ray Train's datasets."""
    n_synthetic: int
    buffer: int
    """Images of a worker's shuffle buffer when the synthetic images stream; 0: they are kept in memory."""


def train_classifiers(store: RunStore, jobs: Sequence[ClassifierJob], workers: Workers) -> None:
    """Train and test every setting that the runs do not hold yet; Ray must be connected.

    One Ray Train run serves all of them, for its start costs more than a small classifier. `store` lends it space.
    Raises ValueError when a setting needs synthetic images that were not generated, RuntimeError with the cause when a
    worker fails.
    """
    smallest = min((job.config.classify.batch_size for job in jobs), default=1)
    if smallest < 2 and any("real+synthetic" in job.missing for job in jobs):
        raise ValueError(
            "classify.batch_size is 1, but real+synthetic draws half of a batch from each. Use 2 or more."
        )
    workers = workers.at_most(smallest // 2)
    for restarts_left in reversed(range(MAX_RESTARTS + 1)):
        missing = [job for job in jobs if job.missing]
        if not missing:
            return
        try:
            _train(store, missing, workers)
        except TrainingFailedError as error:
            if not (restarts_left and lost_a_worker(error)):
                raise RuntimeError(f"classifier training failed: {failure_text(error)}") from error
            log.warning("classify: a worker was lost; the settings that are not done start again")


def _train(store: RunStore, jobs: Sequence[ClassifierJob], workers: Workers) -> None:
    with quiet_ordered_data():
        tasks, datasets = [], {}
        for number, job in enumerate(jobs):
            published = _published(job)
            n_synthetic, buffer = (published.n, _shuffle_buffer(published, workers)) if published else (0, 0)
            tasks.append(_Task(job, job.missing, f"synthetic-{number}", n_synthetic, buffer))
            if published:
                # Materialised: decoded once for all workers and settings, into memory that a node's workers share.
                datasets[tasks[-1].dataset] = published.rows if buffer else published.rows.materialize()
        monitor = start_monitor()
        with (
            Progress("classify", sum(map(_steps, tasks)), "step", store) as progress,
            train_storage(store) as storage,
            polled(lambda: show(monitor, progress)),
        ):
            _trainer(tasks, datasets, workers, monitor, storage).fit()


def _steps(task: _Task) -> int:
    return task.job.config.classify.steps * sum(setting != "zero-shot" for setting in task.settings)


def _published(job: ClassifierJob) -> Published | None:
    """The synthetic images of a job, if a setting needs any."""
    if not any("synthetic" in setting for setting in job.missing):
        return None
    from datadream.models.clip import input_size

    return open_published(job.store, input_size(job.config.classify.model))


def _shuffle_buffer(published: Published, workers: Workers) -> int:
    """Images of a worker's shuffle buffer, at most the worker's split; 0 when the set fits in memory."""
    if published.n_bytes <= MEMORY_LIMIT:
        return 0
    return max(1, min(SHUFFLE_BYTES // (3 * published.size**2), published.n // workers.count))


def _trainer(
    tasks: list[_Task],
    datasets: dict[str, ray.data.Dataset],
    workers: Workers,
    monitor: ActorHandle,
    storage: dict[str, Any],
) -> TorchTrainer:
    return TorchTrainer(
        _train_on_worker,
        train_loop_config={"tasks": tasks, "workers": workers, "monitor": monitor},
        torch_config=TorchConfig(backend=collective_backend(workers)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu=workers.use_gpu, resources_per_worker=workers.resources
        ),
        run_config=ray.train.RunConfig(name=uuid.uuid4().hex, **storage),
        datasets=datasets,
        dataset_config=ray.train.DataConfig(datasets_to_split=[task.dataset for task in tasks if task.buffer]),
    )


def _train_on_worker(loop: dict[str, Any]) -> None:
    tasks, workers = loop["tasks"], loop["workers"]
    use_threads(workers.threads)
    from datadream.classify.setting import SettingTrainer

    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    device = shared_worker_device(workers.use_gpu)
    steps_before = 0
    for task in tasks:
        trainer = SettingTrainer(task.job.config, task.job.few_shot, device, ranks)
        synthetic = _synthetic(task, device, ranks)
        for setting in task.settings:
            outcome = trainer.run(setting, synthetic, _reporter(loop["monitor"], steps_before, setting, ranks))
            steps_before += 0 if setting == "zero-shot" else task.job.config.classify.steps
            if ranks.rank == 0:
                _commit(task.job.store, setting, outcome)


def _commit(store: RunStore, setting: Setting, outcome: Outcome) -> None:
    marker = classifier_marker(setting)
    folder = marker.rpartition("/")[0]
    for name, data in outcome.files.items():
        store.write_bytes(f"{folder}/{name}", data)
    store.write_json(marker, outcome.metrics)


def _synthetic(task: _Task, device: torch.device, ranks: Ranks) -> SyntheticImages | None:
    """The synthetic images as this worker draws them; None when no setting needs any."""
    from datadream.classify.setting import SyntheticImages

    if not task.n_synthetic:
        return None
    shard = ray.train.get_dataset_shard(task.dataset)
    if task.buffer:

        def batches(batch_size: int, seed: int) -> Iterator[LabelledImages]:
            return buffered_batches(
                _reads(shard, rows_per_read(batch_size, ranks)), batch_size, ranks, task.buffer, seed
            )

    else:
        pool = _collect(shard).to(device)
        if len(pool) != task.n_synthetic:
            raise ValueError(
                f"the dataset holds {len(pool)} images, its marker says {task.n_synthetic}. Run generate again."
            )

        def batches(batch_size: int, seed: int) -> Iterator[LabelledImages]:
            return shuffled_batches(pool, batch_size, ranks, seed)

    return SyntheticImages(task.n_synthetic, batches)


def _collect(shard: ray.data.DataIterator) -> LabelledImages:
    """All rows, ordered by their keys: blocks may come in any order."""
    blocks = list(shard.iter_batches(batch_size=None, batch_format="numpy"))
    images, labels, keys = (
        np.concatenate([block[column] for block in blocks]) for column in ("image", "label", "key")
    )
    order = np.argsort(keys)
    return LabelledImages(torch.from_numpy(images[order]), torch.from_numpy(labels[order]))


def _reads(shard: ray.data.DataIterator, rows: int) -> Iterator[LabelledImages]:
    """This worker's split, epoch after epoch, `rows` images at a time."""
    while True:
        batch = None
        for batch in shard.iter_batches(batch_size=rows, batch_format="numpy", drop_last=True):
            # Copied: what Ray hands out is read-only.
            yield LabelledImages(torch.tensor(batch["image"]), torch.tensor(batch["label"]))
        if batch is None:
            raise ValueError(f"the synthetic images of a worker do not fill one batch of {rows}. Use fewer workers.")


def _reporter(monitor: ActorHandle, steps_before: int, setting: Setting, ranks: Ranks) -> Report:
    """Tells the monitor of a setting's steps, now and then; only rank 0 talks."""
    facts: Facts = {"setting": setting}
    last = 0.0

    def report(step: int, reading: Reading | None) -> None:
        nonlocal last
        if ranks.rank != 0:
            return
        if reading:
            facts["loss"] = reading.loss
            if reading.val_top1 is not None:
                facts["val_top1"] = reading.val_top1
        if reading or time.monotonic() - last > SECONDS_BETWEEN_REPORTS:
            last = time.monotonic()
            monitor.put.remote(steps_before + step, facts)

    return report
