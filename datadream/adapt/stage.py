"""Train many adapters with Ray Train workers that lease them from a queue.

Work-stealing and not one trainer per adapter, because a Ray Train start costs seconds and a small adapter costs few.
An adapter counts as done when its marker is committed, so a second result for the same adapter is harmless.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.actor import ActorHandle

from datadream.adapt.artifacts import are_committed, commit_adapter, write_index
from datadream.adapt.worker import load_trainer
from datadream.config import ExperimentConfig
from datadream.data.datasets import open_source
from datadream.run.store import RunStore
from datadream.runtime.failures import check_none_failed
from datadream.runtime.progress import Facts, Progress
from datadream.runtime.session import Workers, beside_driver, train_storage, workers_to_add
from datadream.runtime.work_queue import AdapterJob, AdapterQueue, Group, QueueProgress
from datadream.runtime.worker_groups import run_squads

if TYPE_CHECKING:
    from torch import Tensor

    from datadream.adapt.lora_trainer import AdapterTrainer

log = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 0.5
SECONDS_BETWEEN_QUESTIONS = 1.0
CPU_GROUP = 5
"""Most adapters side by side on a CPU: that is most of the gain."""
GROUP_SIZE = "stages/adapt-group.json"
WORKER_USAGE = "stages/adapt-workers.json"
"""How busy the workers of the last start were."""
FAILED_ADAPTERS = "adapters/failed.json"


def train_adapters(store: RunStore, jobs: Sequence[AdapterJob], config: ExperimentConfig, workers: Workers) -> None:
    """Train every adapter that is not committed yet, and write the index of all.

    Those of several classes come first, each trained by the workers together; then those of one class, by whichever
    worker is free, longest first. An adapter that fails does not stop the others. Raises RuntimeError naming those
    that failed and why, or those that are still missing after workers were replaced.
    """
    done = are_committed(jobs)
    if not all(done):
        _check_all_trained(store, jobs, _train_missing(store, jobs, done, config, workers))
    write_index(jobs)


def _train_missing(
    store: RunStore, jobs: Sequence[AdapterJob], done: Sequence[bool], config: ExperimentConfig, workers: Workers
) -> list[str]:
    """Returns the adapters that failed by themselves, and why."""
    total, before = _steps(jobs), _steps(itertools.compress(jobs, done))
    log.info("adapt: %d of %d adapters to train, %d steps", len(jobs) - sum(done), len(jobs), total - before)
    shared = [job for job in jobs if job.spec.n_classes > 1]
    single = [(job, is_done) for job, is_done in zip(jobs, done, strict=True) if job.spec.n_classes == 1]
    failures: list[str] = []
    with Progress("adapt", total, "step", store, done=before) as progress:
        if shared:
            # Imported here, not above: it imports torch, which the queue's process has no use for.
            from datadream.adapt.together import train_together

            elsewhere = _steps(job for job, is_done in single if is_done)
            failures += train_together(store, shared, config, workers, progress, elsewhere)
        if not all(is_done for _, is_done in single):
            failures += _fan_out(store, *zip(*single, strict=True), config, workers, progress, _steps(shared))
    return failures


def _steps(jobs: Iterable[AdapterJob]) -> int:
    return sum(job.steps for job in jobs)


def _fan_out(
    store: RunStore,
    jobs: Sequence[AdapterJob],
    done: Sequence[bool],
    config: ExperimentConfig,
    workers: Workers,
    progress: Progress,
    before: int,
) -> list[str]:
    """Train what is not done, each adapter by one worker, after `before` steps of others; returns the adapters that
    failed by themselves, and why."""
    queue = ray.remote(AdapterQueue).options(**beside_driver()).remote(jobs, done, config.cluster.lease_seconds)
    settings = {"queue": queue, "config": config, "workers": workers, **_group_size(store, jobs, config, workers)}
    with train_storage(store) as storage:

        def look() -> None:
            _show(progress, before, ray.get(queue.progress.remote()), jobs)

        def room(there: Mapping[str, int]) -> dict[str, Workers]:
            return workers_to_add(workers, there, ray.get(queue.n_open.remote()))

        run_squads(queue, _lease_and_train, settings, room, storage, look)
        look()
    store.write_json(WORKER_USAGE, ray.get(queue.usage.remote()))
    hopeless = ray.get(queue.hopeless.remote())
    if hopeless:
        raise RuntimeError(f"adapter training failed: {hopeless}")
    return ray.get(queue.failures.remote())


def _show(progress: Progress, before: int, state: QueueProgress, jobs: Sequence[AdapterJob]) -> None:
    facts: Facts = {"adapters": f"{state.adapters}/{len(jobs)}"}
    if progress.rate:
        facts["adapters_per_hour"] = 3600 * progress.rate * len(jobs) / _steps(jobs)
    if state.loss is not None:
        facts["loss"] = state.loss
    if state.failed:
        facts["failed"] = state.failed
    progress.update(before + state.steps, **facts)


def _group_size(
    store: RunStore, jobs: Sequence[AdapterJob], config: ExperimentConfig, workers: Workers
) -> dict[str, int | None]:
    """How many adapters a worker trains side by side, None where it is to measure that; and how many at most.

    On CPUs it is noted at the first start: other neighbours would change an adapter's last bits.
    """
    most = max(1, len(jobs) // workers.slots)
    size = config.adapt.adapters_per_step
    if size is None and not workers.use_gpu:
        if not store.exists(GROUP_SIZE):
            # As many rounds of groups as the largest groups need, and then equal groups: nobody waits in the last.
            rounds = math.ceil(len(jobs) / (CPU_GROUP * workers.slots))
            size = math.ceil(len(jobs) / (rounds * workers.slots))
            store.write_json(GROUP_SIZE, {"adapters_per_step": size})
        size = store.read_json(GROUP_SIZE)["adapters_per_step"]
    return {"size": size, "most": most}


def _check_all_trained(store: RunStore, jobs: Sequence[AdapterJob], failures: Sequence[str]) -> None:
    check_none_failed(store, FAILED_ADAPTERS, failures, f"{len(failures)} of {len(jobs)} adapters")
    missing = [job.spec.adapter_id for job, done in zip(jobs, are_committed(jobs), strict=True) if not done]
    if missing:
        raise RuntimeError(
            f"{len(missing)} adapters were not trained: {', '.join(missing[:5])}. Run the same command again."
        )


def _lease_and_train(loop: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    queue, config, workers = loop["queue"], loop["config"], loop["workers"]
    place, worker = f"{loop['squad']}/{ray.train.get_context().get_world_rank()}", uuid.uuid4().hex
    try:
        # Imported here, not above: torch takes a second, and the queue's process imports this module as well.
        from datadream.runtime.device import use_threads, worker_device

        use_threads(workers.threads)
        trainer = load_trainer(config, worker_device(workers.use_gpu))
        size = loop["size"] or trainer.fastest_group(loop["most"])
    except Exception as error:  # whatever is wrong with the model is wrong for every worker
        ray.get(queue.give_up.remote(f"{type(error).__name__}: {error}"))
        return
    reporter = _Reporter(queue, worker)
    while True:
        group = ray.get(queue.lease.remote(place, worker, size))
        if group is not None:
            _train_and_tell(trainer, group, config, reporter)
        elif ray.get(queue.is_done.remote()):
            return
        else:
            # Others hold the rest, and may be lost with it.
            time.sleep(SECONDS_BETWEEN_QUESTIONS)


def _train_and_tell(trainer: AdapterTrainer, group: Group, config: ExperimentConfig, reporter: _Reporter) -> None:
    try:
        failures = _train_group(trainer, group, config, reporter)
    except Exception as error:
        reporter.finish(group, dict.fromkeys(group.places, f"{type(error).__name__}: {error}"))
        raise  # nobody knows what state this process is in: Ray starts another
    reporter.finish(group, failures)


def _train_group(
    trainer: AdapterTrainer, group: Group, config: ExperimentConfig, reporter: _Reporter
) -> dict[int, str]:
    """Train a group and commit what nobody has committed yet; returns why adapters failed, by their places."""
    source = open_source(config.data.source)
    failures: dict[int, str] = {}
    readable, photos = [], []
    for place, job, missing in zip(group.places, group.jobs, group.missing, strict=True):
        try:
            photos.append([source.read(photo.key) for photo in job.spec.photos])
            readable.append((place, job, missing))
        except (ValueError, OSError) as error:
            failures[place] = str(error)
        reporter.alive()
    trained = trainer.train([job.spec for _, job, _ in readable], photos, reporter.step, reporter.alive)
    for (place, job, missing), outcome in zip(readable, trained, strict=True):
        if isinstance(outcome, Exception):
            failures[place] = str(outcome)
        elif missing:
            try:
                commit_adapter(job, outcome, config)
            except OSError as error:
                failures[place] = str(error)
        reporter.alive()
    return failures


class _Reporter:
    """Tells the queue now and then how far a worker is, which also renews its lease."""

    def __init__(self, queue: ActorHandle, worker: str) -> None:
        self._queue, self._worker = queue, worker
        self._last = time.monotonic()

    def step(self, step: int, losses: Tensor) -> None:
        """Hears of every step of a group."""
        if time.monotonic() - self._last > SECONDS_BETWEEN_REPORTS:
            self._last = time.monotonic()
            self._queue.report.remote(self._worker, step, losses.mean().item())

    def alive(self) -> None:
        """The worker is busy with something other than steps."""
        self._queue.renew.remote(self._worker)

    def finish(self, group: Group, failures: Mapping[int, str]) -> None:
        ray.get(self._queue.finish.remote(self._worker, group, failures))
