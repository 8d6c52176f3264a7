"""Train classifiers on Ray: one Ray Train run for all settings that are missing, fed by Ray Data.

Synthetic images are decoded by Ray Data's tasks. A set that fits is decoded once and every worker keeps all of it, so
that the result is the same for any number of workers; a larger one streams, each worker reading its own split of it.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import ray
import ray.train
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.train import TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from datadream.classify.images import LabelledImages, buffered_batches, rows_per_read, shuffled_batches
from datadream.classify.published import Published, open_published, quiet_ordered_data
from datadream.classify.ranks import Ranks
from datadream.cluster import Workers
from datadream.config import ExperimentConfig, Setting
from datadream.data.few_shot import FewShotSet
from datadream.device import use_threads
from datadream.progress import Progress
from datadream.run_store import RunStore

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
class Job:
    """What every worker is told."""

    store_url: str
    few_shot: FewShotSet
    config: ExperimentConfig
    settings: tuple[Setting, ...]
    workers: Workers
    n_synthetic: int
    buffer: int
    """Images of a worker's shuffle buffer when the synthetic images stream; 0: they are kept in memory."""
    monitor: ActorHandle


def train_classifiers(store: RunStore, few_shot: FewShotSet, config: ExperimentConfig, workers: Workers) -> None:
    """Train and test every setting that the run does not hold yet; Ray must be connected.

    Raises ValueError when a setting needs synthetic images that were not generated, RuntimeError with the cause when a
    worker fails.
    """
    if config.classify.batch_size < 2 and "real+synthetic" in config.classify.settings:
        raise ValueError(
            "classify.batch_size is 1, but real+synthetic draws half of a batch from each. Use 2 or more."
        )
    workers = workers.at_most(config.classify.batch_size // 2)
    for restarts_left in reversed(range(MAX_RESTARTS + 1)):
        missing = tuple(setting for setting in config.classify.settings if not store.exists(marker_of(setting)))
        if not missing:
            return
        try:
            _train(store, few_shot, config, workers, missing)
        except TrainingFailedError as error:
            if not (restarts_left and _lost_a_worker(error)):
                raise RuntimeError(f"classifier training failed: {_cause(error)}") from error
            log.warning("classify: a worker was lost; the settings that are not done start again")


def marker_of(setting: Setting) -> str:
    """The file whose presence says that a setting is done."""
    return f"classifier/{setting}/metrics.json"


def _lost_a_worker(error: TrainingFailedError) -> bool:
    lost = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)
    return any(isinstance(failure, lost) for failure in _worker_failures(error))


def _cause(error: TrainingFailedError) -> str:
    """What the workers that failed said."""
    messages = [str(failure).strip() for failure in _worker_failures(error)] or [str(error)]
    return " / ".join(dict.fromkeys(messages))


def _worker_failures(error: TrainingFailedError) -> list[Exception]:
    """By rank; none when Ray Train itself failed."""
    failures = getattr(error, "worker_failures", {})
    return [failures[rank] for rank in sorted(failures)]


def _train(
    store: RunStore, few_shot: FewShotSet, config: ExperimentConfig, workers: Workers, settings: tuple[Setting, ...]
) -> None:
    with quiet_ordered_data():
        published = _published(store, config) if any("synthetic" in setting for setting in settings) else None
        n_synthetic, buffer = (published.n, _shuffle_buffer(published, workers)) if published else (0, 0)
        monitor = Monitor.options(num_cpus=0).remote()
        job = Job(store.url, few_shot, config, settings, workers, n_synthetic, buffer, monitor)
        with _shown(job):
            _fit(job, published)


def _published(store: RunStore, config: ExperimentConfig) -> Published:
    from datadream.models.clip import input_size

    return open_published(store, input_size(config.classify.model))


