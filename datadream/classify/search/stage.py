"""The search stage: trials are units that stream through a pool of actors, a rung of all settings of all runs at once.

A trial trains on one worker, so that no gradient is exchanged and 16 combinations keep 16 GPUs busy; a data-parallel
run for each would cost ten seconds to start, and a small classifier trains for less. What goes on to the next rung is
decided between the rungs, by `successive_halving`. Finished trials are files in the run's folder, and a start that was
killed goes on with the missing ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from datadream.classify.search.successive_halving import Search, Trial
from datadream.classify.stage import ClassifierJob, HeldRun, Images, check_job, open_images
from datadream.config import TRAINED_SETTINGS, ClassifyConfig, Setting
from datadream.run.layout import FAILED_TRIALS, TrialRecord, search_marker
from datadream.run.store import RunStore
from datadream.runtime.failures import Ledger, finish, retried
from datadream.runtime.map_units import Mapped, quiet_data, run_mapped
from datadream.runtime.progress import Listener, Reporter
from datadream.runtime.unit import Unit, titles
from datadream.runtime.workers import Workers

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """One trial of one run."""

    job: ClassifierJob
    trial: Trial


def choose_knobs(
    store: RunStore, jobs: Sequence[ClassifierJob], workers: Workers, listeners: Sequence[Listener] = ()
) -> None:
    """Search for every missing setting of the jobs that ask for it; `store` lends scratch space.

    Raises RuntimeError naming the trials that failed, after the others of their rung, or when training diverges under
    all combinations.
    """
    jobs = [job for job in jobs if job.config.classify.search.combinations and _searched(job)]
    for job in jobs:
        check_job(job)
    with quiet_data(in_order=True):
        images = {}
        for job in jobs:
            # One reader: a trial trains on one worker, which reads all images.
            if opened := open_images(job, _searched(job), n_readers=1):
                images[job.store.url] = opened[1]
        while units := [
            Unit(
                run_url=job.store.url,
                name=f"{trial.setting}, {trial.steps} steps with {trial.knobs}",
                marker=trial.marker,
                payload=TrialSpec(job, trial),
            )
            for job in jobs
            for setting in _searched(job)
            for trial in Search(job.store, setting, own_knobs(job), job.schedule(setting).steps).next_trials()
        ]:
            _run_rung(store, units, images, workers, listeners)


def own_knobs(job: ClassifierJob) -> ClassifyConfig:
    """The run's own, mirroring said: unset, it is as the data set allows."""
    if job.config.classify.augment.flip is not None:
        return job.config.classify
    return job.config.updated({"classify.augment.flip": job.few_shot.flippable}).classify


def _searched(job: ClassifierJob) -> list[Setting]:
    """Settings whose knobs are not chosen yet."""
    return [name for name in job.missing if name in TRAINED_SETTINGS and not job.store.exists(search_marker(name))]


def _run_rung(
    store: RunStore,
    units: Sequence[Unit[TrialSpec]],
    images: dict[str, Images],
    workers: Workers,
    listeners: Sequence[Listener],
) -> None:
    """Run trials to their records."""
    ledger: Ledger[tuple[str, str]] = Ledger()
    how = Mapped(load=_load, load_from=images, what="the search")
    with Reporter("search", len(units), "trial", listeners) as reporter:
        for _ in run_mapped(store, units, how, workers, ledger):
            reporter.update(reporter.done + 1, failed=len(ledger.given_up))
    names = titles(units)
    failures = [f"{names[key]}: {reason}" for key, reason in ledger.given_up.items()]
    finish(store, FAILED_TRIALS, failures, f"{len(failures)} of {len(units)} trials of the search")


def _load(images: dict[str, Images], device: torch.device | None) -> Callable[[Unit[TrialSpec]], None]:
    """What an actor does: it keeps what its last trial loaded, which the next mostly needs too."""
    from datadream.classify.setting import SettingTrainer
    from datadream.runtime.collectives import ALONE

    assert device is not None
    held = HeldRun(SettingTrainer, images, device, ALONE)

    def run(unit: Unit[TrialSpec]) -> None:
        job, trial = unit.payload.job, unit.payload.trial
        # Without test photos: a trial cannot look at them.
        trainer, synthetic = held.of(replace(job, few_shot=replace(job.few_shot, test=())), trial.setting)
        tried = trainer.with_knobs(trial.schedule(job.schedule(trial.setting)) | trial.knobs)
        found: dict[str, Any] = {"val_top1": None}
        try:
            found = tried.choose(trial.setting, synthetic, lambda step, reading: None)
        except FloatingPointError as error:  # a result like any other: these knobs are no good
            found["diverged"] = str(error)
        record = TrialRecord(number=trial.number, knobs=trial.knobs, steps=trial.steps, **found)
        retried(lambda: job.store.write_json(trial.marker, record.to_json()), unit.name)

    return run
