"""Reads figures.yaml, in which the papers' tables are copied as they are printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class Published:
    """Top-1 accuracy in percent as a paper prints it, with its spread where one is printed."""

    mean: float
    sd: float | None = None
    printed: str = ""

    def __str__(self) -> str:
        return self.printed.replace("±", " ± ") or f"{self.mean:.1f}"


@dataclass(frozen=True, slots=True)
class PaperSet:
    """A data set of the papers."""

    title: str
    remark: str = ""
    """What is known of how the authors measure it that others would not expect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a table: how it is run, and what the paper reports of it."""

    figures: Mapping[str, Mapping[str, Published]]
    """By setting of the classifier, then by data set; a setting of which no number is printed has none."""
    average: Mapping[str, Published]
    """By setting, the paper's own mean over the data sets, where it prints one."""
    method: str | None = None
    """None: quoted by the paper from others, or the same runs as another table's (`runs_of`)."""
    runs_of: str | None = None
    """The table whose row of this name it is, trained once for both."""
    knobs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table or figure of a paper."""

    title: str
    source: str
    protocol: str
    """How the paper measured, in words."""
    sets: tuple[str, ...]
    rows: Mapping[str, Row]
    recipe: str = "paper"
    """What its runs are made of, by `knobs`."""
    knobs: dict[str, Any] = field(default_factory=dict)
    claims: tuple[str, ...] = ()
    """What the paper says of a figure that has no numbers."""
    images_of: str | None = None
    """The table whose images its classifiers are trained on."""


@cache
def load_sets() -> dict[str, PaperSet]:
    """The papers' data sets by name."""
    return {name: PaperSet(**values) for name, values in _content()["sets"].items()}


@cache
def load_tables() -> dict[str, Table]:
    """The papers' tables by name, such as paper/table1."""
    tables = {}
    for name, content in _content()["tables"].items():
        sets = tuple(content["sets"])
        own = {
            "sets": sets,
            "rows": {row: _row(printed, sets) for row, printed in content["rows"].items()},
            "protocol": content["protocol"].strip(),
            "claims": tuple(content.get("claims", ())),
        }
        # What else the file says goes to the field of its name; a name that is none is a TypeError.
        tables[name] = Table(**content | own)
    return tables


@cache
def _content() -> dict[str, Any]:
    return yaml.safe_load(files(__package__).joinpath("figures.yaml").read_text())


def _row(content: dict[str, Any], sets: tuple[str, ...]) -> Row:
    figures: dict[str, dict[str, Published]] = {}
    average = {}
    for setting, printed in content["figures"].items():
        values = []
        # A setting that was run and of which no number is printed is null in the file.
        for text in str(printed or "").split():
            mean, _, sd = text.partition("±")
            values.append(Published(float(mean), float(sd) if sd else None, text))
        # Not strict: one value more than there are sets is the paper's average, and of null there is none.
        figures[setting] = dict(zip(sets, values, strict=False))
        if len(values) > len(sets):
            average[setting] = values[-1]
    return Row(**content | {"figures": figures, "average": average})
