"""What a run takes of the photos that it was given, for people to read before any work starts."""

from __future__ import annotations

from collections import Counter
from typing import Any

from datadream.data.datasets import Dataset
from datadream.data.few_shot import FewShotSet

MOST_LINES = 12
"""Classes that are listed on a terminal; the file has all of them."""
HELD_OUT = {"val": ("validation", "choose nothing"), "test": ("test", "are all that accuracy is of")}
"""By their use, what photos are called, and what becomes of them where some classes have none."""


def intake(dataset: Dataset, few_shot: FewShotSet) -> dict[str, Any]:
    """Photos of each class by use, how the class is prompted, and what was left out with its number."""
    # By name: a run that extends another has labels of its own.
    found = Counter(
        dataset.class_names[photo.label] for part in (dataset.pool, dataset.val, dataset.test) for photo in part
    )
    uses = {
        name: Counter(photo.label for photo in part) for name, part in (("val", few_shot.val), ("test", few_shot.test))
    }
    classes = [
        {
            "name": name,
            "prompt": prompt,
            "found": found[name],
            "shots": len(shots),
            **{use: counts[label] for use, counts in uses.items()},
        }
        for label, (name, prompt, shots) in enumerate(
            zip(few_shot.class_names, few_shot.prompts, few_shot.shots, strict=True)
        )
    ]
    return {"classes": classes, "left_out": list(dataset.left_out)}


def intake_lines(told: dict[str, Any]) -> list[str]:
    """The same in words, a line for each class."""
    classes = told["classes"]
    val, test = (sum(each[use] for each in classes) for use in ("val", "test"))
    lines = [f"photos: {len(classes)} classes, {classes[0]['shots']} shots each, {val} to validate and {test} to test"]
    lines += [
        f"  {each['name']}: {each['found']} photos, prompted as {each['prompt']!r}" for each in classes[:MOST_LINES]
    ]
    if len(classes) > MOST_LINES:
        lines.append(f"  and {len(classes) - MOST_LINES} more classes, listed in intake.json")
    for use, (part, effect) in HELD_OUT.items():
        lacking = [each["name"] for each in classes if not each[use]]
        if 0 < len(lacking) < len(classes):
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            lines.append(f"  no {part} photos of {lacking[0]}{more}: those of the other classes {effect}")
    if told["left_out"]:
        lines.append(f"  left out: {', '.join(told['left_out'])}")
    return lines
