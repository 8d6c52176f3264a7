"""Small charts as SVG that lives inside the page: the colours are the page's own, and follow its light and dark."""

from __future__ import annotations

import io
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, StrMethodFormatter

Points = Sequence[tuple[float, float]]

# Above so many adapters, single curves cannot be told apart and only make the page large.
MAX_LINES = 12
SIZE_INCHES = (4.5, 2.6)
FONT_POINTS = 11
# Matplotlib cannot write CSS variables: each colour of the page has a stand-in that no chart uses otherwise.
STAND_INS = {"muted": "#010202", "grid": "#010203", "paper": "#010204"}
STAND_INS |= {f"series-{i}": f"#0102{i + 16:02x}" for i in range(9)}


@dataclass(frozen=True, slots=True)
class Line:
    """One curve; `color` names a colour of the page."""

    points: Points
    color: str
    dashed: bool = False
    mark: tuple[float, float] | None = None
    """A point worth a dot, such as the reading whose weights were kept."""
    errors: Sequence[float] | None = None


def line_chart(lines: Iterable[Line], x_label: str = "step", counts: Sequence[int] = ()) -> str:
    """A chart of a few curves over training steps, or over the `counts` of photos or images that were tried."""
    figure, axes = _chart(x_label)
    if counts:
        # Numbers of photos and images mostly double from one run to the next.
        axes.set_xscale("log", base=2)
        axes.margins(x=0.05)
        axes.xaxis.set_major_locator(FixedLocator(counts))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        axes.xaxis.set_minor_locator(FixedLocator([]))
    for line in lines:
        color, (x, y) = STAND_INS[line.color], zip(*line.points, strict=True)
        # A curve of one point has no length and would be invisible without a marker.
        marker = "o" if len(line.points) == 1 or line.errors is not None else None
        style = (0, (4, 3)) if line.dashed else "-"
        axes.plot(x, y, color=color, linewidth=1.6, linestyle=style, marker=marker, markersize=3.5)
        if line.errors is not None:
            axes.errorbar(x, y, yerr=line.errors, color=color, linestyle="none", elinewidth=1.0, capsize=2)
        if line.mark is not None:
            edge = {"markeredgecolor": STAND_INS["paper"], "markeredgewidth": 1.2}
            axes.plot(*line.mark, marker="o", markersize=6, markerfacecolor=color, **edge)
    return _svg(figure)


def adapters_chart(losses: Sequence[Points]) -> str:
    """Training loss of adapters: a line each, or above a dozen their mean in the band that holds them all."""
    figure, axes = _chart("step")
    color = STAND_INS["series-0"]
    # Adapters of more photos take more steps, so that the last steps are the mean of fewer.
    by_step: dict[float, list[float]] = defaultdict(list)
    for points in losses:
        for step, loss in points:
            by_step[step].append(loss)
    steps = sorted(by_step)
    if len(losses) > MAX_LINES:
        low, high = ([extreme(by_step[step]) for step in steps] for extreme in (min, max))
        axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    elif len(losses) > 1:
        for points in losses:
            axes.plot(*zip(*points, strict=True), color=color, alpha=0.35, linewidth=0.9)
    axes.plot(steps, [statistics.fmean(by_step[step]) for step in steps], color=color, linewidth=1.8)
    return _svg(figure)


def _chart(x_label: str) -> tuple[Figure, Axes]:
    # Figure alone, without pyplot: no global state and no display is needed.
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.set_xlabel(x_label, color=STAND_INS["muted"], fontsize=FONT_POINTS)
    axes.tick_params(color=STAND_INS["grid"], labelcolor=STAND_INS["muted"], labelsize=FONT_POINTS, length=3)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=STAND_INS["grid"], linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(STAND_INS["grid"])
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.margins(x=0.02)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The figure as a bare <svg> element: no prolog or namespaces (HTML knows them), no size, the page's colours."""
    buffer = io.StringIO()
    # A fixed salt: the same run gives the same bytes. Text stays text, in the page's own font.
    with matplotlib.rc_context({"svg.hashsalt": "datadream", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])
    # The page's style sets the width; a fixed size would not shrink on a narrow screen.
    for side in ("width", "height"):
        svg = re.sub(rf'(<svg\b[^>]*?)\s{side}="[^"]*"', r"\1", svg, count=1)
    for name, stand_in in STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg
