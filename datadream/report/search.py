"""What the search over training knobs found: every trial of one run, or what each run of a table chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datadream.config import ExperimentConfig
from datadream.report.records import classifiers, images_of, method_of
from datadream.report.tables import Cells, column_name
from datadream.report.text import count, number

DIVERGED = "diverged"


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One combination of knobs."""

    knobs: list[str]
    figures: list[str]
    """Validation accuracy by rung; empty in rungs that it did not reach."""
    chosen: bool


@dataclass(frozen=True, slots=True)
class TrialTable:
    """The trials of one setting of one run."""

    setting: str
    knobs: list[str]
    rungs: list[str]
    rows: list[TrialRow]


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
    if len(cells) > 1:
        return []
    return [
        _trial_table(setting, found["search"], config)
        for store, config in cells
        for setting, found in classifiers(store).items()
        if found.get("search")
    ]


def choice_table(cells: Cells) -> ChoiceTable | None:
    """What each run of a table chose; None for a single run, and where nothing was searched."""
    found = [
        (setting, config, measured["search"])
        for store, config in cells
        for setting, measured in classifiers(store).items()
        if measured.get("search")
    ]
    if len(cells) < 2 or not found:
        return None
    names = list(dict.fromkeys(name for _, _, search in found for name in search["knobs"]))
    order = list(dict.fromkeys(column_name(setting, method_of(setting, config)) for setting, config, _ in found))
    rows = [
        ChoiceRow(
            column_name(setting, method_of(setting, config)),
            config.data.n_shots,
            config.seed,
            images_of(setting, config),
            [_value(search["knobs"].get(name)) for name in names],
            number(search["val_top1"]),
        )
        for setting, config, search in found
    ]
    rows.sort(key=lambda row: (order.index(row.setting), row.shots, row.images_per_class, row.seed))
    return ChoiceTable(names, rows, len({row.images_per_class for row in rows} - {0}) > 1)


def _trial_table(setting: str, search: dict[str, Any], config: ExperimentConfig) -> TrialTable:
    """Combinations as they are listed (trials come ranked), then the config's own: they compete in any case."""
    trials = {(trial["steps"], _key(trial["knobs"])): trial["val_top1"] for trial in search["trials"]}
    rungs = sorted({steps for steps, _ in trials})
    names, chosen = list(search["knobs"]), _key(search["knobs"])
    listed = map(_key, config.classify.search.combinations)
    rows = [
        TrialRow(
            [_value(dict(key)[name]) for name in names],
            [_figure(trials, (steps, key)) for steps in rungs],
            chosen=key == chosen,
        )
        for key in dict.fromkeys((*listed, *(key for _, key in trials)))
    ]
    return TrialTable(
        column_name(setting, method_of(setting, config)),
        names,
        [count(steps, "step") for steps in rungs],
        rows,
    )


def _key(knobs: dict[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(knobs.items()))


def _figure(trials: dict[Any, float | None], key: Any) -> str:
    if key not in trials:
        return ""
    return DIVERGED if trials[key] is None else number(trials[key])


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"
