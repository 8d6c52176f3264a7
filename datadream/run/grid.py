"""The cells of a table: every combination that `config.grid` lists, each a run of its own."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from datadream.config import SETTINGS_WITHOUT_IMAGES, ExperimentConfig, GridConfig, public_method


@dataclass(frozen=True)
class Cell:
    """One run of a table, in the sub-folder `name`."""

    name: str
    config: ExperimentConfig
    drawn_by: str | None = None
    """The cell that draws the same images and more, of which this one trains on the first of each class."""


def table_cells(config: ExperimentConfig) -> list[Cell]:
    """The cells of a config whose grid is on; the one that draws comes before those that use a part of its images.

    Raises ValueError when two methods of the user's bear one name, and so would share a folder.
    """
    grid = config.grid
    draws = list(itertools.product(grid.n_shots or (config.data.n_shots,), grid.seeds or (config.seed,)))
    # The baselines need no images, so one run without a method serves every method of the same draw.
    methods = dict.fromkeys(("none", *(grid.methods or (config.method,))))
    named: dict[str, str] = {}
    for method in methods:
        if (other := named.setdefault(public_method(method), method)) != method:
            raise ValueError(
                f"grid.methods has {other!r} and {method!r}, which are called alike. Rename one function."
            )
    curves = [_curve(config, method, *draw) for draw in draws for method in methods]
    return [cell for cells in curves for cell in cells if cell.config.classify.settings]


def _curve(config: ExperimentConfig, method: str, n_shots: int, seed: int) -> list[Cell]:
    """The cells of one method and draw: the one that draws the most images, then those that use a part of them."""
    most, *fewer = sorted(set(config.grid.images_per_class), reverse=True) or [config.generate.images_per_class]
    settings = [name for name in config.classify.settings if (name in SETTINGS_WITHOUT_IMAGES) == (method == "none")]
    own = {"method": method, "seed": seed, "data.n_shots": n_shots, "classify.settings": settings}
    # Without the grid: a cell is a run of its own, which can be gone on with as such.
    own |= {"grid": GridConfig().model_dump()}
    name = f"{public_method(method).replace(':', '-')}-k{n_shots}-seed{seed}"
    whole = Cell(name, config.updated(own | {"generate.images_per_class": most}))
    parts = [] if method == "none" else fewer
    return [
        whole,
        *(Cell(f"{name}-images{n}", config.updated(own | {"generate.images_per_class": n}), name) for n in parts),
    ]
