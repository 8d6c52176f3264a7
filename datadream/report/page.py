"""The page of a run or of a table of runs: one HTML file that needs no other file, no network and no script."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from datadream.config import ExperimentConfig, public_source
from datadream.report import records as metrics
from datadream.report import text
from datadream.report.curves import Chart, accuracy_by_images, accuracy_by_shots, gain_by_shots, run_curves
from datadream.report.pictures import MAX_CLASSES, class_pictures
from datadream.report.records import METHODS, NO_METHOD, SETTINGS, Summary
from datadream.report.search import choice_table, trial_tables
from datadream.report.tables import (
    REASONS,
    Cells,
    accuracy_rows,
    class_table,
    column_name,
    confusion,
    further_rows,
    gain_rows,
    knob_rows,
    selection_rows,
    stage_rows,
)
from datadream.run.layout import CONFIG, METRICS
from datadream.run.store import RunStore

PAGE = "report/index.html"
TEMPLATE = "template.html.j2"


def write_report(store: RunStore, cells: Cells, config: ExperimentConfig) -> None:
    """Write metrics.json and report/index.html of a run: `cells` is the run itself, or the runs of a table."""
    found = metrics.unique(record for cell in cells for record in metrics.records(*cell))
    store.write_json(METRICS, found)
    page = _environment().get_template(TEMPLATE).render(_context(store, cells, config, metrics.summarise(found)))
    store.write_bytes(PAGE, page.encode())


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("datadream", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": text.number, "duration": text.duration, "gain": text.gain_text}
    environment.globals |= {"column_name": column_name, "count": text.count}
    return environment


def _context(store: RunStore, cells: Cells, config: ExperimentConfig, summary: Summary) -> dict[str, Any]:
    shown = _one_per_method(cells)
    pictures, n_classes = class_pictures(shown)
    return {
        **_heading(cells, summary),
        "summary": summary,
        "accuracy": accuracy_rows(summary),
        "sampling_error": _sampling_error(summary),
        "gains": gain_rows(summary),
        "further": further_rows(summary) if summary.rows else [],
        "confusion": confusion(*shown[0]) if shown else None,
        "validation_note": text.validation_note(summary),
        "chosen_on_test": text.CHOSEN_ON_TEST if summary.chosen_on_test else "",
        "searched": text.searched(summary),
        "trial_tables": trial_tables(cells),
        "choices": choice_table(cells),
        "selection": selection_rows(cells),
        "reasons": REASONS,
        "charts": _charts(summary),
        "setting_notes": _known_notes(text.SETTING_NOTES, SETTINGS, {row.setting for row in summary.rows}),
        "method_notes": _known_notes(text.METHOD_NOTES, METHODS, {config.method for _, config in cells}),
        "pictures": pictures,
        "prompt": config.data.prompt,
        "n_classes": n_classes,
        "max_classes": MAX_CLASSES,
        "per_class": class_table(cells, max(config.data.n_shots for _, config in cells)),
        "curves": [curves for cell in shown if (curves := run_curves(*cell)).charts],
        "stages": stage_rows(store, cells),
        "knobs": knob_rows(config),
        "versions": store.read_json(CONFIG).get("versions", {}) if store.exists(CONFIG) else {},
        "is_table": len(cells) > 1,
        "how_to_add_test": text.HOW_TO_ADD_TEST,
        "no_test": text.NO_TEST,
    }


def _charts(summary: Summary) -> list[Chart]:
    return [chart for make in (accuracy_by_shots, gain_by_shots, accuracy_by_images) if (chart := make(summary))]


def _heading(cells: Cells, summary: Summary) -> dict[str, Any]:
    """What was run, and the result in plain words."""
    configs = [config for _, config in cells]
    methods = [method for method in METHODS if any(config.method == method for config in configs)]
    shots = sorted({config.data.n_shots for config in configs})
    seeds = sorted({config.seed for config in configs})
    return {
        "dataset": text.listing(dict.fromkeys(public_source(config.data.source) for config in configs)),
        "shots": f"{text.listing(shots)} photo{'' if shots == [1] else 's'} per class",
        "methods": text.listing([method for method in methods if method != NO_METHOD] or ["no images"]),
        "seeds": f"means over seeds {text.listing(seeds)}" if len(seeds) > 1 else f"seed {seeds[0]}",
        "sentences": text.result_sentences(summary),
    }


def _one_per_method(cells: Cells) -> Cells:
    """The run of each method with the most shots and, of those, the first seed; the paper's methods first."""
    ordered = sorted(cells, key=lambda cell: (-METHODS.index(cell[1].method), -cell[1].data.n_shots, cell[1].seed))
    first = {}
    for cell in ordered:
        first.setdefault(cell[1].method, cell)
    generating = [cell for method, cell in first.items() if method != NO_METHOD]
    return generating or list(first.values())


def _sampling_error(summary: Summary) -> float | None:
    """The largest standard error of a figure, from the number of test photos."""
    errors = (text.standard_error(row.mean, row.n_test) for row in summary.rows if row.mean is not None and row.n_test)
    return max(errors, default=None)


def _known_notes(notes: dict[str, str], order: tuple[str, ...], used: set[str]) -> list[tuple[str, str]]:
    return [(name, notes[name]) for name in order if name in used and name in notes]