def _shuffle_buffer(published: Published, workers: Workers) -> int:
    """Images of a worker's shuffle buffer, at most the worker's split; 0 when the set fits in memory."""
    if published.n_bytes <= MEMORY_LIMIT:
        return 0
    return max(1, min(SHUFFLE_BYTES // (3 * published.size**2), published.n // workers.count))


def _fit(job: Job, published: Published | None) -> None:
    datasets = {}
    if published:
        # Materialised: decoded once for all workers and settings, into memory that the workers of a node share.
        datasets["synthetic"] = published.rows if job.buffer else published.rows.materialize()
    with tempfile.TemporaryDirectory(prefix="datadream-train-") as folder:
        trainer = TorchTrainer(
            _train_on_worker,
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend="nccl" if job.workers.use_gpu and torch.cuda.is_available() else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=job.workers.count, use_gpu=job.workers.use_gpu, resources_per_worker=job.workers.resources
            ),
            run_config=ray.train.RunConfig(name=uuid.uuid4().hex, storage_path=folder),
            datasets=datasets,
            dataset_config=ray.train.DataConfig(datasets_to_split="all" if job.buffer else []),
        )
        trainer.fit()


def _train_on_worker(loop_config: dict[str, Job]) -> None:
    job = loop_config["job"]
    use_threads(job.workers.threads)
    from datadream.classify.setting import SettingTrainer

    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    device = _device(job.workers)
    trainer = SettingTrainer(job.config, job.few_shot, device, ranks)
    synthetic = _synthetic(job, device, ranks)
    for setting in job.settings:
        outcome = trainer.run(setting, synthetic, _reporter(job, setting, ranks))
        if ranks.rank == 0:
            _commit(RunStore(job.store_url), setting, outcome)


def _device(workers: Workers) -> torch.device:
    """Ray Train shows a worker all GPUs of its node and says which one is its own."""
    if workers.use_gpu and torch.cuda.is_available():
        device = ray.train.torch.get_device()
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def _commit(store: RunStore, setting: Setting, outcome: Outcome) -> None:
    folder = marker_of(setting).rpartition("/")[0]
    for name, data in outcome.files.items():
        store.write_bytes(f"{folder}/{name}", data)
    store.write_json(marker_of(setting), outcome.metrics)


def _synthetic(job: Job, device: torch.device, ranks: Ranks) -> SyntheticImages | None:
    """The synthetic images as this worker draws them; None when no setting needs any."""
    from datadream.classify.setting import SyntheticImages

    if not job.n_synthetic:
        return None
    shard = ray.train.get_dataset_shard("synthetic")
    if job.buffer:

        def batches(batch_size: int, seed: int) -> Iterator[LabelledImages]:
            return buffered_batches(
                _reads(shard, rows_per_read(batch_size, ranks)), batch_size, ranks, job.buffer, seed
            )

    else:
        pool = _collect(shard).to(device)
        if len(pool) != job.n_synthetic:
            raise ValueError(
                f"the dataset holds {len(pool)} images, its marker says {job.n_synthetic}. Run generate again."
            )

        def batches(batch_size: int, seed: int) -> Iterator[LabelledImages]:
            return shuffled_batches(pool, batch_size, ranks, seed)

    return SyntheticImages(job.n_synthetic, batches)


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


@ray.remote
class Monitor:
    """Where rank 0 says how far it is, for the driver to show."""

    def __init__(self) -> None:
        self._latest: tuple[int, dict[str, str]] = (0, {})

    def put(self, done: int, facts: dict[str, str]) -> None:
        self._latest = (done, facts)

    def latest(self) -> tuple[int, dict[str, str]]:
        return self._latest


def _reporter(job: Job, setting: Setting, ranks: Ranks) -> Report:
    """Tells the monitor of a setting's steps, now and then; only rank 0 talks."""
    trained = [name for name in job.settings if name != "zero-shot"]
    before = trained.index(setting) * job.config.classify.steps if setting in trained else 0
    facts: dict[str, str] = {"setting": setting}
    last = 0.0

    def report(step: int, reading: Reading | None) -> None:
        nonlocal last
        if ranks.rank != 0:
            return
        if reading:
            facts["loss"] = f"{reading.loss:.3f}"
            if reading.val_top1 is not None:
                facts["val"] = f"{reading.val_top1:.1f}%"
        if reading or time.monotonic() - last > SECONDS_BETWEEN_REPORTS:
            last = time.monotonic()
            job.monitor.put.remote(before + step, facts)

    return report


@contextmanager
def _shown(job: Job) -> Iterator[None]:
    """Show what the monitor hears, for the length of a block."""
    total = job.config.classify.steps * sum(setting != "zero-shot" for setting in job.settings)
    stop = threading.Event()

    def watch(progress: Progress) -> None:
        while not stop.wait(SECONDS_BETWEEN_REPORTS):
            # Without the monitor there is nothing to show; why it is gone is for fit() to say.
            with suppress(RayError):
                done, facts = ray.get(job.monitor.latest.remote())
                progress.update(done, **facts)

    with Progress("classify", total, "step") as progress:
        watcher = threading.Thread(target=watch, args=(progress,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
