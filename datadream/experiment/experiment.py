"""The stages in order over a list of runs: the one face that the command line, jobs/ and Python drivers share.

    Experiment(recipes.digits(), run="runs/demo").run()

Every stage does only what is missing, so a run that was killed anywhere goes on when it is started again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from datadream import recipes
from datadream.config import ExperimentConfig, located
from datadream.experiment.checks import RefusedError, check_inputs, check_models
from datadream.experiment.status import StageStatus, stage_status
from datadream.hashing import sha256
from datadream.paper.reproductions import published
from datadream.run.cell import Cell, cells_of
from datadream.run.layout import METRICS, STAGES, classifier_marker
from datadream.run.store import RunStore

if TYPE_CHECKING:
    from datadream.adapt.stage import AdapterUnit
    from datadream.experiment.driver import Driver
    from datadream.images.analysis import Judge, Recognise


class Experiment:
    """One run in one folder, or with `config.grid` a table of runs in its sub-folders."""

    def __init__(self, config: ExperimentConfig, run: str) -> None:
        """`run` is a folder or any fsspec URL; nothing is read or written yet. Paths in `config` count from the
        current directory."""
        self.config, self.store = located(config), RunStore(run)
        self._is_checked = False

    @cached_property
    def cells(self) -> list[Cell]:
        """The single runs: this one, or the table's."""
        return cells_of(self.config, self.store)

    def run(self, until: str | None = None) -> list[dict[str, Any]]:
        """Every stage in order, then the report; returns the accuracy records of metrics.json.

        With `until`, which is one of STAGES, no stage after that one and no report, and returns none.
        """
        if until not in (None, *STAGES):
            raise ValueError(f"until is {until!r}: expected one of {', '.join(STAGES)}.")
        self.check_inputs()
        # A run that has all of it starts no Ray, which takes 3 s or more, and needs no lock.
        if not self.is_finished():
            with self._driving() as driver:
                if self.config.images_from is None and until == "adapt":
                    driver.adapt()
                elif self.config.images_from is None:
                    driver.adapt_and_generate()
                if until in (None, "classify"):
                    driver.classify()
        return [] if until else self.report()

    def adapt(self) -> None:
        """Train the adapters that are missing."""
        self._check_generates()
        self.check_inputs()
        with self._driving() as driver:
            driver.adapt()

    def generate(self) -> None:
        """Generate the images that are missing and publish them; raises ValueError where adapters are missing."""
        self._check_generates()
        self.check_inputs()
        from datadream.runtime.unit import pending

        if missing := pending(self._adapter_units()):
            raise RefusedError(
                f"{len(missing)} adapters are not trained yet, such as {missing[0].name!r}. Run adapt first."
            )
        with self._driving() as driver:
            driver.generate()

    def classify(self) -> None:
        """Train the classifiers that are missing."""
        self.check_inputs()
        with self._driving() as driver:
            driver.classify()

    def report(self) -> list[dict[str, Any]]:
        """Write metrics.json and report/index.html from what is there; returns the records. Needs no lock: it may
        stand beside a running driver, and clears nothing."""
        from datadream.report.page import write_report

        self.check_inputs()
        cells = [(cell.store, cell.config) for cell in self.cells]
        reported = published(config for _, config in cells)
        write_report(self.store, cells, self.config, recipes.command(self.config), reported)
        return self.store.read_json(METRICS)

    def images(
        self, model: str | None = None, pretrained: str | None = None, against: str = "held-out"
    ) -> list[dict[str, Any]]:
        """Compare the images with photos by the features of a CLIP, the classifier's own if none is given, into
        images.json of each run; then the report.

        `against` is held-out (photos that are neither shots nor test photos), train (these with the shots) or test.
        """
        self.check_inputs()
        from datadream.images.analysis import Comparison, analyse, check_analysis

        own = self.config.classify
        if pretrained and not model:
            raise RefusedError(f"--pretrained is {pretrained!r}, but no --model is given. Name both, or none.")
        how = Comparison(model, pretrained, against) if model else Comparison(own.model, own.pretrained, against)
        try:
            check_analysis(self.cells, how)
        except (ValueError, FileNotFoundError) as error:
            # What is wrong with a model is said in the words of the config, which is not where this one was named.
            raise RefusedError(str(error).replace("classify.", "--") if model else str(error)) from error
        analyse(self.cells, how, self._judge_of)
        return self.report()

    def _judge_of(self, cell: Cell) -> Judge | None:
        """The classifier of a run's photos alone; in a table it may be that of the baselines of the same photos."""
        from datadream.classify.predictor import load_classifier
        from datadream.images.analysis import Judge

        def load(url: str) -> Recognise:
            classifier = load_classifier(url, "real")
            return lambda images: [next(iter(found)) for found in classifier.predict(images)]

        alike = (each for each in self.cells if each.few_shot.shots == cell.few_shot.shots)
        for store in (each.store for each in (cell, *alike)):
            if store.exists(marker := classifier_marker("real")):
                return Judge(sha256(store.read_bytes(marker)), partial(load, store.url))
        return None

    def check(self) -> None:
        """Find what would fail later, before any work starts and anything is written.

        Raises ValueError or FileNotFoundError naming the value, what was expected and what to do.
        """
        from datadream.runtime.session import check_workers

        self.check_inputs()
        check_workers(self.config.cluster)
        check_models(self.config, self.cells)

    def check_inputs(self) -> None:
        """The quick part of `check`, once for an experiment; the stages look at the models while Ray starts."""
        if not self._is_checked:
            check_inputs(self.config, self.store, self.cells)
            self._is_checked = True

    def is_finished(self) -> bool:
        """Whether every adapter, image and classifier is committed, and the adapters are what was written."""
        from datadream.adapt.artifacts import find_damaged

        all_there = all(stage.is_done for stage in self.status())
        return all_there and not find_damaged(self._adapter_units())

    def status(self) -> list[StageStatus]:
        """How far each stage is, from the run's files alone."""
        return stage_status(self.store, self.cells)

    def _driving(self) -> AbstractContextManager[Driver]:
        from datadream.experiment.driver import driving
        from datadream.runtime.session import check_workers

        # Here, where there is work: a report, and a run that is finished, need none.
        try:
            check_workers(self.config.cluster)
        except ValueError as error:
            raise RefusedError(str(error)) from error
        return driving(self.config, self.store, self.cells, self._adapter_units())

    def _adapter_units(self) -> list[AdapterUnit]:
        from datadream.adapt.stage import units_of

        return units_of(self.cells)

    def _check_generates(self) -> None:
        if self.config.images_from is not None:
            raise RefusedError(
                f"run {self.store.url!r} uses the images of run {self.config.images_from!r}: it adapts and generates "
                "nothing. Use classify."
            )
