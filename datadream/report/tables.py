"""The page's tables, ready to print: what is in each cell and which figure stands out."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from datadream.config import (
    GAUSSIAN_SETTINGS,
    TRAINED_SETTINGS,
    ExperimentConfig,
    flatten,
    knobs,
    public_config,
    public_method,
)
from datadream.report.records import (
    NO_METHOD,
    SETTINGS,
    Gain,
    Row,
    Summary,
    classifiers,
    in_order,
    mean_and_sd,
    method_of,
    selection_totals,
)
from datadream.report.text import count, listing, number, shown_sd, signed
from datadream.run.cell import images_store
from datadream.run.choice import choose_setting
from datadream.run.layout import DATASET, DATASET_FOLDER, STAGES, StageSeconds, stage_seconds
from datadream.run.store import RunStore

Cells = list[tuple[RunStore, ExperimentConfig]]

MAX_CLASS_ROWS = 30
# Why an image is left out, in words; the order is that of the page's columns.
REASONS = {"label": "CLIP sees another class", "copy": "Copies a shot", "redundant": "Others cover the class better"}


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
class SelectionRow:
    """What filters did to the images of one run."""

    name: str
    candidates: int
    left_out: list[int]
    """By reason, in the order of REASONS."""
    published: int
    worst: str


@dataclass(frozen=True, slots=True)
class ClassTable:
    """Accuracy of each class, means over seeds at one number of shots."""

    columns: list[tuple[str, str]]
    """Setting and method."""
    rows: list[tuple[str, list[float | None]]]
    """Class and its accuracy by column."""
    n_classes: int
    sorted_by: str
    """Column whose worst classes are shown when not all are; empty when all are."""
    shots: int


@dataclass(frozen=True, slots=True)
class Knob:
    name: str
    value: str
    help: str
    changed: bool


def run_name(config: ExperimentConfig) -> str:
    return f"{public_method(config.method)}, {count(config.data.n_shots, 'shot')}, seed {config.seed}"


def column_name(setting: str, method: str) -> str:
    return setting if method == NO_METHOD else f"{setting}, {method}"


def accuracy_rows(summary: Summary) -> list[AccuracyRow]:
    """A row for each setting and method, a figure for each number of shots."""
    rows: list[AccuracyRow] = []
    has_one = len(summary.shots) == 1
    for setting, method in dict.fromkeys((row.setting, row.method) for row in summary.rows):
        members = [summary.find(method, setting, shots) for shots in summary.shots]
        known = [row for row in members if row is not None]
        photos = f"{count(known[-1].shots, 'photo')} per class" if has_one else "K photos per class"
        images = count(known[-1].n_synthetic, "generated image")
        trained_on = {
            "zero-shot": "nothing",
            "real": photos,
            "synthetic": images,
            "real+synthetic": f"{photos} and {images}",
        }[setting.removeprefix("gda-")]
        validation = None
        if has_one and known[0].val_mean is not None:
            validation = FigureCell(number(known[0].val_mean), _sd(shown_sd(setting, known[0].val_sd)))
        starts_setting = not rows or rows[-1].setting != setting
        figures = [_figure(row, summary) for row in members]
        rows.append(AccuracyRow(setting, method, starts_setting, trained_on, figures, validation))
    return rows


def gain_rows(gains: Sequence[Gain], shots: Sequence[int]) -> list[tuple[str, list[FigureCell]]]:
    """Each method with its gain at each number of shots."""
    by_method: dict[str, dict[int, FigureCell]] = defaultdict(dict)
    for gain in gains:
        by_method[gain.method][gain.shots] = FigureCell(signed(gain.mean), _sd(gain.sd))
    return [(method, [own.get(number, FigureCell("")) for number in shots]) for method, own in by_method.items()]


def further_rows(summary: Summary) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each setting and method at the largest number of shots, where anything is known, with its top-1, top-5 and macro
    accuracy and calibration error; each figure with its interval, which is empty where none is known."""
    rows = []
    for row in summary.rows:
        if row.shots == summary.shots[-1] and row.ece is not None:
            figures = {"top1": row.mean, "top5": row.top5, "macro": row.macro, "ece": row.ece}
            intervals = {name: " to ".join(map(number, row.intervals.get(name, ()))) for name in figures}
            cells = [(number(figure), intervals[name]) for name, figure in figures.items()]
            rows.append((column_name(row.setting, row.method), cells))
    return rows


def selection_rows(cells: Cells) -> list[SelectionRow]:
    """A row for each run whose images filters chose."""
    rows = []
    for store, config in cells:
        if totals := selection_totals(images_store(store, config)):
            left_out = [totals["rejected"].get(reason, 0) for reason in REASONS]
            worst = totals["worst"]
            told = f"{worst['name']}: {worst['n_images']:,} of {worst['candidates']:,}" if worst else "–"
            rows.append(SelectionRow(run_name(config), totals["candidates"], left_out, totals["published"], told))
    return rows


def class_table(cells: Cells, shots: int) -> ClassTable | None:
    """Accuracy of each class at `shots` photos: all classes by label, or the worst when there are many."""
    # By (setting, method), class and seed; runs of a table share the baselines, which count once for a seed.
    measured: dict[tuple[str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for store, config in cells:
        if config.data.n_shots != shots:
            continue
        for setting, found in classifiers(store).items():
            for entry in found.per_class or ():
                if entry["top1"] is not None:
                    by_seed = measured[setting, method_of(setting, config)][entry["name"]]
                    by_seed.setdefault(config.seed, entry["top1"])
    methods = in_order(method for _, method in measured)
    columns = [key for setting in SETTINGS for method in methods if (key := (setting, method)) in measured]
    if not columns:
        return None
    rows = [
        (name, [mean_and_sd(measured[column].get(name, {}).values())[0] for column in columns])
        for name in measured[columns[0]]
    ]
    n_classes, sorted_by = len(rows), ""
    if n_classes > MAX_CLASS_ROWS:
        # By the last column: real photos and images together are what a run is made for.
        rows = sorted(rows, key=lambda row: row[1][-1] if row[1][-1] is not None else 100.0)[:MAX_CLASS_ROWS]
        sorted_by = column_name(*columns[-1])
    return ClassTable(columns, rows, n_classes, sorted_by, shots)


def stage_rows(store: RunStore, cells: Cells) -> list[tuple[str, list[float | None], float]]:
    """Each run that committed any stage, with the seconds of every stage and their sum."""
    # A table carries out each stage once for all of its runs, and notes the time in its own folder.
    table = [("all runs", store)] if store.root != cells[0][0].root else []
    rows = []
    for name, store in [*table, *((run_name(config), store) for store, config in cells)]:
        files = list(map(stage_seconds, STAGES))
        seconds = [
            StageSeconds.from_json(store.read_json(file)).seconds if store.exists(file) else None for file in files
        ]
        known = [value for value in seconds if value is not None]
        if known:
            rows.append((name, seconds, sum(known)))
    return rows


def stage_ends(store: RunStore, cells: Cells) -> tuple[str, list[str]]:
    """When the last stage ended, and on what the stages ran; empty where no stage of this version did."""
    files = [(each, stage_seconds(stage)) for each in (store, *(cell for cell, _ in cells)) for stage in STAGES]
    found = [StageSeconds.from_json(each.read_json(name)) for each, name in files if each.exists(name)]
    ended = max((stage.ended for stage in found if stage.ended), default="")
    used = [
        f"{count(on['workers'], 'worker')} with {on['each']} each on {count(on['nodes'], 'node')}"
        for stage in found
        if (on := stage.hardware)
    ]
    return ended, list(dict.fromkeys(used))


def next_steps(store: RunStore, shown: RunStore, config: ExperimentConfig) -> list[tuple[str, str]]:
    """Commands to paste where the run's folder is the current one, for its path is private, each with what it does.

    Of a table, the classifier and the images are those of the run that is `shown`, of this config.
    """
    run = posixpath.relpath(shown.root, store.root)
    steps = []
    if found := classifiers(shown):
        choice = choose_setting(found)
        what = f"name what is on a photo, or on all in a folder, by {listing(choice.settings)} ({choice.reason})"
        steps.append((what, f"datadream predict {run} photo.jpg"))
        # A checkpoint holds no head of a closed form, and no learned words.
        no_checkpoint = {*GAUSSIAN_SETTINGS, *(TRAINED_SETTINGS if config.classify.context else ())}
        if plain := {name: marker for name, marker in found.items() if name not in no_checkpoint}:
            # Nor can it hold several that vote: then the first, that of photos alone.
            taken = choose_setting(plain).settings
            setting = "" if taken == choice.settings and len(taken) == 1 else f" --setting {taken[0]}"
            steps.append(("one checkpoint that plain open_clip loads", f"datadream export {run} --to clip{setting}"))
    if shown.exists(DATASET):
        load = f"from datasets import load_dataset; print(load_dataset('{run}/{DATASET_FOLDER}'))"
        steps.append(("the generated images, in Python", f'python -c "{load}"'))
    return [*steps, ("go on where the run stopped; nothing is done twice", "datadream run .")]


def knob_rows(config: ExperimentConfig) -> list[Knob]:
    """The knobs that the results depend on, as others may see them."""
    values, defaults = (flatten(each.model_dump(mode="json")) for each in (config, ExperimentConfig()))
    help_of = knobs(ExperimentConfig)
    rows = []
    for name, shown in flatten(public_config(config)).items():
        text = ", ".join(map(str, shown)) or "–" if isinstance(shown, list) else "–" if shown is None else str(shown)
        # Compared in full: two locations may have the same public name.
        rows.append(Knob(name, text, help_of.get(name, ""), changed=values[name] != defaults[name]))
    return rows


def _sd(sd: float | None) -> str:
    return "" if sd is None else number(sd)


def _figure(row: Row | None, summary: Summary) -> FigureCell:
    if row is None or row.mean is None:
        return FigureCell("–")
    # Rounded as printed: two figures that read the same are equally good.
    column = [
        (other.setting, round(other.mean, 1))
        for other in summary.rows
        if other.shots == row.shots and other.mean is not None
    ]
    ours, rivals = round(row.mean, 1), [mean for setting, mean in column if setting == row.setting]
    return FigureCell(
        number(row.mean),
        _sd(shown_sd(row.setting, row.sd)),
        best_of_setting=len(rivals) > 1 and ours == max(rivals),
        best_of_all=len(column) > 1 and ours == max(mean for _, mean in column),
    )
