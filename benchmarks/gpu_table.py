"""gpu.json as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TITLES = {
    "tests": "Tests that need a GPU",
    "adapt": "Training adapters, one step",
    "adapt_recorded": "Training adapters with a step as a CUDA graph",
    "adapt_compiled": "Training adapters with compiled blocks",
    "generate": "Drawing images",
    "generate_ahead": "Drawing images in batches, one ahead",
    "generate_compiled": "Drawing images with compiled blocks",
    "attention": "Kernels of attention",
    "classify": "The classifier",
    "roofline": "Share of the peak",
    "resume": "Killed and given again",
}
NOTES = {
    "adapt": "Batch 8, rank 16, text encoder included, milliseconds per adapter and step; photos are read before the "
    "time counts. Plain encodes its 8 crops in each step; ours encodes a crop when it first comes, which is not in "
    "its steps: `a crop` is the time of one.",
    "generate": "Milliseconds per image. Arms of 50 steps were called with the two numbers of steps that are given, "
    "and 50 are extrapolated on the line through both; the presets took all of theirs. Nothing is loaded or written "
    "while the time counts.",
    "generate_compiled": "As above; the first call compiles.",
    "generate_ahead": "Milliseconds per image with the preset turbo, in batches of a quarter: each waited for, or "
    "copied while the next is made, as a chunk's are.",
    "adapt_recorded": "Milliseconds per adapter and step. Where both are equal, Python launches kernels faster than "
    "the GPU runs them.",
    "adapt_compiled": "As above; the first call compiles. Compiled is what adapt.compile=true does: the blocks are "
    "compiled, and the step is a CUDA graph.",
    "attention": "Milliseconds of all attention of one step, forward for images and with backward for training. "
    "`default` is torch's own choice, which is what runs; differences are to it, on normal numbers.",
    "classify": "Milliseconds of a step or an evaluation, all arms without dropout.",
    "roofline": "Operations are matrix products, convolutions and attention, as torch counts them; the peak is that "
    "of a large matrix product, measured here.",
}


def table(record: Mapping[str, Any]) -> str:
    """All parts that are there; what failed says so."""
    machine = record["machine"]
    lines = [f"# {machine['gpu'] or machine['cpu']}, {record['shapes']} ({record['date']})", ""]
    lines += [", ".join(f"{name} {version}" for name, version in machine["versions"].items()), ""]
    for name, part in record["parts"].items():
        lines += [f"## {TITLES.get(name, name)} ({part['seconds']} s)", ""]
        lines += [NOTES[name], ""] if name in NOTES else []
        lines += [f"Not complete: {part['error'].splitlines()[0]}", ""] if part["error"] else []
        lines += _figures(part["figures"])
    return "\n".join(lines)


def _figures(figures: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """A table for each group of arms, a list for what stands alone."""
    if arms := {name: own for name, own in figures.items() if isinstance(own, Mapping) and "ms" in own}:
        yield from _rows(above, arms)
    if alone := {name: own for name, own in figures.items() if not isinstance(own, Mapping)}:
        yield f"- {above or 'result'}: {_together(alone)}"
        for kernel in alone.get("kernels", []):
            yield f"  - {kernel['share']:.1%}, {kernel['ms']:.2f} ms: `{kernel['name'][:90]}`"
        yield ""
    for name, own in figures.items():
        if isinstance(own, Mapping) and "ms" not in own:
            yield from _figures(own, f"{above}, {name}" if above else name)


def _rows(title: str, arms: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    columns = list(dict.fromkeys(column for own in arms.values() for column in own))
    yield f"| {title} | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, own in arms.items():
        yield f"| {name} | {' | '.join(_shown(own.get(column)) for column in columns)} |"
    yield ""


def _together(figures: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_shown(value)}" for name, value in figures.items() if name != "kernels")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):  # a ratio
        return f"{value['median']} {value['ci95']}" if "ci95" in value else _together(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
