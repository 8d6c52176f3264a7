"""The page's tables, ready to print: what is in each cell and which figure stands out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from datadream.config import ExperimentConfig, flatten, knobs, public_config
from datadream.report.records import (
    METHODS,
    NO_METHOD,
    SETTINGS,
    Row,
    Summary,
    classifiers,
    mean_and_sd,
    method_of,
    selection_totals,
)
from datadream.report.text import count, number, shown_sd, signed
from datadream.run.layout import stage_seconds
from datadream.run.store import RunStore

Cells = list[tuple[RunStore, ExperimentConfig]]

MAX_CLASS_ROWS = 30
MAX_CONFUSION = 20
"""Classes of a confusion matrix that can be read on a page."""
FIGURES = ("top1", "top5", "macro", "ece")
REASONS = {"label": "CLIP sees another class", "copy": "Copies a shot", "redundant": "Others cover the class better"}
"""Why an image is left out, in words."""
STAGES = ("adapt", "generate", "classify")


@dataclass(frozen=True, slots=True)
class FigureCell:
    """A mean and its spread, apart so that the page can line them up."""

    mean: str
    sd: str = ""
    best_of_setting: bool = False
    best_of_all: bool = False


@dataclass(frozen=True, slots=True)
class AccuracyRow:
    setting: str
    method: str
    starts_setting: bool
    trained_on: str
    figures: list[FigureCell]
    validation: FigureCell | None


@dataclass(frozen=True, slots=True)
class GainRow:
    method: str
    figures: list[FigureCell]


@dataclass(frozen=True, slots=True)
class FurtherRow:
    """Figures beside the mean accuracy."""

    name: str
    figures: list[tuple[str, str]]
    """Top-1, top-5, macro accuracy and calibration error, each with its interval; empty where none is known."""


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often photos of a class (row) were taken for another (column), for one classifier of one run."""

    setting: str
    run: str
    names: list[str]
    rows: list[list[int]]


@dataclass(frozen=True, slots=True)
class SelectionRow:
    """What filters did to the images of one run."""

    name: str
    candidates: int
    left_out: list[int]
    """By reason, in the order of REASONS."""
    published: int
    worst: str


@dataclass(frozen=True, slots=True)
class ClassRow:
    name: str
    values: list[float | None]


@dataclass(frozen=True, slots=True)
class ClassTable:
    """Accuracy of each class, means over seeds at one number of shots."""

    columns: list[tuple[str, str]]
    """Setting and method."""
    rows: list[ClassRow]
    n_classes: int
    sorted_by: str
    """Column whose worst classes are shown when not all are; empty when all are."""
    shots: int


@dataclass(frozen=True, slots=True)
class StageRow:
    name: str
    seconds: list[float | None]
    total: float


@dataclass(frozen=True, slots=True)
class Knob:
    name: str
    value: str
    help: str
    changed: bool


def run_name(config: ExperimentConfig) -> str:
    return f"{config.method}, {count(config.data.n_shots, 'shot')}, seed {config.seed}"


def column_name(setting: str, method: str) -> str:
    return setting if method == NO_METHOD else f"{setting}, {method}"


def accuracy_rows(summary: Summary) -> list[AccuracyRow]:
    """A row for each setting and method, a figure for each number of shots."""
    rows: list[AccuracyRow] = []
    for setting, method in dict.fromkeys((row.setting, row.method) for row in summary.rows):
        members = [summary.find(method, setting, shots) for shots in summary.shots]
        known = [row for row in members if row is not None]
        has_one = len(summary.shots) == 1
        rows.append(
            AccuracyRow(
                setting=setting,
                method=method,
                starts_setting=not rows or rows[-1].setting != setting,
                trained_on=_trained_on(known[-1], many_shots=not has_one),
                figures=[_figure(row, summary) for row in members],
                validation=_validation(known[0]) if has_one else None,
            )
        )
    return rows


def gain_rows(summary: Summary) -> list[GainRow]:
    by_method: dict[str, dict[int, FigureCell]] = {
        method: {} for method in dict.fromkeys(gain.method for gain in summary.gains)
    }
    for gain in summary.gains:
        by_method[gain.method][gain.shots] = FigureCell(signed(gain.mean), _sd(gain.sd))
    return [
        GainRow(method, [gains.get(shots, FigureCell("")) for shots in summary.shots])
        for method, gains in by_method.items()
    ]


def further_rows(summary: Summary) -> list[FurtherRow]:
    """A row for each setting and method at the largest number of shots, where anything is known."""
    rows = [row for row in summary.rows if row.shots == summary.shots[-1] and row.ece is not None]
    return [
        FurtherRow(column_name(row.setting, row.method), [_further(row, name) for name in FIGURES]) for row in rows
    ]


def _further(row: Row, name: str) -> tuple[str, str]:
    figure = row.mean if name == "top1" else getattr(row, name)
    return number(figure), " to ".join(map(number, row.intervals.get(name, ())))


def selection_rows(cells: Cells) -> list[SelectionRow]:
    """A row for each run whose images filters chose."""
    found = [(config, totals) for store, config in cells if (totals := selection_totals(store))]
    return [
        SelectionRow(
            run_name(config),
            totals["candidates"],
            [totals["rejected"].get(reason, 0) for reason in REASONS],
            totals["published"],
            _worst(totals["worst"]),
        )
        for config, totals in found
    ]


def _worst(worst: dict[str, Any] | None) -> str:
    return f"{worst['name']}: {worst['n_images']:,} of {worst['candidates']:,}" if worst else "–"


def confusion(store: RunStore, config: ExperimentConfig) -> Confusion | None:
    """Of a run's last setting in the paper's order; None with many classes or without test photos."""
    measured = [(setting, found) for setting, found in classifiers(store).items() if found.get("confusion")]
    if not measured or len(measured[-1][1]["confusion"]) > MAX_CONFUSION:
        return None
    setting, found = measured[-1]
    return Confusion(setting, run_name(config), [entry["name"] for entry in found["per_class"]], found["confusion"])


def class_table(cells: Cells, shots: int) -> ClassTable | None:
    """Accuracy of each class at `shots` photos: all classes by label, or the worst when there are many."""
    measured = _class_measurements(cells, shots)
    if not measured:
        return None
    columns = list(measured)
    names = list(measured[columns[0]])
    rows = [
        ClassRow(name, [mean_and_sd(measured[column].get(name, {}).values())[0] for column in columns])
        for name in names
    ]
    is_cut = len(rows) > MAX_CLASS_ROWS
    if is_cut:
        rows = sorted(rows, key=lambda row: row.values[-1] if row.values[-1] is not None else 100.0)[:MAX_CLASS_ROWS]
    return ClassTable(columns, rows, len(names), column_name(*columns[-1]) if is_cut else "", shots)


def stage_rows(store: RunStore, cells: Cells) -> list[StageRow]:
    """Seconds of each stage of each run that committed any; a table's stages serve all of its runs together."""
    table = [("all runs", store)] if len(cells) > 1 else []
    rows = []
    for name, store in [*table, *((run_name(config), store) for store, config in cells)]:
        files = list(map(stage_seconds, STAGES))
        seconds = [store.read_json(file)["seconds"] if store.exists(file) else None for file in files]
        known = [value for value in seconds if value is not None]
        if known:
            rows.append(StageRow(name, seconds, sum(known)))
    return rows


def knob_rows(config: ExperimentConfig) -> list[Knob]:
    """The knobs that the results depend on, as others may see them."""
    values, defaults = (flatten(each.model_dump(mode="json")) for each in (config, ExperimentConfig()))
    help_of = knobs(ExperimentConfig)
    return [
        Knob(name, _knob_value(shown), help_of.get(name, ""), changed=values[name] != defaults[name])
        for name, shown in flatten(public_config(config)).items()
    ]


def _knob_value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)


def _cell(mean: float | None, sd: float | None, **marks: bool) -> FigureCell:
    return FigureCell(number(mean), _sd(sd), **marks)


def _sd(sd: float | None) -> str:
    return "" if sd is None else number(sd)


def _figure(row: Row | None, summary: Summary) -> FigureCell:
    if row is None or row.mean is None:
        return FigureCell("–")
    column = [other for other in summary.rows if other.shots == row.shots and other.mean is not None]
    setting = [other for other in column if other.setting == row.setting]
    return _cell(
        row.mean,
        shown_sd(row.setting, row.sd),
        best_of_setting=len(setting) > 1 and _is_best(row, setting),
        best_of_all=len(column) > 1 and _is_best(row, column),
    )


def _validation(row: Row) -> FigureCell | None:
    return None if row.val_mean is None else _cell(row.val_mean, shown_sd(row.setting, row.val_sd))


def _is_best(row: Row, rivals: list[Row]) -> bool:
    # As printed: two figures that read the same are equally good.
    return round(row.mean, 1) == max(round(rival.mean, 1) for rival in rivals)


def _trained_on(row: Row, many_shots: bool) -> str:
    photos = "K photos per class" if many_shots else f"{count(row.shots, 'photo')} per class"
    images = count(row.n_synthetic, "generated image")
    return {"zero-shot": "nothing", "real": photos, "synthetic": images, "real+synthetic": f"{photos} and {images}"}[
        row.setting.removeprefix("gda-")
    ]


def _class_measurements(cells: Cells, shots: int) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
    """Accuracy by (setting, method), class name and seed, columns in the paper's order."""
    found: dict[tuple[str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for store, config in cells:
        if config.data.n_shots != shots:
            continue
        for setting, measured in classifiers(store).items():
            for entry in measured.get("per_class") or []:
                if entry["top1"] is not None:
                    found[setting, method_of(setting, config)][entry["name"]].setdefault(config.seed, entry["top1"])
    order = [(setting, method) for setting in SETTINGS for method in METHODS]
    return {column: found[column] for column in sorted(found, key=order.index)}
