"""Train classifiers on Ray: one Ray Train run for all settings that are missing, fed by Ray Data.

Synthetic images are decoded by Ray Data's tasks and reach the workers through `feed`. Where they fit in memory, the
result is the same for any number of workers and any history of kills.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import ray
import ray.train
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.train import TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from datadream.classify.ingest.feed import published_images, shuffle_buffer, synthetic_images
from datadream.classify.ingest.reader import quiet_ordered_data
from datadream.classify.job import ClassifierJob, check_job
from datadream.classify.search.successive_halving import Record, found_knobs
from datadream.classify.selection import selection_of
from datadream.config import TRAINED_SETTINGS, Setting
from datadream.run.layout import classifier_checkpoint, classifier_marker
from datadream.run.store import RunStore
from datadream.runtime.collectives import Ranks
from datadream.runtime.device import use_threads
from datadream.runtime.monitor import show, start_monitor
from datadream.runtime.progress import Facts, Progress, polled
from datadream.runtime.session import (
    Workers,
    collective_backend,
    failure_text,
    failures_are_ours,
    lost_a_worker,
    shared_worker_device,
    train_storage,
    workers_now,
)

# What imports open_clip is imported at use: that takes seconds, and the driver may not need it.
if TYPE_CHECKING:
    from datadream.classify.loop import Checkpoints, Reading, Report
    from datadream.classify.setting import Outcome

log = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 0.5
MAX_FRUITLESS = 3
"""Times in a row that workers may be lost without a commit or checkpoint between; other errors are never retried."""


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
    for job in jobs:
        check_job(job)
    for job in jobs:
        _sweep_checkpoints(job)
    fruitless = 0
    while missing := [job for job in jobs if job.missing]:
        before = _reached(missing)
        try:
            # Those that are there now: Ray would wait for a machine that is lost.
            _train(store, missing, workers_now(workers).at_most(smallest // 2))
        except RayTaskError as error:  # Ray Data's, which appends its advice to the first line
            raise RuntimeError(f"reading the dataset failed: {str(error.cause).splitlines()[0]}") from error
        except (TrainingFailedError, RayError) as error:  # Ray's own: a node took decoded images with it
            fruitless = fruitless + 1 if _reached(missing) == before else 1
            if fruitless > MAX_FRUITLESS or not lost_a_worker(error):
                raise RuntimeError(f"classifier training failed: {failure_text(error)}") from error
            log.warning("classify: a worker was lost; going on from the last checkpoint")


def _reached(jobs: Sequence[ClassifierJob]) -> list[Any]:
    """Changes with every commit and checkpoint."""
    return [(job.missing, job.checkpoints) for job in jobs]


def _train(store: RunStore, jobs: Sequence[ClassifierJob], workers: Workers) -> None:
    with quiet_ordered_data():
        tasks, datasets = [], {}
        for number, job in enumerate(jobs):
            published = published_images(job)
            n_synthetic, buffer = (published.n, shuffle_buffer(published, workers.count)) if published else (0, 0)
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
    return sum(_steps_of(task.job, setting) for setting in task.settings)


def _steps_of(job: ClassifierJob, setting: Setting) -> int:
    if setting not in TRAINED_SETTINGS:
        return 0
    config = job.config.classify
    return config.steps * selection_of(setting, job.few_shot, config).n_trainings


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
        run_config=ray.train.RunConfig(name=uuid.uuid4().hex, failure_config=failures_are_ours(), **storage),
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
        shard = ray.train.get_dataset_shard(task.dataset) if task.n_synthetic else None
        synthetic = synthetic_images(task.job, shard, task.n_synthetic, task.buffer, device, ranks)
        for setting in task.settings:
            found = found_knobs(task.job.store, setting)
            chosen_on = "test" if task.job.config.classify.select_on == "test" else "val"
            report = _reporter(loop["monitor"], steps_before, setting, chosen_on, ranks)
            tuned = trainer.with_knobs(found["knobs"]) if found else trainer
            outcome = tuned.run(setting, synthetic, report, partial(_checkpoints, task.job, setting, ranks))
            steps_before += _steps_of(task.job, setting)
            if ranks.rank == 0:
                _commit(task.job.store, setting, outcome, found)


def _checkpoints(job: ClassifierJob, setting: Setting, ranks: Ranks, training: str) -> Checkpoints:
    from datadream.classify.loop import Checkpoints

    name = classifier_checkpoint(setting, training)
    return Checkpoints(
        read=lambda: job.store.read_bytes(name) if job.store.exists(name) else None,
        write=partial(job.store.write_bytes, name) if ranks.rank == 0 else None,
        every=job.config.cluster.checkpoint_steps,
    )


def _commit(store: RunStore, setting: Setting, outcome: Outcome, found: Record | None) -> None:
    marker = classifier_marker(setting)
    folder = marker.rpartition("/")[0]
    for name, data in outcome.files.items():
        store.write_bytes(f"{folder}/{name}", data)
    store.write_json(marker, outcome.metrics | ({"search": found} if found else {}))
    _remove_checkpoints(store, setting)


def _sweep_checkpoints(job: ClassifierJob) -> None:
    """Remove what a kill left between a commit and the end of its checkpoints."""
    for setting in job.config.classify.settings:
        if setting not in job.missing:
            _remove_checkpoints(job.store, setting)


def _remove_checkpoints(store: RunStore, setting: Setting) -> None:
    checkpoints = store.path(classifier_checkpoint(setting, "")).rpartition("/")[0]
    if store.fs.exists(checkpoints):
        store.fs.rm(checkpoints, recursive=True)


def _reporter(
    monitor: ActorHandle, steps_before: int, setting: Setting, chosen_on: Literal["val", "test"], ranks: Ranks
) -> Report:
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
                facts[f"{chosen_on}_top1"] = reading.val_top1
        if reading or time.monotonic() - last > SECONDS_BETWEEN_REPORTS:
            last = time.monotonic()
            monitor.put.remote(steps_before + step, facts)

    return report
