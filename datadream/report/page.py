"""The page of a run or of a table of runs: one HTML file that needs no other file, no network and no script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from datadream.config import ExperimentConfig, public_dataset, public_method
from datadream.paper import Published
from datadream.report import records as metrics
from datadream.report import text
from datadream.report.curves import accuracy_by_images, accuracy_by_shots, gain_by_shots, run_charts
from datadream.report.images import MEASURES, images_section
from datadream.report.judged import vote_gains
from datadream.report.mistakes import VOTE, class_changes, differences, mistakes
from datadream.report.pictures import MAX_CLASSES, class_pictures, sample_strips
from datadream.report.published import Key, beside_paper, our_protocol, paper_protocols
from datadream.report.records import NO_METHOD, SETTINGS, Summary, in_order
from datadream.report.search import choice_table, trial_tables
from datadream.report.tables import (
    REASONS,
    Cells,
    accuracy_rows,
    class_table,
    column_name,
    further_rows,
    gain_rows,
    knob_rows,
    next_steps,
    run_name,
    selection_rows,
    stage_ends,
    stage_rows,
)
from datadream.run.choice import VOTERS
from datadream.run.layout import CONFIG, METRICS, PAGE
from datadream.run.store import RunStore


def write_report(
    store: RunStore,
    cells: Cells,
    config: ExperimentConfig,
    command: str = "",
    published: Mapping[Key, Mapping[str, Published]] | None = None,
) -> None:
    """Write metrics.json and report/index.html of a run: `cells` is the run itself, or the runs of a table.

    `command` is what would make the run again, as others may see it; `published` is what papers report of such runs,
    by method, setting and shots, and then by table.
    """
    found = metrics.unique(record for cell in cells for record in metrics.records(*cell))
    store.write_json(METRICS, found)
    summary = metrics.summarise(found)
    lines, protocols = beside_paper(summary, published or {}), list[str]()
    if lines:
        datasets = dict.fromkeys(record["dataset"] for record in found)
        theirs = paper_protocols((line.source for line in lines), datasets)
        protocols = [our_protocol(found, [config for _, config in cells]), *theirs]
    page = (
        page_environment()
        .get_template("template.html.j2")
        .render(
            **_heading(cells, summary),
            **_sections(store, cells, config, summary),
            beside_paper=lines,
            protocols=protocols,
            command=command,
        )
    )
    store.write_bytes(PAGE, page.encode())


def page_environment() -> Environment:
    """The templates, and what they print with."""
    environment = Environment(
        loader=PackageLoader("datadream", "report"),
        # Names of classes and photos are anybody's text.
        autoescape=True,
        # A name that the template misspells is an error, and no blank on the page.
        undefined=StrictUndefined,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": text.number,
        "signed": text.signed,
        "duration": text.duration,
        "gain": text.gain_text,
    }
    environment.globals |= {"column_name": column_name, "count": text.count, "vote": VOTE, "voters": VOTERS}
    return environment


def _heading(cells: Cells, summary: Summary) -> dict[str, Any]:
    """What was run, and the result in plain words."""
    configs = [config for _, config in cells]
    methods = in_order({public_method(config.method) for config in configs} - {NO_METHOD})
    shots = sorted({config.data.n_shots for config in configs})
    seeds = sorted({config.seed for config in configs})
    return {
        "dataset": text.listing(dict.fromkeys(public_dataset(config.data) for config in configs)),
        "shots": f"{text.listing(shots)} photo{'' if shots == [1] else 's'} per class",
        "methods": text.listing(methods or ["no images"]),
        "seeds": f"means over seeds {text.listing(seeds)}" if len(seeds) > 1 else f"seed {seeds[0]}",
        "sentences": text.result_sentences(summary),
        "searched": text.searched(summary),
        "chosen_on_test": text.CHOSEN_ON_TEST if summary.chosen_on_test else "",
        "no_test": text.NO_TEST,
        "how_to_add_test": text.HOW_TO_ADD_TEST,
    }


def _sections(store: RunStore, cells: Cells, config: ExperimentConfig, summary: Summary) -> dict[str, Any]:
    # Pictures and curves stand for one run of each method, that with the most shots and of those the first seed; the
    # paper's methods come first.
    first: dict[str, Any] = {}
    for cell in sorted(cells, key=lambda cell: (-cell[1].data.n_shots, cell[1].seed)):
        first.setdefault(public_method(cell[1].method), cell)
    methods = in_order(first)
    shown: Cells = [first[name] for name in reversed(methods) if name != NO_METHOD] or list(first.values())
    pictures, n_classes = class_pictures(shown)
    charts = [make(summary) for make in (accuracy_by_shots, gain_by_shots, accuracy_by_images)]
    curves = [(run_name(config), run_charts(store)) for store, config in shown]
    by_shots = _by_shots(cells, shown[0][1]) if methods[-1:] != [NO_METHOD] else []
    settings = {row.setting for row in summary.rows}
    ended, hardware = stage_ends(store, cells)
    votes = vote_gains(cells) if len(cells) > 1 else []  # of a single run `differences` has it, with its interval
    return {
        "summary": summary,
        "accuracy": accuracy_rows(summary),
        "sampling_error": text.sampling_error(summary),
        "validation_note": text.validation_note(summary),
        "gains": gain_rows(summary.gains, summary.shots),
        "votes": gain_rows(votes, summary.shots),
        "only_vote": votes[0] if len(votes) == 1 else None,
        "charts": [chart for chart in charts if chart],
        "further": further_rows(summary),
        "setting_notes": [(name, text.SETTING_NOTES[name]) for name in SETTINGS if name in settings],
        "method_notes": [(name, text.METHOD_NOTES[name]) for name in methods if name in text.METHOD_NOTES],
        "pictures": pictures,
        "prompts": config.generate.prompts or (config.data.prompt,),
        "n_classes": n_classes,
        "pictures_by_shots": class_pictures(by_shots, lambda config: text.count(config.data.n_shots, "photo"))[0],
        "images": images_section(cells, shown),
        "measures": [name for name, _ in MEASURES.values()],
        "max_classes": MAX_CLASSES,
        "selection": selection_rows(cells),
        "reasons": REASONS,
        "per_class": class_table(cells, max(config.data.n_shots for _, config in cells)),
        "differences": differences(*cells[0]) if len(cells) == 1 else [],
        "mistakes": mistakes(*shown[0]),
        "changes": class_changes(cells, shown[0][1]),
        "sample_strips": [strip for cell in shown for strip in sample_strips(*cell)],
        "next_steps": next_steps(store, *shown[0]),
        "ended": ended,
        "hardware": hardware,
        "curves": [(name, made) for name, made in curves if made],
        "trial_tables": trial_tables(cells),
        "choices": choice_table(cells),
        "stages": stage_rows(store, cells),
        "knobs": knob_rows(config),
        "versions": store.read_json(CONFIG).get("versions", {}) if store.exists(CONFIG) else {},
        "is_table": len(cells) > 1,
    }


def _by_shots(cells: Cells, shown: ExperimentConfig) -> Cells:
    """The runs that differ from `shown` in their shots alone, the fewest first; none where there is no other."""
    found: dict[int, Any] = {}
    # Of runs with equal shots the one with most images, which the others share.
    for cell in sorted(cells, key=lambda cell: (cell[1].data.n_shots, -cell[1].generate.images_per_class)):
        if (cell[1].method, cell[1].seed) == (shown.method, shown.seed):
            found.setdefault(cell[1].data.n_shots, cell)
    return list(found.values()) if len(found) > 1 else []
