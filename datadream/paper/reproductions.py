"""The rows of the papers' tables as recipes: one for each data set, such as paper/table1/dtd/datadream-cls, and in the
same shape one for the embedded backbone, such as digits/table1/datadream-cls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args

from datadream.config import SETTINGS_WITHOUT_IMAGES, ExperimentConfig, MethodName, flatten
from datadream.paper.figures import Published, load_tables

DIGITS = "digits"
# The tables that digits have in the papers' shape, each with what is smaller there.
DIGITS_TABLES: dict[str, dict[str, Any]] = {
    "paper/table1": {},
    "paper/table2": {"classify.epochs": None},
    "paper/table4": {},
    "paper/tableB/gda": {},
    "paper/fig5/images": {"grid.images_per_class": [10, 25, 50, 100, 200]},
    "paper/fig5/shots": {},
}


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A row of a table on one data set, as a run."""

    table: str
    """The paper's table."""
    dataset: str
    row: str
    run: str
    """The recipe whose run it is: its own name, or the same row of another table."""
    images_of: str | None = None
    """The recipe on whose images its classifiers are trained."""
    knobs: Mapping[str, Any] = field(default_factory=dict)
    """What it changes of the recipe `base`."""

    @property
    def base(self) -> str:
        return DIGITS if self.dataset == DIGITS else load_tables()[self.table].recipe


@cache
def reproductions() -> dict[str, Reproduction]:
    """Every row that this version can run, by the recipe's name; a row of a method that it lacks is not among them."""
    found: dict[str, Reproduction] = {}
    for name, table in load_tables().items():
        placed: dict[str, tuple[str, dict[str, Any]]]
        placed = {f"{name}/{each}": (each, {"data.dataset": each, "data.source": "data"}) for each in table.sets}
        if name in DIGITS_TABLES:
            # Twice as long as in `digits`, which has five minutes for everything.
            placed[_on_digits(name)] = (DIGITS, {"classify.steps": 600} | DIGITS_TABLES[name])
        for folder, (dataset, usual) in placed.items():
            for row, content in table.rows.items():
                recipe = f"{folder}/{row}"
                # A captioner is another model than a generator and a CLIP: no laptop runs it.
                is_too_large = dataset == DIGITS and "data.captioner" in content.knobs
                if content.runs_of:
                    found[recipe] = Reproduction(name, dataset, row, _sibling(content.runs_of, dataset, row))
                elif content.method in get_args(MethodName) and not is_too_large:
                    is_reused = table.images_of is not None and content.method != "none"
                    images_of = _sibling(table.images_of or "", dataset, row) if is_reused else None
                    own = {"method": content.method, "classify.settings": list(content.figures)}
                    # Later ones win: a row's knobs over its table's, and what is smaller on digits over both.
                    own |= table.knobs | content.knobs | usual
                    found[recipe] = Reproduction(name, dataset, row, recipe, images_of, own)
    # A row that is the run of another table's is there where that one is.
    return {name: each for name, each in found.items() if each.run in found}


def _sibling(table: str, dataset: str, row: str) -> str:
    """The recipe of a row of another table on the same data set."""
    return f"{_on_digits(table)}/{row}" if dataset == DIGITS else f"{table}/{dataset}/{row}"


def _on_digits(table: str) -> str:
    return table.replace("paper", DIGITS, 1)


# Knobs in which a run must agree with a table's row to stand beside its figures. Their defaults are the papers'.
PROTOCOL = (
    *("data.n_shots", "generate.images_per_class", "adapt.text_encoder", "adapt.prior_weight"),
    *("classify.model", "classify.image_tower", "classify.context"),
)


def published(configs: Iterable[ExperimentConfig]) -> dict[tuple[str, str, int, int], dict[str, Published]]:
    """What the papers report of runs like these: by method, setting, shots and images per class (0 where none are
    trained on), the figure of each table."""
    usual = flatten(ExperimentConfig().model_dump())
    found: dict[tuple[str, str, int, int], dict[str, Published]] = {}
    for config in configs:
        dataset, mine = config.data.dataset or "", flatten(config.model_dump())
        for table in load_tables().values():
            for row in table.rows.values():
                expected = usual | table.knobs | row.knobs
                if row.method is None or any(mine[knob] != expected[knob] for knob in PROTOCOL):
                    continue
                for setting in set(row.figures) & set(config.classify.settings):
                    is_baseline = setting in SETTINGS_WITHOUT_IMAGES
                    if dataset in row.figures[setting] and (is_baseline or row.method == config.method):
                        method, n_images = (
                            ("none", 0) if is_baseline else (config.method, config.generate.images_per_class)
                        )
                        key = (method, setting, config.data.n_shots, n_images)
                        found.setdefault(key, {})[table.source] = row.figures[setting][dataset]
    return found


def below(name: str) -> dict[str, Reproduction]:
    """The recipes at and below a name."""
    return {recipe: each for recipe, each in reproductions().items() if f"{recipe}/".startswith(f"{name}/")}


def in_short() -> dict[str, str]:
    """What tables there are, in words."""
    there = {each.table for each in reproductions().values()}
    tables = {name: table for name, table in load_tables().items() if name in there}
    lines = {f"{name}/<set>/<row>": f"{table.title} ({table.source})." for name, table in tables.items()}
    on_digits = ", ".join(map(_on_digits, DIGITS_TABLES))
    return lines | {f"{DIGITS}/...": f"The same with the embedded backbone, on a laptop: {on_digits}."}


def reported(each: Reproduction) -> str:
    """What the paper reports of a row, in words."""
    figures = load_tables()[each.table].rows[each.row].figures
    known = [f"{setting} {by_set[each.dataset]}" for setting, by_set in figures.items() if each.dataset in by_set]
    return ", ".join(known)
