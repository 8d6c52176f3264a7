"""What the search over training knobs found: every trial of one run, or what each run of a table chose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from datadream.config import SETTINGS_WITHOUT_IMAGES, ExperimentConfig
from datadream.report.records import classifiers, method_of
from datadream.report.tables import Cells, column_name
from datadream.report.text import count, number
from datadream.run.layout import SearchRecord


@dataclass(frozen=True, slots=True)
class TrialTable:
    """The trials of one setting of one run."""

    setting: str
    knobs: list[str]
    rungs: list[str]
    rows: list[tuple[list[str], list[str], bool]]
    """Of each combination the values of its knobs, the validation accuracy by rung, empty in rungs that it did not
    reach, and whether it was chosen."""


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """What one run of a table chose for one setting."""

    setting: str
    shots: int
    seed: int
    images_per_class: int
    """0 where none are used."""
    knobs: list[str]
    validation: str


@dataclass(frozen=True, slots=True)
class ChoiceTable:
    """The choices of all runs, setting by setting."""

    knobs: list[str]
    rows: list[ChoiceRow]
    has_images: bool
    """Whether runs differ in their number of generated images."""


def trial_tables(cells: Cells) -> list[TrialTable]:
    """A table for each searched setting of a single run; none for a table of runs."""
    tables = []
    for name, config, search in _searches(cells) if len(cells) == 1 else ():
        by_rung = {(trial["steps"], _key(trial["knobs"])): trial["val_top1"] for trial in search.trials}
        rungs = sorted({steps for steps, _ in by_rung})
        # As they are listed, for trials come ranked; then the config's own knobs, which compete in any case.
        keys = dict.fromkeys((*map(_key, config.classify.search.combinations), *(key for _, key in by_rung)))
        rows = []
        for key in keys:
            accuracies = {steps: by_rung[steps, key] for steps in rungs if (steps, key) in by_rung}
            told = {steps: "diverged" if value is None else number(value) for steps, value in accuracies.items()}
            figures = [told.get(steps, "") for steps in rungs]
            rows.append(([_value(dict(key)[knob]) for knob in search.knobs], figures, key == _key(search.knobs)))
        tables.append(TrialTable(name, list(search.knobs), [count(steps, "step") for steps in rungs], rows))
    return tables


def choice_table(cells: Cells) -> ChoiceTable | None:
    """What each run of a table chose; None for a single run, and where nothing was searched."""
    found = list(_searches(cells))
    if len(cells) < 2 or not found:
        return None
    knobs = list(dict.fromkeys(knob for _, _, search in found for knob in search.knobs))
    order = list(dict.fromkeys(name for name, _, _ in found))
    rows = []
    for name, config, search in found:
        # Baselines are searched once for all methods and all numbers of images.
        n_images = 0 if name in SETTINGS_WITHOUT_IMAGES else config.generate.images_per_class
        values = [_value(search.knobs.get(knob)) for knob in knobs]
        rows.append(ChoiceRow(name, config.data.n_shots, config.seed, n_images, values, number(search.val_top1)))
    rows.sort(key=lambda row: (order.index(row.setting), row.shots, row.images_per_class, row.seed))
    return ChoiceTable(knobs, rows, len({row.images_per_class for row in rows} - {0}) > 1)


def _searches(cells: Cells) -> Iterator[tuple[str, ExperimentConfig, SearchRecord]]:
    """Every search of the runs, with the name of its setting and method."""
    for store, config in cells:
        for setting, found in classifiers(store).items():
            if found.search:
                name = column_name(setting, method_of(setting, config))
                yield name, config, SearchRecord.from_json(found.search)


def _key(knobs: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(knobs.items()))


def _value(value: float | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:g}"
