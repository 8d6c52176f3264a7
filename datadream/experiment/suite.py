"""Many runs by name: all recipes below one, each with every seed, and the table that they make together.

    Suite("paper/table1", "runs", datasets=["dtd", "eurosat"], seeds=[0, 1, 2]).run()

Every one is an ordinary run in <folder>/<recipe>/seed<N>, so a suite that was killed anywhere goes on, seeds and data
sets are added later, and tables share the runs that they have in common.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datadream.config import ExperimentConfig, nearest
from datadream.costs.constants import Cluster
from datadream.costs.needs import Planned, needs, place_of
from datadream.data.known import KNOWN
from datadream.experiment.checks import check_folder
from datadream.experiment.experiment import Experiment
from datadream.paper.reproductions import Reproduction, below, reproductions
from datadream.recipes import by_name
from datadream.report.suite import Place, text_tables, write_suite
from datadream.run.cell import cells_of
from datadream.run.layout import CONFIG, METRICS, PAGE
from datadream.run.store import RunStore
from datadream.runtime.session import check_workers

log = logging.getLogger(__name__)

SEEDS = (0, 1, 2)
"""Of the paper: three."""
OWN_OPTIONS = {"seed": "--seeds", "method": "--methods", "data.dataset": "--datasets", "images_from": "--run"}
"""Knobs that a suite sets for each of its runs, and what to say in their place."""


@dataclass(frozen=True, slots=True)
class SuiteRun:
    """One run of a suite: a recipe with a seed."""

    recipe: str
    seed: int
    config: ExperimentConfig
    """As it would be alone, generating its own images."""
    images_of: str | None
    """The name of the run whose images it is trained on."""

    @property
    def name(self) -> str:
        """Its folder below the suite's."""
        return _run_name(self.recipe, self.seed)


