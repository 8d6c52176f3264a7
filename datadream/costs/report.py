"""What runs take, for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datadream.config import ExperimentConfig, public_method
from datadream.costs.constants import Cluster, constants_of, is_embedded
from datadream.costs.stages import stages_of
from datadream.run.cell import Cell

GB = 1e9


def report(cells: Sequence[Cell], cluster: Cluster, price: float | None = None) -> str:
    """What the runs take, as a table and in words; `price` is that of an hour of one GPU or CPU worker."""
    stages, constants = stages_of(cells, cluster), constants_of(cells[0].config, cluster)
    if not stages:
        return "nothing is left to do"

    seconds = sum(stage.seconds for stage in stages)
    told = [
        (s.name, _number(s.n_units, s.unit), s.seconds, s.memory, s.n_bytes, _number(s.useful, "worker"))
        for s in stages
    ]
    told.append(("all", "", seconds, "", sum(stage.n_bytes for stage in stages), ""))
    head = ["stage", "units", "hours", *([] if price is None else ["cost"]), "memory of a worker", "disk", "scales to"]
    table = [head]
    for name, units, took, memory, n_bytes, useful in told:
        cost = [] if price is None else [f"{took / 3600 * cluster.workers * price:,.2f}"]
        hours = f"{took / 3600:.3f}" if took < 3600 else f"{took / 3600:,.2f}"
        disk = f"{n_bytes / GB:,.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.1f} MB"
        table.append([name, units, hours, *cost, memory, disk, useful])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    busy = sum(stage.work for stage in stages) / (seconds * cluster.workers)
    most = 1 + constants.error
    return "\n".join(
        [
            f"{_what(cells)}, on {cluster}:",
            "",
            *("  ".join(map(str.ljust, row, widths)).rstrip() for row in table),
            "",
            *(f"{stage.name} scales to {_number(stage.useful, 'worker')}: {stage.why}" for stage in stages),
            f"of {seconds / 3600 * cluster.workers:,.3g} worker-hours {busy:.0%} are work",
            f"hours may be {seconds / 3600 / most:.2g} to {seconds / 3600 * most:.2g} (a factor of {most:g}): "
            + constants.source
            + ("" if constants.is_measured else "; modelled")
            + ("; no GPU has run this" if cluster.gpu and not constants.is_measured else ""),
            *(f"not counted: {what}" for what in _uncounted(cells[0].config, cluster)),
        ]
    )


def _what(cells: Sequence[Cell]) -> str:
    config, few_shot = cells[0].config, cells[0].few_shot
    methods = dict.fromkeys(public_method(cell.config.method) for cell in cells)
    runs = f"{len(cells)} runs, " if len(cells) > 1 else ""
    return (
        f"{runs}{', '.join(methods)}: {len(few_shot.class_names):,} classes, {few_shot.n_shots} shots and "
        f"{config.generate.images_per_class:,} images each"
    )


def _uncounted(config: ExperimentConfig, cluster: Cluster) -> Iterator[str]:
    """What this run takes beside, that no constant is known of."""
    if config.extends is not None:
        yield "that adapters and images of the run that is extended are taken, and not made"
    if config.adapt.prior_weight:
        yield "the samples and the larger batches of adapt.prior_weight"
    if config.adapt.samples_every:
        yield "the samples of adapt.samples_every"
    if config.adapt.compile or config.generate.compile:
        yield "compiling, a minute or more of every worker"
    if config.generate.select.on:
        yield "the filters' features, and images in place of those that they leave out"
    if is_embedded(config) and cluster.gpu:
        yield "what a GPU does faster: the embedded models are too small to fill one, and are counted as on a CPU"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
