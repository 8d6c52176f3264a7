"""Training curves of one run, and accuracy by shots of a table of runs, as charts with their legends."""

from __future__ import annotations

import itertools
import posixpath
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from datadream.config import TRAINED_SETTINGS, ExperimentConfig
from datadream.report.plots import MAX_LINES, Line, Points, adapters_chart, counts_chart, line_chart
from datadream.report.records import METHODS, NO_METHOD, Gain, Row, Summary, classifiers
from datadream.report.tables import column_name, run_name
from datadream.run.layout import ADAPTERS, adapter_marker
from datadream.run.store import RunStore

SETTING_COLORS = {"zero-shot": "muted", "real": "series-1", "synthetic": "series-2", "real+synthetic": "series-0"}
SETTING_COLORS |= {f"gda-{setting}": color for setting, color in SETTING_COLORS.items()}
METHOD_COLORS = dict(zip(METHODS[::-1], itertools.cycle(f"series-{i}" for i in (0, 2, 3, 4, 5, 6, 7)), strict=False))


@dataclass(frozen=True, slots=True)
class Chart:
    """An SVG with its title, what its colours mean and a remark."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]
    """Name and colour of each line; empty when the remark says it all."""
    remark: str = ""


@dataclass(frozen=True, slots=True)
class RunCurves:
    """The charts of one run."""

    name: str
    charts: list[Chart]


def run_curves(store: RunStore, config: ExperimentConfig) -> RunCurves:
    """LoRA loss by adapter, then classifier loss and validation accuracy by setting; what is missing is left out."""
    measured = classifiers(store)
    charts = [_adapters(store), _classifier_loss(measured), _validation(measured)]
    return RunCurves(run_name(config), [chart for chart in charts if chart is not None])


def accuracy_by_shots(summary: Summary) -> Chart | None:
    """Test accuracy over the number of shots, with spreads; None for fewer than two numbers of shots."""
    if len(summary.shots) < 2 or not summary.has_test:
        return None
    with_images = "real+synthetic" if any(row.setting == "real+synthetic" for row in summary.rows) else "synthetic"
    curves: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in summary.rows:
        if row.mean is not None and row.setting in ("zero-shot", "real", with_images):
            curves[row.setting, row.method].append(row)
    lines, legend = [], []
    for (setting, method), rows in curves.items():
        color = SETTING_COLORS[setting] if method == NO_METHOD else METHOD_COLORS[method]
        errors = None if setting == "zero-shot" else [row.sd or 0.0 for row in rows]
        points = [(row.shots, row.mean) for row in rows]
        lines.append(Line(points, color, dashed=setting == "zero-shot", errors=errors))
        legend.append((column_name(setting, method), color))
    svg = counts_chart(lines, summary.shots, "photos per class")
    return Chart("Test accuracy by photos per class, %", Markup(svg), legend)


def gain_by_shots(summary: Summary) -> Chart | None:
    """What generated images add over the number of shots, paired by seed; None for fewer than two numbers of shots."""
    curves: dict[str, list[Gain]] = defaultdict(list)
    for gain in summary.gains:
        curves[gain.method].append(gain)
    if len({gain.shots for gain in summary.gains}) < 2:
        return None
    lines = [Line([(shots, 0.0) for shots in (summary.shots[0], summary.shots[-1])], "muted", dashed=True)]
    for method, gains in curves.items():
        points, errors = [(gain.shots, gain.mean) for gain in gains], [gain.sd or 0.0 for gain in gains]
        lines.append(Line(points, METHOD_COLORS[method], errors=errors))
    legend = [(method, METHOD_COLORS[method]) for method in curves]
    svg = counts_chart(lines, summary.shots, "photos per class")
    has_sd = any(gain.sd is not None for gain in summary.gains)
    remark = "Bars: standard deviation over seeds of the difference." if has_sd else ""
    return Chart("Gain from generated images, points", Markup(svg), legend, remark)


def accuracy_by_images(summary: Summary) -> Chart | None:
    """Test accuracy over the number of generated images at the most shots (paper, figure 5 left); None for one number.

    Of several methods only the setting with most data is shown.
    """
    rows = [row for row in summary.by_images if row.shots == summary.shots[-1] and row.mean is not None]
    if not rows:
        return None
    is_one_method = len({row.method for row in rows}) == 1
    numbers = sorted({row.images_per_class for row in rows})
    curves: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.setting in TRAINED_SETTINGS and (is_one_method or row.setting == rows[-1].setting):
            curves[row.setting, row.method].append(row)
    lines, legend = [], []
    for setting in ("zero-shot", "real"):
        baseline = summary.find(NO_METHOD, setting, summary.shots[-1])
        if baseline and baseline.mean is not None:
            ends = [(numbers[0], baseline.mean), (numbers[-1], baseline.mean)]
            lines.append(Line(ends, SETTING_COLORS[setting], dashed=True))
            legend.append((setting, SETTING_COLORS[setting]))
    for (setting, method), members in curves.items():
        color = SETTING_COLORS[setting] if is_one_method else METHOD_COLORS[method]
        points = [(row.images_per_class, row.mean) for row in members]
        lines.append(Line(points, color, errors=[row.sd or 0.0 for row in members]))
        legend.append((column_name(setting, method), color))
    svg = counts_chart(lines, numbers, "generated images per class")
    return Chart("Test accuracy by generated images per class, %", Markup(svg), legend)


def _adapters(store: RunStore) -> Chart | None:
    losses = [losses for losses in _adapter_losses(store) if losses]
    if not losses:
        return None
    if len(losses) == 1:
        remark = "One adapter."
    elif len(losses) <= MAX_LINES:
        remark = f"{len(losses)} adapters; the heavy line is their mean."
    else:
        remark = f"Mean of {len(losses):,} adapters; the band holds them all."
    return Chart("LoRA loss", Markup(adapters_chart(losses)), [], remark)


def _adapter_losses(store: RunStore) -> list[Points]:
    """Losses of every committed adapter."""
    if not store.exists(ADAPTERS):
        return []
    ids = sorted(posixpath.basename(path) for path in store.fs.ls(store.path(ADAPTERS), detail=False))
    # A thousand adapters are a thousand small files: in an object store each is a round trip.
    with ThreadPoolExecutor() as threads:
        return list(threads.map(lambda adapter_id: _losses(store, adapter_marker(adapter_id)), ids))


def _losses(store: RunStore, marker: str) -> Points:
    return store.read_json(marker).get("losses") or [] if store.exists(marker) else []


def _classifier_loss(measured: dict[str, dict[str, Any]]) -> Chart | None:
    curves = {setting: _points(metrics, "loss") for setting, metrics in measured.items()}
    lines = {setting: Line(points, SETTING_COLORS[setting]) for setting, points in curves.items()}
    return _by_setting(lines, "Classifier loss")


def _validation(measured: dict[str, dict[str, Any]]) -> Chart | None:
    curves = {setting: _points(metrics, "val_top1") for setting, metrics in measured.items() if setting != "zero-shot"}
    lines = {}
    for setting, points in curves.items():
        kept = next((point for point in points if point[0] == measured[setting].get("best_step")), None)
        lines[setting] = Line(points, SETTING_COLORS[setting], mark=kept)
    last_step = max((points[-1][0] for points in curves.values() if points), default=None)
    on_test = any(metrics.get("chosen_by") == "test" for metrics in measured.values())
    untrained = measured.get("zero-shot", {}).get("top1" if on_test else "val_top1")
    if last_step and untrained is not None:
        lines = {
            "zero-shot": Line([(0, untrained), (last_step, untrained)], SETTING_COLORS["zero-shot"], dashed=True),
            **lines,
        }
    remark = "Dots: the weights that were kept." if any(line.mark for line in lines.values()) else ""
    return _by_setting(lines, f"{'Test' if on_test else 'Validation'} accuracy, %", remark)


def _points(metrics: dict[str, Any], name: str) -> Points:
    return [
        (reading["step"], reading[name]) for reading in metrics.get("curve") or [] if reading.get(name) is not None
    ]


def _by_setting(lines: dict[str, Line], title: str, remark: str = "") -> Chart | None:
    lines = {setting: line for setting, line in lines.items() if line.points}
    if not lines:
        return None
    legend = [(setting, line.color) for setting, line in lines.items()]
    return Chart(title, Markup(line_chart(lines.values())), legend, remark)
