"""The results in words: number formats, the sentence that sums up a run, and the table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable

from datadream.config import GAUSSIAN_SETTINGS, TRAINED_SETTINGS
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
    "datadream-mix": "Generates with one adapter per class, and every other image without.",
    "loft": "Generates after fine-tuning on each photo alone, with the adapters of two photos mixed.",
    "is-synth": "Does not train the generator; noises a real photo and lets the generator restore it.",
    "disef": "Does not train the generator; noises a real photo and has it restored by the caption of another.",
    "language": "Does not train the generator; generates from descriptions of the classes.",
    "zero-shot": "Does not train the generator; generates from the prompt alone.",
    "none": "Generates no images: the baselines alone.",
}


def number(value: float | None, decimals: int = 1) -> str:
    """A figure with thousands separated and a true minus sign; a dash when it was not measured."""
    # z: what rounds to zero has no minus sign.
    return "–" if value is None else f"{value:z,.{decimals}f}".replace("-", "−")


def signed(value: float) -> str:
    text = number(value)
    return text if text.startswith("−") else f"+{text}"


def shown_sd(setting: str, sd: float | None) -> float | None:
    """A spread, unless it is that of one untrained model measured again and again."""
    return None if setting == "zero-shot" and sd == 0 else sd


def count(n: int, noun: str, plural: str = "") -> str:
    """``1 photo``, ``2,000 photos``, ``2 classes``."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


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


def sampling_error(summary: Summary) -> float | None:
    """How far chance in the choice of test photos moves a figure of the summary at most, in points."""
    # One binomial standard error of each figure.
    return max(
        (
            100 * math.sqrt(row.mean / 100 * (1 - row.mean / 100) / row.n_test)
            for row in summary.rows
            if row.mean is not None and row.n_test
        ),
        default=None,
    )


def result_sentences(summary: Summary) -> list[str]:
    """The result in one plain sentence for each number of shots; empty when nothing is known."""
    sentences = []
    for shots in summary.shots:
        found = [(row, row.mean) for row in summary.rows if row.shots == shots and row.mean is not None]
        parts = [
            f"{number(mean)} % {'without training' if row.setting == 'zero-shot' else 'on the photos alone'}"
            for row, mean in found
            if row.setting in ("zero-shot", "real")
        ]
        # Images beside the photos are the paper's result; images alone are told of where nothing else was trained.
        generated = [each for each in found if each[0].setting == "real+synthetic"]
        generated = generated or [each for each in found if each[0].setting == "synthetic"]
        if generated:
            row, mean = max(generated, key=lambda each: each[1])
            images = f"{row.n_synthetic:,} generated images"
            how = f"on {images} alone" if row.setting == "synthetic" else f"with {images}"
            by = f" by {row.method}, the best of {len(generated)} methods" if len(generated) > 1 else ""
            gains = [
                f" ({gain_text(gain)} points, seed by seed)"
                for gain in summary.gains
                if (gain.method, gain.shots) == (row.method, shots) and gain.sd is not None
            ]
            paired = "".join(gains) if row.setting == "real+synthetic" else ""
            parts.append(f"{number(mean)} % {how}{by}{paired}")
        if parts:
            sentences.append(f"{count(shots, 'photo')} per class: {', '.join(parts)}.")
    return sentences


def validation_note(summary: Summary) -> str:
    """What the validation figure is worth; empty without one."""
    n_val = _n_chose(summary)
    if not n_val:
        return ""
    knobs = "the searched knobs and " if summary.searched else ""
    if any(row.chosen_by in ("shots", "folds") for row in summary.rows):
        chosen = {row.setting for row in summary.rows if row.chosen_by in ("shots", "folds")}
        what = ["how long to train"] if chosen & set(TRAINED_SETTINGS) else []
        what += ["the weight of gda-"] if chosen & set(GAUSSIAN_SETTINGS) else []
        return (
            f"Without validation photos of every class, the {count(n_val, 'shot')} chose {knobs}{' and '.join(what)}, "
            "left out in turn where they are trained on; the figure is theirs, and flatters."
        )
    photos = count(n_val, "validation photo")
    return f"The {photos} also chose {knobs}which weights were kept, so that their figure flatters."


def _n_chose(summary: Summary) -> int:
    """How many photos chose; what is not trained has nothing to choose, whatever it is read on."""
    return max((row.n_val for row in summary.rows if row.setting != "zero-shot"), default=0)


