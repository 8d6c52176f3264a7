"""Training curves of one run, and accuracy by shots of a table of runs, as charts with their legends."""

from __future__ import annotations

import itertools
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from markupsafe import Markup

from datadream.config import TRAINED_SETTINGS
from datadream.report.plots import MAX_LINES, Line, adapters_chart, line_chart
from datadream.report.records import NO_METHOD, Gain, Row, Summary, classifiers, in_order
from datadream.report.tables import column_name
from datadream.run.layout import ADAPTERS, AdapterMarker, ClassifierMarker, adapter_marker
from datadream.run.store import RunStore

SETTING_COLORS = {"zero-shot": "muted", "real": "series-1", "synthetic": "series-2", "real+synthetic": "series-0"}
SETTING_COLORS |= {f"gda-{setting}": color for setting, color in SETTING_COLORS.items()}
# Series 1 is the colour of real photos, and no images are made by "none".
METHOD_COLORS = {
    "datadream-cls": "series-0",
    "datadream-dset": "series-2",
    "datadream-mix": "series-8",
    "loft": "series-3",
    "disef": "series-4",
    "is-synth": "series-5",
    "language": "series-6",
    "zero-shot": "series-7",
    NO_METHOD: "muted",
}
OWN_METHOD_COLORS = ("series-6", "series-7")


