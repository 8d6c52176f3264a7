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

    @property
    def needs_models(self) -> bool:
        """Whether it takes other models than a generator and a CLIP, so that no laptop runs it."""
        return "data.captioner" in self.knobs


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
    return {name: _table(content) for name, content in _content()["tables"].items()}


@cache
def _content() -> dict[str, Any]:
    return yaml.safe_load(files(__package__).joinpath("figures.yaml").read_text())


def _table(content: dict[str, Any]) -> Table:
    sets = tuple(content["sets"])
    rows = {name: _row(row, sets) for name, row in content["rows"].items()}
    own = {
        "sets": sets,
        "rows": rows,
        "protocol": content["protocol"].strip(),
        "claims": tuple(content.get("claims", ())),
    }
    return Table(**content | own)


def _row(content: dict[str, Any], sets: tuple[str, ...]) -> Row:
    figures: dict[str, dict[str, Published]] = {}
    average = {}
    for setting, printed in content["figures"].items():
        values = [_published(text) for text in str(printed or "").split()]
        figures[setting] = dict(zip(sets, values, strict=False))
        if len(values) > len(sets):
            average[setting] = values[-1]
    return Row(**content | {"figures": figures, "average": average})


def _published(text: str) -> Published:
    mean, _, sd = text.partition("±")
    return Published(float(mean), float(sd) if sd else None, text)
