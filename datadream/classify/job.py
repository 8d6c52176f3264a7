"""A run whose classifiers are to be trained: what is missing, and what would fail."""

from __future__ import annotations

from dataclasses import dataclass

from datadream.classify.ingest.reader import check_published
from datadream.classify.selection import check_selection
from datadream.config import ExperimentConfig, Setting
from datadream.data.few_shot import FewShotSet
from datadream.run.layout import classifier_checkpoint, classifier_marker
from datadream.run.store import RunStore


@dataclass(frozen=True, slots=True)
class ClassifierJob:
    """One run whose classifiers are to be trained."""

    store: RunStore
    few_shot: FewShotSet
    config: ExperimentConfig
    drawn_by: RunStore | None = None
    """The run whose published images are used, the first `generate.images_per_class` of each class; None: its own."""

    @property
    def images(self) -> RunStore:
        """Where its synthetic images are published."""
        return self.drawn_by or self.store

    @property
    def missing(self) -> tuple[Setting, ...]:
        """Settings that the run does not hold yet."""
        return tuple(name for name in self.config.classify.settings if not self.store.exists(classifier_marker(name)))

    @property
    def checkpoints(self) -> list[str]:
        """The states of trainings to go on with: each changes whenever its checkpoint does."""
        paths = self.store.fs.glob(self.store.path(classifier_checkpoint("*", "*")))
        return [str(self.store.fs.ukey(path)) for path in sorted(paths)]

    @property
    def needs_synthetic(self) -> bool:
        """Whether a setting that is missing needs synthetic images."""
        return any("synthetic" in setting for setting in self.missing)


def check_job(job: ClassifierJob) -> None:
    """Find what would fail later. Raises ValueError or FileNotFoundError."""
    check_selection(job.few_shot, job.config.classify)
    if job.config.classify.batch_size < 2 and "real+synthetic" in job.missing:
        raise ValueError(
            "classify.batch_size is 1, but real+synthetic draws half of a batch from each. Use 2 or more."
        )
    if job.needs_synthetic:
        check_published(job.images, job.few_shot.class_names)