@dataclass(frozen=True, slots=True)
class Chart:
    """An SVG with its title, what its colours mean and a remark."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]
    """Name and colour of each line; empty when the remark says it all."""
    remark: str = ""


def run_charts(store: RunStore) -> list[Chart]:
    """LoRA loss by adapter, then classifier loss and validation accuracy by setting; what is missing is left out."""
    paths = store.fs.ls(store.path(ADAPTERS), detail=False) if store.exists(ADAPTERS) else []
    markers = [adapter_marker(adapter_id) for adapter_id in sorted(map(posixpath.basename, paths))]
    # A thousand adapters are a thousand small files: in an object store each is a round trip.
    with ThreadPoolExecutor() as threads:
        found = threads.map(lambda name: store.read_json(name) if store.exists(name) else None, markers)
        losses = [marker.losses for marker in map(AdapterMarker.from_json, filter(None, found)) if marker.losses]
    charts = []
    if losses:
        remark = f"Mean of {len(losses):,} adapters; the band holds them all."
        if len(losses) <= MAX_LINES:
            remark = f"{len(losses)} adapters; the heavy line is their mean." if len(losses) > 1 else "One adapter."
        charts = [Chart("LoRA loss", Markup(adapters_chart(losses)), [], remark)]
    return charts + _classifiers(classifiers(store))


def accuracy_by_shots(summary: Summary) -> Chart | None:
    """Test accuracy over the number of shots, with spreads; None for fewer than two numbers of shots, or where
    nothing but closed forms was fitted."""
    if len(summary.shots) < 2 or not summary.has_test:
        return None
    with_images = "real+synthetic" if any(row.setting == "real+synthetic" for row in summary.rows) else "synthetic"
    curves: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in summary.rows:
        if row.mean is not None and row.setting in ("zero-shot", "real", with_images):
            curves[row.setting, row.method].append(row)
    lines, legend, colors = [], [], _method_colors(method for _, method in curves)
    for (setting, method), rows in curves.items():
        color = SETTING_COLORS[setting] if method == NO_METHOD else colors[method]
        # Zero-shot CLIP is one model that no seed changes: it has no spread.
        errors = None if setting == "zero-shot" else [row.sd or 0.0 for row in rows]
        points = [(row.shots, row.mean) for row in rows if row.mean is not None]
        lines.append(Line(points, color, dashed=setting == "zero-shot", errors=errors))
        legend.append((column_name(setting, method), color))
    if not lines:
        return None
    svg = line_chart(lines, "photos per class", summary.shots)
    return Chart("Test accuracy by photos per class, %", Markup(svg), legend)


def gain_by_shots(summary: Summary) -> Chart | None:
    """What generated images add over the number of shots, paired by seed; None for fewer than two numbers of shots."""
    curves: dict[str, list[Gain]] = defaultdict(list)
    for gain in summary.gains:
        curves[gain.method].append(gain)
    if len({gain.shots for gain in summary.gains}) < 2:
        return None
    colors = _method_colors(curves)
    lines = [Line([(shots, 0.0) for shots in (summary.shots[0], summary.shots[-1])], "muted", dashed=True)]
    for method, gains in curves.items():
        points, errors = [(gain.shots, gain.mean) for gain in gains], [gain.sd or 0.0 for gain in gains]
        lines.append(Line(points, colors[method], errors=errors))
    legend = [(method, colors[method]) for method in curves]
    has_sd = any(gain.sd is not None for gain in summary.gains)
    remark = "Bars: standard deviation over seeds of the difference." if has_sd else ""
    svg = line_chart(lines, "photos per class", summary.shots)
    return Chart("Gain from generated images, points", Markup(svg), legend, remark)


def accuracy_by_images(summary: Summary) -> Chart | None:
    """Test accuracy over the number of generated images at the most shots (paper, figure 5 left); None for one number.

    Of several methods only the setting with most data is shown.
    """
    rows = [row for row in summary.by_images if row.shots == summary.shots[-1] and row.setting in TRAINED_SETTINGS]
    rows = [row for row in rows if row.mean is not None]
    if not rows:
        return None
    is_one_method = len({row.method for row in rows}) == 1
    numbers = sorted({row.images_per_class for row in rows})
    lines, legend = [], []
    # Baselines use no images: a level line to compare with.
    for setting in ("zero-shot", "real"):
        baseline = summary.find(NO_METHOD, setting, summary.shots[-1])
        if baseline and baseline.mean is not None:
            ends = [(numbers[0], baseline.mean), (numbers[-1], baseline.mean)]
            lines.append(Line(ends, SETTING_COLORS[setting], dashed=True))
            legend.append((setting, SETTING_COLORS[setting]))
    curves: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if is_one_method or row.setting == rows[-1].setting:
            curves[row.setting, row.method].append(row)
    colors = _method_colors(method for _, method in curves)
    for (setting, method), members in curves.items():
        color = SETTING_COLORS[setting] if is_one_method else colors[method]
        points = [(row.images_per_class, row.mean) for row in members if row.mean is not None]
        lines.append(Line(points, color, errors=[row.sd or 0.0 for row in members]))
        legend.append((column_name(setting, method), color))
    svg = line_chart(lines, "generated images per class", numbers)
    return Chart("Test accuracy by generated images per class, %", Markup(svg), legend)


def fid_by_class(values: Mapping[str, Sequence[float | None]]) -> Chart | None:
    """Of each method's FIDs by class, the share of classes with a FID of at most so much; None with one class.

    The paper's figure 4 has histograms, which hide each other where there are several methods.
    """
    lines, legend, colors = [], [], _method_colors(values)
    for method, found in values.items():
        known = sorted(value for value in found if value is not None)
        if len(known) > 1:
            points = [(value, 100 * place / len(known)) for place, value in enumerate(known, start=1)]
            lines.append(Line(points, colors[method]))
            legend.append((method, colors[method]))
    if not lines:
        return None
    return Chart("Classes with a FID of at most so much, %", Markup(line_chart(lines, "FID")), legend)


def _method_colors(methods: Iterable[str]) -> dict[str, str]:
    own = [method for method in in_order(methods) if method not in METHOD_COLORS]
    return METHOD_COLORS | dict(zip(own, itertools.cycle(OWN_METHOD_COLORS), strict=False))


def _classifiers(measured: Mapping[str, ClassifierMarker]) -> list[Chart]:
    """Training loss, and accuracy on the photos that chose the weights, with a line for each setting."""
    losses, readings = {}, {}
    for setting, found in measured.items():
        color = SETTING_COLORS[setting]
        loss, val = (
            [(reading["step"], reading[name]) for reading in found.curve if reading.get(name) is not None]
            for name in ("loss", "val_top1")
        )
        if loss:
            losses[setting] = Line(loss, color)
        if val and setting != "zero-shot":
            kept = next((point for point in val if point[0] == found.best_step), None)
            readings[setting] = Line(val, color, mark=kept)
    # A figure of test photos must not pass for one of validation photos.
    on_test = any(found.chosen_by == "test" for found in measured.values())
    if readings and "zero-shot" in measured:
        untrained = measured["zero-shot"].top1 if on_test else measured["zero-shot"].val_top1
        if untrained is not None:
            last_step = max(line.points[-1][0] for line in readings.values())
            level = Line([(0, untrained), (last_step, untrained)], SETTING_COLORS["zero-shot"], dashed=True)
            readings = {"zero-shot": level} | readings
    remark = "Dots: the weights that were kept." if any(line.mark for line in readings.values()) else ""
    shown = [
        ("Classifier loss", losses, ""),
        (f"{'Test' if on_test else 'Validation'} accuracy, %", readings, remark),
    ]
    return [
        Chart(title, Markup(line_chart(lines.values())), [(name, line.color) for name, line in lines.items()], remark)
        for title, lines, remark in shown
        if lines
    ]
