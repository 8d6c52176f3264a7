"""Train the adapters of several classes, each with the workers of the whole cluster, which share every batch.

One Ray Train run with a process group serves all of them. A worker that dies ends it; another one, with the workers
that the cluster then has, goes on from the last checkpoint.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import ray.train
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.train import TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from datadream.adapt.artifacts import commit_adapter
from datadream.adapt.worker import PhotosOf, load_trainer
from datadream.config import ExperimentConfig
from datadream.data.datasets import open_source
from datadream.run.layout import adapter_checkpoint
from datadream.run.store import RunStore
from datadream.runtime.collectives import LostPeerError, Ranks
from datadream.runtime.device import use_threads
from datadream.runtime.monitor import show, start_monitor
from datadream.runtime.progress import Progress, polled
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
from datadream.runtime.work_queue import AdapterJob

if TYPE_CHECKING:
    from torch import Tensor

    from datadream.adapt.lora_trainer import AdapterTrainer, OnStep

log = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 0.5
MAX_FRUITLESS = 3
"""Times in a row that workers may be lost without a checkpoint between."""


def train_together(
    store: RunStore,
    jobs: Sequence[AdapterJob],
    config: ExperimentConfig,
    workers: Workers,
    progress: Progress,
    before: int,
) -> list[str]:
    """Train the adapters of `jobs` that are not done, one after the other, each with as many workers as a batch has
    crops; returns those that failed, and why.

    An adapter that fails does not stop the others. `before` counts the steps of adapters that are not among them.
    Raises RuntimeError with the cause when no adapter is to blame, or when workers are lost again and again without
    getting anywhere.
    """
    fruitless, reached = 0, -1
    failures: list[str] = []
    blamed: list[AdapterJob] = []
    while missing := [job for job in jobs if job not in blamed and not _is_done(job)]:
        already = before + sum(job.steps for job in jobs if job not in missing)
        try:
            return failures + _run(store, missing, config, workers_now(workers), progress, already)
        except (TrainingFailedError, RayError) as error:
            reason = failure_text(error)
            if lost_a_worker(error):
                checkpoints = progress.done // config.cluster.checkpoint_steps
                fruitless = 1 if checkpoints > reached else fruitless + 1
                reached = max(reached, checkpoints)
                if fruitless >= MAX_FRUITLESS:
                    raise RuntimeError(f"adapter training failed: {reason}") from error
                log.warning("adapt: a worker was lost (%s); going on from the last checkpoint", reason.splitlines()[0])
                continue
            culprit = next((job for job in missing if f"{job.spec.adapter_id}: " in reason), None)
            if culprit is None:
                raise RuntimeError(f"adapter training failed: {reason}") from error
            blamed.append(culprit)
            failures.append(reason)
    return failures


def _run(
    store: RunStore,
    jobs: Sequence[AdapterJob],
    config: ExperimentConfig,
    workers: Workers,
    progress: Progress,
    before: int,
) -> list[str]:
    workers = workers.at_most(config.adapt.batch_size)
    log.info("adapt: every batch of %d adapters is shared by %d workers", len(jobs), workers.count)
    monitor = start_monitor()
    with train_storage(store) as storage, polled(lambda: show(monitor, progress, before)):
        trainer = TorchTrainer(
            _train_on_worker,
            train_loop_config={"jobs": jobs, "config": config, "workers": workers, "monitor": monitor},
            torch_config=TorchConfig(backend=collective_backend(workers)),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers.count, use_gpu=workers.use_gpu, resources_per_worker=workers.resources
            ),
            run_config=ray.train.RunConfig(name=uuid.uuid4().hex, failure_config=failures_are_ours(), **storage),
        )
        return trainer.fit().return_value


def _is_done(job: AdapterJob) -> bool:
    return RunStore(job.run_url).exists(job.marker)


def _train_on_worker(loop: dict[str, Any]) -> list[str]:
    """What every Ray Train worker runs; returns which adapters failed by themselves, and why."""
    config, workers = loop["config"], loop["workers"]
    use_threads(workers.threads)
    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    trainer = load_trainer(config, shared_worker_device(workers.use_gpu))
    failures, before = [], 0
    for job in loop["jobs"]:
        adapter = job.spec.adapter_id
        try:
            _train_and_commit(trainer, job, config, ranks, _reporter(loop["monitor"], before, ranks))
        except FloatingPointError as error:  # the same on all ranks, which go on to the next
            failures.append(f"{adapter}: {error}")
        except LostPeerError:  # not the adapter's fault
            raise
        except Exception as error:
            raise RuntimeError(f"{adapter}: {error}") from error
        before += job.steps
    return failures


def _train_and_commit(
    trainer: AdapterTrainer, job: AdapterJob, config: ExperimentConfig, ranks: Ranks, on_step: OnStep
) -> None:
    run, name = RunStore(job.run_url), adapter_checkpoint(job.spec.adapter_id)

    trained = trainer.train_together(
        job.spec,
        PhotosOf(job.spec, open_source(config.data.source)),
        ranks,
        checkpoint=run.read_bytes(name) if run.exists(name) else None,
        save=partial(run.write_bytes, name) if ranks.rank == 0 else None,
        save_every=config.cluster.checkpoint_steps,
        on_step=on_step,
    )
    if ranks.rank == 0:
        commit_adapter(job, trained, config)
        if run.exists(name):
            run.remove(name)


def _reporter(monitor: ActorHandle, before: int, ranks: Ranks) -> OnStep:
    """Tells the monitor of an adapter's steps, now and then; only rank 0 talks."""
    last = 0.0

    def report(step: int, losses: Tensor) -> None:
        nonlocal last
        if ranks.rank == 0 and time.monotonic() - last > SECONDS_BETWEEN_REPORTS:
            last = time.monotonic()
            monitor.put.remote(before + step, {"loss": losses.mean().item()})

    return report
