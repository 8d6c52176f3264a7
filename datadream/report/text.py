"""The results in words: number formats, the sentence that sums up a run, and the table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable

from datadream.report.records import NO_METHOD, Gain, Record, Row, Summary, summarise

NO_TEST = "no test photos: accuracy unknown"
CHOSEN_ON_TEST = (
    "weights chosen on the test photos themselves (classify.select_on=test), as the authors do: it flatters"
)
HOW_TO_ADD_TEST = (
    "Put labelled photos in test/<class name>/ beside train/<class name>/ in the image folder, or give the classes "
    "more photos than data.n_shots: what the shots leave over is then kept for validation and test."
)

SETTING_NOTES = {
    "zero-shot": "CLIP as it ships, told only the names of the classes; nothing is trained.",
    "real": "CLIP fine-tuned on the few real photos alone: what generated images have to beat.",
    "gda-real": "CLIP untrained, with a Gaussian discriminant of the features of the few real photos added.",
    "gda-synthetic": "The same with the features of generated images.",
    "gda-real+synthetic": "The same with the features of both.",
    "synthetic": "CLIP fine-tuned on generated images alone.",
    "real+synthetic": "CLIP fine-tuned on the real photos and the generated images together.",
}
METHOD_NOTES = {
    "datadream-cls": "Generates after fine-tuning on the photos of each class, with one adapter per class.",
    "datadream-dset": "Generates after fine-tuning on the photos of all classes, with one adapter in all.",
    "is-synth": "Does not train the generator; noises a real photo and lets the generator restore it.",
    "zero-shot": "Does not train the generator; generates from the prompt alone.",
    "none": "Generates no images: the baselines alone.",
}


def number(value: float | None, decimals: int = 1) -> str:
    """A figure with thousands separated and a true minus sign; a dash when it was not measured."""
    return "–" if value is None else f"{value:z,.{decimals}f}".replace("-", "−")


def signed(value: float) -> str:
    text = number(value)
    return text if text.startswith("−") else f"+{text}"


def spread(mean: float | None, sd: float | None) -> str:
    """``87.9 ± 0.6``, or the mean alone when there is no spread."""
    return number(mean) if sd is None else f"{number(mean)} ± {number(sd)}"


def shown_sd(setting: str, sd: float | None) -> float | None:
    """A spread, unless it is that of one untrained model measured again and again."""
    return None if setting == "zero-shot" and sd == 0 else sd


def count(n: int, noun: str) -> str:
    """``1 photo``, ``2,000 photos``."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def listing(words: Iterable[object]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *head, last = map(str, words)
    return f"{', '.join(head)} and {last}" if head else last


