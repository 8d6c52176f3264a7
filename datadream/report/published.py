"""Ours beside what the papers report: the figures, their difference, and how each was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from datadream.config import ExperimentConfig, public_model
from datadream.paper import Published, load_sets, load_tables
from datadream.report.records import Record, Summary
from datadream.report.text import count, listing, number, shown_sd, signed

Key = tuple[str, str, int, int]
"""Method, setting, shots and generated images per class."""
CHOSEN_BY = {
    "val": "validation photos",
    "folds": "shots that were left out in turn",
    "shots": "the shots themselves",
    "test": "the test photos themselves, which flatters",
}


@dataclass(frozen=True, slots=True)
class Beside:
    """One figure of ours and one of a paper, ready to print."""

    setting: str
    method: str
    ours: str
    paper: str
    difference: str
    source: str


def beside_paper(summary: Summary, published: Mapping[Key, Mapping[str, Published]]) -> list[Beside]:
    """A line for each figure that was measured and that a table of the papers has."""
    lines = []
    # Where several numbers of images were trained on, `rows` has the largest alone.
    rows = {
        (row.method, row.setting, row.shots, row.images_per_class): row for row in (*summary.rows, *summary.by_images)
    }
    for key, row in rows.items():
        for source, theirs in published.get(key, {}).items():
            if row.mean is not None:
                ours = figure_text(row.mean, shown_sd(row.setting, row.sd))
                difference = signed(row.mean - theirs.mean)
                lines.append(Beside(row.setting, row.method, ours, str(theirs), difference, source))
    return lines


def figure_text(mean: float, sd: float | None) -> str:
    """``68.6 ± 2.0``, or the mean alone."""
    return number(mean) if sd is None else f"{number(mean)} ± {number(sd)}"


def paper_protocols(sources: Iterable[str], datasets: Iterable[str]) -> list[str]:
    """How the papers measured these tables, and what is particular to these data sets."""
    tables = {table.source: table.protocol for table in load_tables().values()}
    lines = [f"Paper ({source}): {tables[source]}" for source in dict.fromkeys(sources)]
    known = load_sets()
    remarks = [
        f"{known[name].title}: {known[name].remark}." for name in datasets if name in known and known[name].remark
    ]
    return [*lines, *remarks]


def our_protocol(records: Iterable[Record], configs: Iterable[ExperimentConfig]) -> str:
    """How these figures were measured, in the words of the papers' protocols."""
    found, configs = list(records), list(configs)
    models = {public_model(config.diffusion.model) for config in configs if config.method != "none"}
    clips = {public_model(config.classify.model) for config in configs}
    shots = sorted({record["shots"] for record in found})
    images = sorted({record["images_per_class"] for record in found} - {0})
    seeds = sorted({record["seed"] for record in found})
    parts = [listing([*sorted(models), *sorted(clips)])]
    parts.append(f"{listing(shots)} photo{'' if shots == [1] else 's'} per class")
    parts += [f"{listing(images)} generated image{'' if images == [1] else 's'} per class"] if images else []
    parts.append(count(len(seeds), "seed"))
    by = [CHOSEN_BY[name] for name in CHOSEN_BY if any(record.get("chosen_by") == name for record in found)]
    chosen = f" Weights chosen on {listing(by)}." if by else ""
    knobs = list(dict.fromkeys(name for record in found for name in record.get("chosen_knobs") or ()))
    searched = f" Searched: {listing(knobs)}." if knobs else " No knobs were searched."
    tests: dict[str, int] = {}
    for record in found:
        tests[record["dataset"]] = max(record["n_test"], tests.get(record["dataset"], 0))
    tested = listing(f"{n:,} ({name})" for name, n in tests.items())
    return f"Ours: {', '.join(parts)}.{chosen}{searched} Test photos: {tested}."