def searched(summary: Summary) -> str:
    """Which knobs a search chose, or an empty text where they are fixed."""
    return f"{listing(summary.searched)} searched for each run and setting" if summary.searched else ""


def gain_text(gain: Gain) -> str:
    """``+1.1 ± 0.4``."""
    return signed(gain.mean) + (f" ± {number(gain.sd)}" if gain.sd is not None else "")


def text_table(found: Iterable[Record]) -> str:
    """Accuracies for the terminal: a line for each setting and method, a column for each number of shots; and where
    several numbers of generated images were trained on, a table of these at the most shots."""
    summary = summarise(found)
    if not summary.rows:
        return "no results yet"
    lines = [["setting", "method", *(count(shots, "shot") for shots in summary.shots)]]
    for setting, method in dict.fromkeys((row.setting, row.method) for row in summary.rows):
        figures = [_text_figure(summary, summary.find(method, setting, shots)) for shots in summary.shots]
        lines.append([setting, "" if method == NO_METHOD else method, *figures])
    for method in dict.fromkeys(gain.method for gain in summary.gains):
        gains = {gain.shots: gain_text(gain) for gain in summary.gains if gain.method == method}
        lines.append(["gain over real", method, *(gains.get(shots, "") for shots in summary.shots)])
    printed = [_text_title(summary), "", *aligned(lines)]
    rows = [row for row in summary.by_images if row.shots == summary.shots[-1]]
    if rows:
        numbers = sorted({row.images_per_class for row in rows})
        lines = [["setting", "method", *(count(n, "image") for n in numbers)]]
        for setting, method in dict.fromkeys((row.setting, row.method) for row in rows):
            by_number = {row.images_per_class: row for row in rows if (row.setting, row.method) == (setting, method)}
            lines.append([setting, method, *(_text_figure(summary, by_number.get(n)) for n in numbers)])
        title = f"by generated images per class, {count(summary.shots[-1], 'shot')}"
        printed += ["", title, "", *aligned(lines)]
    return "\n".join(printed)


def _text_title(summary: Summary) -> str:
    n_test, n_seeds = (max(getattr(row, name) for row in summary.rows) for name in ("n_test", "n_seeds"))
    n_val = _n_chose(summary)
    over = f", mean ± standard deviation over {n_seeds} seeds" if n_seeds > 1 else ""
    if summary.has_test:
        chosen = f"; {CHOSEN_ON_TEST}" if summary.chosen_on_test else ""
        searching = f"; {searched(summary)}" if summary.searched else ""
        return f"top-1 accuracy on {count(n_test, 'test photo')}, %{over}{searching}{chosen}"
    if not n_val:
        return NO_TEST
    if any(row.chosen_by in ("folds", "shots") for row in summary.rows):
        read = f"{count(n_val, 'shot')}, left out in turn where real photos are trained on"
        seen = "; synthetic has seen them" if any("synthetic" in row.setting for row in summary.rows) else ""
        return f"{NO_TEST}. Accuracy on the {read}{seen}, %{over}"
    return f"{NO_TEST}. Accuracy on {count(n_val, 'validation photo')}, which also chose the checkpoint, %{over}"


def _text_figure(summary: Summary, row: Row | None) -> str:
    """``87.9 ± 0.6``, or the mean alone when there is no spread."""
    if row is None:
        return ""
    # Without test photos the validation figure is all there is; the title says so.
    mean, sd = (row.mean, row.sd) if summary.has_test else (row.val_mean, row.val_sd)
    shown = shown_sd(row.setting, sd)
    return number(mean) if shown is None else f"{number(mean)} ± {number(shown)}"


def aligned(lines: list[list[str]]) -> list[str]:
    """Columns padded to their widest entry; figures line up on the decimal point of their mean."""
    columns = [list(column) for column in zip(*lines, strict=True)]
    for column in columns[2:]:
        heads = [entry.split(" ±")[0] for entry in column[1:]]
        width = max(map(len, heads))
        column[1:] = [" " * (width - len(head)) + entry for head, entry in zip(heads, column[1:], strict=True)]
    padded = [[entry.ljust(max(map(len, column))) for entry in column] for column in columns]
    return ["  ".join(entries).rstrip() for entries in zip(*padded, strict=True)]