class Suite:
    """All recipes below a name, each with every seed, in one folder."""

    def __init__(
        self,
        name: str,
        folder: str,
        *,
        datasets: Sequence[str] = (),
        methods: Sequence[str] = (),
        seeds: Sequence[int] = SEEDS,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        """`datasets` and `methods` (a table's rows) choose among the recipes; none: all. `changes` are dotted knobs of
        every run; data.source is the folder in which each data set lies.

        Raises ValueError for a name, data set or method that is not there, and for knobs that differ from run to run.
        """
        self.name, self.store = name.strip("/"), RunStore(folder)
        for knob in changes or {}:
            if knob in OWN_OPTIONS:
                raise ValueError(f"unexpected {knob}: a suite sets it for each run. Use {OWN_OPTIONS[knob]}.")
        self._asked = _chosen(self.name, datasets, methods)
        self._seeds = tuple(dict.fromkeys(seeds))
        if not self._seeds:
            raise ValueError("no seeds: a suite needs one at least, such as --seeds 0,1,2.")
        self._changes = dict(changes or {})
        recipes: list[str] = []
        for each in self._asked.values():
            # Runs are carried out in this order: the one that generates the images comes before what takes them.
            source = reproductions()[each.run].images_of
            recipes += [each.run] if source is None else [source, each.run]
        self.runs = [self._run(recipe, seed) for recipe in dict.fromkeys(recipes) for seed in self._seeds]

    def check(self) -> None:
        """Find what would fail later in any run, before the first one starts; raises as `Experiment.check_inputs`."""
        # Those that are done read no photos: their tables can be drawn where none are.
        to_do = [run for run in self.runs if not self.store.child(run.name).exists(METRICS)]
        asked = {(run.config.data.dataset, run.config.data.source) for run in to_do}
        missing = {
            source: sorted(n for n, s in asked if n and s == source and not place_of(n, s)) for _, source in asked
        }
        for source, names in missing.items():
            if names:  # whoever lacks several data sets is told of all at once
                raise FileNotFoundError(
                    f"{', '.join(KNOWN[name].title for name in names)} not in {source!r}, where data sets lie as they "
                    "were unpacked. Set data.source=FOLDER, choose others with --datasets, or see --check."
                )
        if to_do:
            check_workers(self.runs[0].config.cluster)
        looked_at = set()
        # Runs of one data set and seed share their photos, which are read once; those that generate need most.
        # Those that are done need no generator any more, and say nothing of it.
        for run in sorted(self.runs, key=lambda run: (run not in to_do, run.config.method == "none")):
            # The images of another run, which it is to be trained on, may not be there yet.
            is_begun = self.store.child(run.name).exists(CONFIG)
            experiment = self._experiment(run, takes_images=is_begun)
            photos = run.config.data, run.seed, run.config.grid.n_shots
            try:
                if photos in looked_at:
                    check_folder(experiment.config, experiment.store)
                else:
                    experiment.check_inputs()
            except (ValueError, FileNotFoundError) as error:
                kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
                raise kind(f"{run.name}: {error}") from error
            looked_at.add(photos)

    def run(self) -> str:
        """Carry out every run that is not finished, drawing the tables after each; returns them as text.

        A run that fails is named, and the others go on. Raises RuntimeError in the end where any failed.
        """
        self.check()
        failed: dict[str, str] = {}
        text = ""
        for number, run in enumerate(self.runs, start=1):
            log.info("run %d of %d: %s", number, len(self.runs), run.name)
            try:
                if run.images_of in failed:
                    raise RuntimeError(f"it takes the images of {run.images_of}, which failed")
                self._experiment(run).run()
            except Exception as error:  # whatever it is, it is this run's alone
                # Ray's text for a task's error is the whole remote traceback; `cause` is what the task raised.
                failed[run.name] = str(getattr(error, "cause", None) or error) or type(error).__name__
                log.warning("%s failed: %s", run.name, failed[run.name])
            text = self.report()
        if failed:
            # The first line of a stage's failure says how many units failed, and the second why.
            short = {name: " ".join(map(str.strip, said.splitlines()[:2])) for name, said in failed.items()}
            reasons = "\n".join(f"  {name}: {said}" for name, said in short.items())
            raise RuntimeError(f"{len(failed)} of {len(self.runs)} runs failed; the others are done.\n{reasons}")
        return text

    def report(self) -> str:
        """Write the tables from what is there; returns them as text."""
        places = []
        for asked, each in self._asked.items():
            cells = []
            for seed in self._seeds:
                experiment = self._experiment(self._run(each.run, seed))
                cells += [(cell.store, cell.config) for cell in cells_of(experiment.config, experiment.store)]
            name = asked.removesuffix(f"/{each.row}").removesuffix(f"/{each.dataset}")
            places.append(Place(name=name, table=each.table, dataset=each.dataset, row=each.row, cells=cells))
        return text_tables(write_suite(self.store.child(self.name), self.name, places))

    @property
    def page(self) -> str:
        """Where the tables are shown."""
        return self.store.child(self.name).url_of(PAGE)

    def needs(self, cluster: Cluster) -> str:
        """What the runs need before they can start, in words, without reading a photo."""
        return needs([Planned(run.config, takes_images=run.images_of is not None) for run in self.runs], cluster)

    def _run(self, recipe: str, seed: int) -> SuiteRun:
        each = reproductions()[recipe]
        changes = self._changes | {"seed": seed}
        images_of = _run_name(each.images_of, seed) if each.images_of else None
        return SuiteRun(recipe, seed, by_name(recipe).updated(changes), images_of)

    def _experiment(self, run: SuiteRun, takes_images: bool = True) -> Experiment:
        """A run in its folder; without `takes_images`, as it would be with images of its own."""
        config = run.config
        if takes_images and run.images_of is not None:
            config = config.updated({"images_from": self.store.child(run.images_of).url})
        return Experiment(config, self.store.child(run.name).url)


def _run_name(recipe: str, seed: int) -> str:
    return f"{recipe}/seed{seed}"


def _chosen(name: str, datasets: Sequence[str], methods: Sequence[str]) -> dict[str, Reproduction]:
    """The recipes at and below a name, of these data sets and rows."""
    rows = below(name)
    if not rows:
        # Of every recipe the names above it, which are suites; none has nine parts.
        parents = {"/".join(parts[:n]) for recipe in reproductions() if (parts := recipe.split("/")) for n in range(9)}
        raise ValueError(f"unknown suite {name!r}. {nearest(name, sorted(parents - {''}))}".strip())
    for what, asked, known in (
        ("data set", datasets, {each.dataset for each in rows.values()}),
        ("method", methods, {each.row for each in rows.values()}),
    ):
        for word in asked:
            if word not in known:
                raise ValueError(f"{name} has no {what} {word!r}. {nearest(word, sorted(known))}".strip())
    chosen = {
        recipe: each
        for recipe, each in rows.items()
        if (not datasets or each.dataset in datasets) and (not methods or each.row in methods)
    }
    if not chosen:
        raise ValueError(f"{name} has no run of these methods on these data sets. See `datadream recipes {name}`.")
    return chosen
