"""The tables of a suite: rows as in the paper, a column for each data set, ours with the paper's figure beside it.

As a page, as Markdown, and as CSV with a line for each figure.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from datadream.config import ExperimentConfig
from datadream.paper import Published, Table, load_sets, load_tables
from datadream.report.curves import Chart, accuracy_by_images, accuracy_by_shots
from datadream.report.page import page_environment
from datadream.report.published import figure_text, our_protocol, paper_protocols
from datadream.report.records import NO_METHOD, SETTINGS, Record, mean_and_sd, records, summarise, unique
from datadream.report.tables import Cells
from datadream.report.text import count, shown_sd, signed
from datadream.run.layout import PAGE
from datadream.run.store import RunStore

AVERAGE = "mean of these"
MARKDOWN, CSV = "table.md", "table.csv"
"""Beside the page of a suite."""
CSV_COLUMNS = (
    *("table", "dataset", "trained_on", "row", "shots", "images_per_class"),
    *("mean", "sd", "seeds", "paper", "paper_sd", "difference"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the figures of a recipe stand in a table, and the runs that they come from."""

    name: str
    """Of the table as it is run: paper/table1, digits/table1."""
    table: str
    """The paper's table that it has the rows of."""
    dataset: str
    row: str
    cells: Cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of a curve; a table that is no curve has one that says nothing."""

    shots: int | None = None
    images: int | None = None
    """Generated images per class."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One figure: ours, the paper's, or both."""

    dataset: str
    setting: str
    row: str
    point: Point
    mean: float | None
    sd: float | None
    n_seeds: int
    paper: Published | None

    @property
    def difference(self) -> float | None:
        return None if self.mean is None or self.paper is None else self.mean - self.paper.mean

    @property
    def ours_text(self) -> str:
        return "–" if self.mean is None else figure_text(self.mean, shown_sd(self.setting, self.sd))

    @property
    def paper_text(self) -> str:
        """The paper's figure and the difference, or an empty text."""
        if self.paper is None:
            return ""
        theirs = f"paper {self.paper}"
        return theirs if self.difference is None else f"{theirs}; {signed(self.difference)}"


@dataclass(frozen=True, slots=True)
class TableView:
    """A table, ready to print."""

    name: str
    title: str
    columns: list[str]
    rows: list[tuple[str, str, list[Entry]]]
    """Setting, row and its entries by column."""
    notes: list[str]
    claims: tuple[str, ...]
    charts: list[Chart]

    @property
    def has_paper(self) -> bool:
        return any(entry.paper for _, _, entries in self.rows for entry in entries)


def write_suite(store: RunStore, name: str, places: Sequence[Place]) -> list[TableView]:
    """Write the tables of `places` into the suite's folder as report/index.html, table.md and table.csv."""
    # Neighbours alone are joined: recipes come table by table.
    views = [_view(name, list(group)) for name, group in itertools.groupby(places, lambda place: place.name)]
    page = page_environment().get_template("suite.html.j2").render(name=name, tables=views)
    store.write_bytes(PAGE, page.encode())
    store.write_bytes(MARKDOWN, (text_tables(views) + "\n").encode())
    store.write_bytes(CSV, _csv(views).encode())
    return views


def text_tables(views: Iterable[TableView]) -> str:
    """The tables in Markdown, with how their figures were measured."""
    blocks = []
    for view in views:
        head = ["trained on", "row", *view.columns]
        lines = [head, ["---"] * len(head)]
        for setting, row, entries in view.rows:
            lines.append([setting, row, *(f"{e.ours_text} ({e.paper_text})".replace(" ()", "") for e in entries)])
        table = [f"| {' | '.join(line)} |" for line in lines]
        claims = [f"Paper: {claim}" for claim in view.claims]
        blocks.append("\n\n".join([f"## {view.name}: {view.title}", "\n".join(table), *claims, *view.notes]))
    return "\n\n".join(blocks)


