"""What is found in a source of photos: its classes, its photos by part, and an account of what was left out."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass, field

PART_NAMES = {
    "pool": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
"""How people call the part for shots, the validation and the test part, in any case."""


@dataclass(slots=True)
class Listing:
    """Photos of a source."""

    class_names: tuple[str, ...] = ()
    keys: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """Keys and labels of the photos of each part: pool, val and test."""
    left_out: Counter[str] = field(default_factory=Counter)
    """How many files, folders or rows were not taken, by reason."""


def one_spelling(name: str) -> str:
    """A name with every accented letter as one character: Macs write it as two, and people type one."""
    return unicodedata.normalize("NFC", name)


def part_of(name: str) -> str | None:
    """The part that people mean by a name; None where they mean none."""
    return next((part for part, names in PART_NAMES.items() if name.strip().lower() in names), None)
