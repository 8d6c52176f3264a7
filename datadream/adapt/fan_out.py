"""Train many adapters with one Ray Train run whose workers lease them from a queue.

Work-stealing and not one trainer per adapter, because a Ray Train start costs seconds and a small adapter costs few.
Workers share no process group: `has_replica_groups` makes Ray replace a dead worker alone, without disturbing the
others. An adapter counts as done when its marker is committed, so a second result for the same adapter is harmless.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from datadream.adapt.steps import n_steps
from datadream.cluster import Workers, failure_text, train_storage
from datadream.config import ExperimentConfig
from datadream.data.datasets import open_source
from datadream.methods.base import AdapterSpec
from datadream.progress import Progress, polled
from datadream.run_store import RunStore, adapter_marker, adapter_weights, library_versions, sha256, spec_hash

if TYPE_CHECKING:
    from datadream.adapt.loop import AdapterTrainer, TrainedAdapter

log = logging.getLogger(__name__)

WORKER_FAILURES = 3
STEPS_BETWEEN_REPORTS = 10


@dataclass(frozen=True, slots=True)
class AdapterJob:
    """One adapter and the run that it belongs to."""

    run_url: str
    spec: AdapterSpec

    @property
    def marker(self) -> str:
        return adapter_marker(self.spec.adapter_id)

    def is_committed(self) -> bool:
        return RunStore(self.run_url).exists(self.marker)


def train_adapters(store: RunStore, jobs: Sequence[AdapterJob], config: ExperimentConfig, workers: Workers) -> None:
    """Train every adapter that is not committed yet, longest first.

    An adapter that fails does not stop the others. Raises RuntimeError naming those that failed and why, or those that
    are still missing after workers were replaced.
    """
    steps = {job: n_steps(job.spec, config.adapt) for job in jobs}
    todo = sorted((job for job in jobs if not job.is_committed()), key=lambda job: -steps[job])
    if not todo:
        return
    total, to_do = sum(steps.values()), sum(steps[job] for job in todo)
    log.info("adapt: %d of %d adapters to train, %d steps", len(todo), len(jobs), to_do)
    queue = ray.remote(num_cpus=0)(AdapterQueue).remote(todo)
    workers = workers.at_most(len(todo))
    with (
        _plain_errors(),
        train_storage(store) as storage,
        Progress("adapt", total, "step", done=total - to_do) as progress,
    ):
        trainer = DataParallelTrainer(
            _lease_and_train,
            train_loop_config={"queue": queue, "config": config, "workers": workers},
            backend_config=IndependentWorkers(),
            scaling_config=ScalingConfig(
                num_workers=workers.count, use_gpu=workers.use_gpu, resources_per_worker=workers.resources
            ),
            run_config=RunConfig(failure_config=FailureConfig(max_failures=WORKER_FAILURES), **storage),
        )
        with polled(lambda: progress.update(total - to_do + ray.get(queue.finished_steps.remote()))):
            trainer.fit()
    failures = ray.get(queue.failures.remote())
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(todo)} adapters failed: {'; '.join(failures[:5])}")
    missing = [job.spec.adapter_id for job in todo if not job.is_committed()]
    if missing:
        raise RuntimeError(
            f"{len(missing)} adapters were not trained: {', '.join(missing[:5])}. Run the same command again."
        )


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except TrainingFailedError as error:
        raise RuntimeError(f"adapter training failed: {failure_text(error)}") from error


class AdapterQueue:
    """Hands out adapters and counts finished steps; a Ray actor that outlives any worker."""

    def __init__(self, jobs: Sequence[AdapterJob]) -> None:
        self._waiting = list(jobs)
        self._leased: dict[int, AdapterJob] = {}
        self._steps: dict[int, int] = {}
        self._finished_steps = 0
        self._failures: list[str] = []

    def lease(self, rank: int) -> AdapterJob | None:
        """The next adapter for a worker, None when none waits. A worker that was replaced first gets what it held."""
        lost = self._leased.pop(rank, None)
        if lost is not None:
            self._waiting.insert(0, lost)
        self._steps[rank] = 0
        if self._waiting:
            self._leased[rank] = self._waiting.pop(0)
        return self._leased.get(rank)

    def report(self, rank: int, step: int) -> None:
        self._steps[rank] = step

    def finish(self, rank: int, steps: int) -> None:
        del self._leased[rank]
        self._finished_steps += steps
        self._steps[rank] = 0

    def fail(self, rank: int, reason: str) -> None:
        """Give up the adapter that a worker holds: what failed by itself would fail again."""
        del self._leased[rank]
        self._failures.append(reason)

    def failures(self) -> list[str]:
        return self._failures

    def finished_steps(self) -> int:
        """Steps done in all, those of adapters in training included."""
        return self._finished_steps + sum(self._steps.values())


class _IndependentBackend(Backend):
    has_replica_groups = True


@dataclass
class IndependentWorkers(BackendConfig):
    """Workers that need no process group and fail alone."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _IndependentBackend


def commit_adapter(job: AdapterJob, trained: TrainedAdapter, config: ExperimentConfig) -> None:
    """Write an adapter's weights, then the marker that makes it count."""
    store = RunStore(job.run_url)
    store.write_bytes(adapter_weights(job.spec.adapter_id), trained.weights)
    spec = asdict(job.spec)
    marker = {
        "adapter_id": job.spec.adapter_id,
        "spec": spec,
        "spec_sha256": spec_hash(
            [spec, config.adapt.model_dump(mode="json"), config.diffusion.model_dump(mode="json")]
        ),
        "weights_sha256": sha256(trained.weights),
        "base_model": config.diffusion.model,
        "rank": config.adapt.rank,
        "steps": trained.steps,
        "losses": trained.losses,
        "vae_encodes": trained.vae_encodes,
        "seconds": round(trained.seconds, 3),
        "versions": library_versions(),
    }
    store.write_json(job.marker, marker)


def _lease_and_train(loop: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    queue, config, workers = loop["queue"], loop["config"], loop["workers"]
    rank = ray.train.get_context().get_world_rank()
    trainer = _load_trainer(config, workers)
    source = open_source(config.data.source)
    while (job := ray.get(queue.lease.remote(rank))) is not None:
        try:
            images = [source.read(photo.key) for photo in job.spec.photos]
            trained = trainer.train(job.spec, images, _step_reporter(queue, rank))
            commit_adapter(job, trained, config)
        except (ArithmeticError, ValueError, OSError) as error:
            log.exception("adapter %r failed", job.spec.adapter_id)
            ray.get(queue.fail.remote(rank, f"{job.spec.adapter_id}: {error}"))
        else:
            ray.get(queue.finish.remote(rank, trained.steps))


def _load_trainer(config: ExperimentConfig, workers: Workers) -> AdapterTrainer:
    # Imported here, not above: diffusers takes seconds, and driver, controller and queue import this module as well.
    import torch

    from datadream.adapt.loop import AdapterTrainer
    from datadream.device import dtype_of, use_threads, worker_device
    from datadream.models.diffusion import load_pipeline

    use_threads(workers.threads)
    device = worker_device(workers.use_gpu)
    dtype = dtype_of(config.adapt.precision, device, on_cuda=torch.bfloat16)
    pipeline = load_pipeline(config.diffusion.model, config.diffusion.revision, device, dtype)
    return AdapterTrainer(pipeline, config.adapt, config.diffusion.resolution)


def _step_reporter(queue: Any, rank: int) -> Callable[[int], None]:
    def report(step: int) -> None:
        if step % STEPS_BETWEEN_REPORTS == 0:
            queue.report.remote(rank, step)

    return report