def duration(seconds: float | None) -> str:
    """Seconds as a person would say them."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def standard_error(percent: float, n: int) -> float:
    """How far chance in the choice of `n` test photos moves an accuracy, in points (one binomial standard error)."""
    return 100 * math.sqrt(percent / 100 * (1 - percent / 100) / n)


def result_sentences(summary: Summary) -> list[str]:
    """The result in one plain sentence for each number of shots; empty when nothing is known."""
    return [sentence for shots in summary.shots if (sentence := _sentence(summary, shots))]


def _sentence(summary: Summary, shots: int) -> str:
    rows = [row for row in summary.rows if row.shots == shots and row.mean is not None]
    generated = [row for row in rows if row.setting == "real+synthetic"] or [
        row for row in rows if row.setting == "synthetic"
    ]
    shown = [row for row in rows if row.setting in ("zero-shot", "real")]
    shown += [max(generated, key=lambda row: row.mean)] if generated else []
    parts = [f"{number(row.mean)} % {_trained_how(row, best_of=len(generated))}{_gain(summary, row)}" for row in shown]
    return f"{count(shots, 'photo')} per class: {', '.join(parts)}." if parts else ""


def _gain(summary: Summary, row: Row) -> str:
    """The paired gain over real photos, where it has a spread."""
    if row.setting != "real+synthetic":
        return ""
    gains = [gain for gain in summary.gains if (gain.method, gain.shots) == (row.method, row.shots)]
    return "".join(f" ({gain_text(gain)} points, seed by seed)" for gain in gains if gain.sd is not None)


def _trained_how(row: Row, best_of: int) -> str:
    if row.setting == "zero-shot":
        return "without training"
    if row.setting == "real":
        return "on the photos alone"
    images = f"{row.n_synthetic:,} generated images" + (" alone" if row.setting == "synthetic" else "")
    by = f" by {row.method}, the best of {best_of} methods" if best_of > 1 else ""
    return ("on " if row.setting == "synthetic" else "with ") + images + by


def validation_note(summary: Summary) -> str:
    """What the validation figure is worth; empty without one."""
    n_val = max((row.n_val for row in summary.rows), default=0)
    if not n_val:
        return ""
    knobs = "the searched knobs and " if summary.searched else ""
    if any(row.chosen_by in ("shots", "folds") for row in summary.rows):
        return (
            f"Without validation photos, the {count(n_val, 'shot')} chose {knobs}how long to train, left out in turn "
            "where they are trained on; the figure is theirs, and flatters."
        )
    photos = count(n_val, "validation photo")
    return f"The {photos} also chose {knobs}which weights were kept, so that their figure flatters."


def searched(summary: Summary) -> str:
    """Which knobs a search chose, or an empty text where they are fixed."""
    return f"{listing(summary.searched)} searched for each run and setting" if summary.searched else ""


def text_table(found: Iterable[Record]) -> str:
    """Accuracies for the terminal: a line for each setting and method, a column for each number of shots."""
    summary = summarise(found)
    if not summary.rows:
        return "no results yet"
    lines = [["setting", "method", *(count(shots, "shot") for shots in summary.shots)]]
    for setting, method in dict.fromkeys((row.setting, row.method) for row in summary.rows):
        figures = [_text_figure(summary, summary.find(method, setting, shots)) for shots in summary.shots]
        lines.append([setting, "" if method == NO_METHOD else method, *figures])
    for method in dict.fromkeys(gain.method for gain in summary.gains):
        found_gains = {gain.shots: gain for gain in summary.gains if gain.method == method}
        figures = [gain_text(found_gains[shots]) if shots in found_gains else "" for shots in summary.shots]
        lines.append(["gain over real", method, *figures])
    return "\n".join([_text_title(summary), "", *_aligned(lines), *_by_images(summary)])


def _by_images(summary: Summary) -> list[str]:
    """A line for each setting and method and a column for each number of generated images, at the most shots."""
    rows = [row for row in summary.by_images if row.shots == summary.shots[-1]]
    if not rows:
        return []
    numbers = sorted({row.images_per_class for row in rows})
    lines = [["setting", "method", *(count(number, "image") for number in numbers)]]
    for setting, method in dict.fromkeys((row.setting, row.method) for row in rows):
        found = {row.images_per_class: row for row in rows if (row.setting, row.method) == (setting, method)}
        lines.append([setting, method, *(_text_figure(summary, found.get(number)) for number in numbers)])
    return ["", f"by generated images per class, {count(summary.shots[-1], 'shot')}", "", *_aligned(lines)]


def _text_title(summary: Summary) -> str:
    n_test, n_val, n_seeds = (
        max(getattr(row, name) for row in summary.rows) for name in ("n_test", "n_val", "n_seeds")
    )
    over = f", mean ± standard deviation over {n_seeds} seeds" if n_seeds > 1 else ""
    if summary.has_test:
        chosen = f"; {CHOSEN_ON_TEST}" if summary.chosen_on_test else ""
        searching = f"; {searched(summary)}" if summary.searched else ""
        return f"top-1 accuracy on {count(n_test, 'test photo')}, %{over}{searching}{chosen}"
    if not n_val:
        return NO_TEST
    return f"{NO_TEST}. Accuracy on {count(n_val, 'validation photo')}, which also chose the checkpoint, %{over}"


def _text_figure(summary: Summary, row: Row | None) -> str:
    if row is None:
        return ""
    mean, sd = (row.mean, row.sd) if summary.has_test else (row.val_mean, row.val_sd)
    return spread(mean, shown_sd(row.setting, sd))


def gain_text(gain: Gain) -> str:
    """``+1.1 ± 0.4``."""
    return signed(gain.mean) + (f" ± {number(gain.sd)}" if gain.sd is not None else "")


def _aligned(lines: list[list[str]]) -> list[str]:
    """Columns padded to their widest entry; figures line up on the decimal point of their mean."""
    columns = [list(column) for column in zip(*lines, strict=True)]
    for column in columns[2:]:
        heads = [entry.split(" ±")[0] for entry in column[1:]]
        width = max(map(len, heads))
        column[1:] = [" " * (width - len(head)) + entry for head, entry in zip(heads, column[1:], strict=True)]
    widths = [max(map(len, column)) for column in columns]
    padded = zip(
        *([entry.ljust(width) for entry in column] for column, width in zip(columns, widths, strict=True)), strict=True
    )
    return ["  ".join(entries).rstrip() for entries in padded]
