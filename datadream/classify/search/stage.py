"""Choose each setting's knobs of training on validation photos, with Ray Tune.

A trial trains on one worker of the stage, so that as many trials run at once as Ray Train would have workers, and no
gradient is exchanged: 16 combinations keep 16 GPUs busy. (A Ray Train run for each trial would cost ten seconds to
start, and a small classifier trains for less.) One Tune run serves a rung of all settings of all runs of a table. Its
actors are reused, so that each loads CLIP and decodes a run's images once, and a lost one costs its trial alone. What
goes on to the next rung is decided between the runs, by `halving`: Tune's own schedulers decide by what happens to be
done. Finished trials are files in the run's folder, and a start that was killed goes on with the missing ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray.data
from ray import tune

from datadream.classify.ingest.feed import published_images, shuffle_buffer, synthetic_images
from datadream.classify.ingest.reader import quiet_ordered_data
from datadream.classify.job import ClassifierJob, check_job
from datadream.classify.search.successive_halving import Search, Trial, search_marker
from datadream.config import TRAINED_SETTINGS
from datadream.run.store import RunStore
from datadream.runtime.collectives import ALONE
from datadream.runtime.device import use_threads, worker_device
from datadream.runtime.progress import Progress
from datadream.runtime.session import Workers, train_storage

MAX_RESTARTS = 3
"""Times that a trial begins anew after losing its worker; errors of our own making are never retried."""
TUNE_ENVIRONMENT = {
    # A trial's relative paths are the driver's.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Tune would take Ctrl-C for itself and return as if all was well.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Our own records say what there is to say.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Only Tune's older output is silent when it is told to be.
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True, slots=True)
class _Task:
    """What a worker is told of a trial."""

    job: ClassifierJob
    trial: Trial
    images: str
    """Name of the job's images; empty when it has none."""


@dataclass(frozen=True, slots=True)
class _Images:
    """A run's synthetic images: all rows, how many, and the shuffle buffer when they stream."""

    rows: ray.data.Dataset
    n: int
    buffer: int


def choose_knobs(store: RunStore, jobs: Sequence[ClassifierJob], workers: Workers) -> None:
    """Search for every missing setting of the jobs that ask for it; Ray must be connected. `store` lends it space.

    Raises RuntimeError with the cause when a trial fails, or when training diverges under all combinations.
    """
    jobs = [job for job in jobs if job.config.classify.search.combinations]
    if not any(_searched(job) for job in jobs):
        return
    for job in jobs:
        check_job(job)
    with quiet_ordered_data():
        images = _published(jobs)
        while tasks := [
            _Task(job, trial, str(number) if number in images else "")
            for number, job in enumerate(jobs)
            for setting in _searched(job)
            for trial in Search(job.store, setting, job.config.classify).next_trials()
        ]:
            _run_rung(store, tasks, {str(number): found for number, found in images.items()}, workers)


def _searched(job: ClassifierJob) -> list[str]:
    """Settings whose knobs are not chosen yet."""
    return [name for name in job.missing if name in TRAINED_SETTINGS and not job.store.exists(search_marker(name))]


def _published(jobs: Sequence[ClassifierJob]) -> dict[int, _Images]:
    """Synthetic images by the number of their job, decoded once for all workers where they fit in memory."""
    found = {}
    for number, job in enumerate(jobs):
        published = published_images(job) if _searched(job) else None
        if published:
            buffer = shuffle_buffer(published, n_readers=1)
            rows = published.rows if buffer else published.rows.materialize()
            found[number] = _Images(rows, published.n, buffer)
    return found


def _run_rung(store: RunStore, tasks: Sequence[_Task], images: dict[str, _Images], workers: Workers) -> None:
    """Run trials to their records."""
    with (
        Progress("search", len(tasks), "trial", store) as progress,
        train_storage(store) as storage,
        _environment(TUNE_ENVIRONMENT),
    ):
        trainable = tune.with_parameters(_Worker, tasks=tasks, images=images, workers=workers)
        results = tune.Tuner(
            tune.with_resources(trainable, workers.resources),
            param_space={"task": tune.grid_search(list(range(len(tasks))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=workers.at_most(len(tasks)).count, reuse_actors=True),
            run_config=tune.RunConfig(
                verbose=0,
                callbacks=[_ShowProgress(progress)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
                **storage,
            ),
        ).fit()
    failures = [str(result.error or result.metrics.get("failure") or "") for result in results]
    said = next(filter(None, failures), "")
    if said or not all(task.job.store.exists(task.trial.marker) for task in tasks):
        raise RuntimeError(f"the search failed: {said or 'Ray Tune ended before all trials were done'}")


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables for the length of a block; Tune passes its own on to its actors."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class _ShowProgress(tune.Callback):
    """Counts finished trials."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._progress.update(self._progress.done + 1)


class _Worker(tune.Trainable):
    """Tune actor: holds what its last trial loaded, which the next mostly needs too."""

    def setup(
        self, config: dict[str, Any], tasks: Sequence[_Task], images: dict[str, _Images], workers: Workers
    ) -> None:
        use_threads(workers.threads)
        self._tasks, self._images = tasks, images
        self._device = worker_device(workers.use_gpu)
        self._loaded: tuple[Any, ...] = ("", None, None)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        """The whole trial. What it raises is returned: Tune would take it for a lost worker, and begin anew."""
        task = self._tasks[self.config["task"]]
        try:
            task.job.store.write_json(task.trial.marker, self._record(task))
        except Exception as error:
            return {"done": True, "failure": f"{type(error).__name__}: {error}"}
        return {"done": True}

    def _record(self, task: _Task) -> dict[str, Any]:
        from datadream.classify.train_state import DivergedError

        trial, record = task.trial, {"val_top1": None}
        trainer, synthetic = self._load(task)
        knobs = trial.schedule(task.job.config.classify) | trial.knobs
        try:
            record = trainer.with_knobs(knobs).choose(trial.setting, synthetic, lambda step, reading: None)
        except DivergedError as error:
            record["diverged"] = str(error)
        return {"number": trial.number, "knobs": trial.knobs, "steps": trial.steps} | record

    def _load(self, task: _Task) -> tuple[Any, ...]:
        """The trainer and the synthetic images of a task's run."""
        from datadream.classify.setting import SettingTrainer

        url, trainer, synthetic = self._loaded
        if url != task.job.store.url:
            # No test photos: a trial cannot look at them.
            blind = replace(task.job.few_shot, test=())
            trainer = SettingTrainer(task.job.config, blind, self._device, ALONE)
            found = self._images.get(task.images)
            shard, n, buffer = (found.rows.iterator(), found.n, found.buffer) if found else (None, 0, 0)
            synthetic = synthetic_images(task.job, shard, n, buffer, self._device, ALONE)
            self._loaded = (task.job.store.url, trainer, synthetic)
        return trainer, synthetic