def _view(name: str, places: list[Place]) -> TableView:
    table = load_tables()[places[0].table]
    measured = {(p.dataset, p.row): unique(r for cell in p.cells for r in records(*cell)) for p in places}
    configs = [config for place in places for _, config in place.cells]
    # The table's own order, then others as they come.
    datasets = sorted({place.dataset for place in places}, key=[*table.sets, *(p.dataset for p in places)].index)
    is_papers = any(dataset in table.sets for dataset in datasets)
    points = _points(configs)
    has_average = len(datasets) > 1 and len(points) == 1
    rows = []
    for setting in SETTINGS:
        for row, content in table.rows.items():
            # Rows that the paper quotes, or whose method this version lacks, stand there with the paper's figures.
            if setting in content.figures and (is_papers or any(row == place.row for place in places)):
                entries = [
                    _entry(dataset, setting, row, point, measured.get((dataset, row), []), table, len(points) == 1)
                    for dataset in datasets
                    for point in points
                ]
                rows.append((setting, row, entries + ([_average(entries)] if has_average else [])))
    columns = [_column(dataset, point, len(datasets) > 1) for dataset in datasets for point in points]
    found = [record for own in measured.values() for record in own]
    ours = our_protocol(found, configs) if found else "Ours: nothing has been measured yet."
    theirs = paper_protocols([table.source], datasets) if is_papers else []
    charts = []
    for dataset in datasets if len(points) > 1 else ():
        summary = summarise(record for (each, _), own in measured.items() if each == dataset for record in own)
        charts += [chart for make in (accuracy_by_shots, accuracy_by_images) if (chart := make(summary))]
    claims = table.claims if is_papers else ()
    return TableView(name, table.title, columns + [AVERAGE] * has_average, rows, [ours, *theirs], claims, charts)


def _points(configs: Iterable[ExperimentConfig]) -> list[Point]:
    """The numbers of shots, or else of generated images, that a curve has points at; one point of a table."""
    configs = list(configs)
    shots = sorted({config.data.n_shots for config in configs})
    images = sorted({config.generate.images_per_class for config in configs if config.method != NO_METHOD})
    if len(shots) > 1:
        return [Point(shots=each) for each in shots]
    return [Point(images=each) for each in images] if len(images) > 1 else [Point()]


def _column(dataset: str, point: Point, several: bool) -> str:
    title = load_sets()[dataset].title if dataset in load_sets() else dataset
    at = f"K = {point.shots}" if point.shots else count(point.images, "image") if point.images else ""
    return ", ".join(filter(None, [title if several or not at else "", at]))


def _entry(
    dataset: str, setting: str, row: str, point: Point, found: Sequence[Record], table: Table, is_protocol: bool
) -> Entry:
    values = [
        record["top1"]
        for record in found
        if record["setting"] == setting
        and point.shots in (None, record["shots"])
        # Trained without images, a figure is the same at any number of them.
        and (point.images is None or record["images_per_class"] in (0, point.images))
        and record["top1"] is not None
    ]
    theirs = table.rows[row].figures[setting].get(dataset) if is_protocol else None
    return Entry(dataset, setting, row, point, *mean_and_sd(values), len(values), theirs)


def _average(entries: Sequence[Entry]) -> Entry:
    """The mean over data sets, of ours and of the paper's where all of these are there."""
    ours = [entry.mean for entry in entries if entry.mean is not None]
    theirs = [entry.paper.mean for entry in entries if entry.paper is not None]
    mean, paper = (mean_and_sd(values)[0] if len(values) == len(entries) else None for values in (ours, theirs))
    first, n_seeds = entries[0], min(entry.n_seeds for entry in entries)
    shown = None if paper is None else Published(paper)
    return Entry(AVERAGE, first.setting, first.row, first.point, mean, None, n_seeds, shown)


def _csv(views: Iterable[TableView]) -> str:
    """A line for each figure, unrounded."""
    text = io.StringIO()
    lines = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    lines.writeheader()
    for view in views:
        for each in (entry for _, _, entries in view.rows for entry in entries):
            point = {"shots": each.point.shots, "images_per_class": each.point.images}
            theirs = {"paper": each.paper.mean, "paper_sd": each.paper.sd} if each.paper else {}
            own = {"table": view.name, "dataset": each.dataset, "trained_on": each.setting, "row": each.row}
            ours = {"mean": each.mean, "sd": each.sd, "seeds": each.n_seeds, "difference": each.difference}
            lines.writerow(own | point | ours | theirs)
    return text.getvalue()
