"""Paired gains over seeds, and their table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy.stats import t

from datadream.run.choice import VOTERS, choose_setting
from datadream.run.layout import ClassifierMarker

CHOSEN = "chosen"
"""What `predict` would take of zero-shot, real and real+synthetic, were all in one run; a table has them in two."""
VOTE = "vote"
"""The mean of the probabilities of real and real+synthetic."""
VOTE_WITH_ZERO_SHOT = "vote, zero-shot too"
VOTE_WITHOUT_IMAGES = "vote, real and zero-shot"
VOTES = {
    VOTE: VOTERS,
    VOTE_WITH_ZERO_SHOT: (*VOTERS, "zero-shot"),
    VOTE_WITHOUT_IMAGES: ("real", "zero-shot"),
}
PAIRS = (
    ("real+synthetic", "real"),
    (CHOSEN, "real"),
    (VOTE, "real"),
    (VOTE_WITH_ZERO_SHOT, "real"),
    (VOTE_WITHOUT_IMAGES, "real"),
    (VOTE_WITH_ZERO_SHOT, VOTE_WITHOUT_IMAGES),
    ("gda-real+synthetic", "gda-real"),
)
"""Whose difference is measured: what generated images add, but for votes in which zero-shot takes part beside real."""


def interval(differences: Sequence[float]) -> dict[str, Any]:
    """Mean and half of its 95 % interval by Student's t; None of a single difference."""
    n = len(differences)
    half = t.ppf(0.975, n - 1) * statistics.stdev(differences) / math.sqrt(n) if n > 1 else None
    return {"mean": round(statistics.fmean(differences), 2), "half": half and round(half, 2), "n": n}


def over_sets(by_set: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean of the sets' means, and half of its 95 % interval: other seeds on these sets, not other sets.

    Spreads and seeds differ by set, so the degrees of freedom are Welch and Satterthwaite's.
    """
    mean = round(statistics.fmean(statistics.fmean(each) for each in by_set), 2)
    if min(map(len, by_set)) < 2:
        return {"mean": mean, "half": None, "n": len(by_set)}
    parts = [statistics.variance(each) / len(each) for each in by_set]
    total = sum(parts)
    freedom = total**2 / (sum(p**2 / (len(each) - 1) for p, each in zip(parts, by_set, strict=True)) or 1)
    half = t.ppf(0.975, freedom) * math.sqrt(total) / len(by_set) if total else 0.0
    return {"mean": mean, "half": round(half, 2), "n": len(by_set)}


def differences(rows: Sequence[dict[str, Any]], name: str, shots: int, ours: str, other: str) -> list[float]:
    """top1 of one arm less that of another, by seed."""
    own = [row for row in rows if (row["set"], row["shots"]) == (name, shots)]
    made = []
    for seed in sorted({row["seed"] for row in own}):
        found = {row["setting"]: row for row in own if row["seed"] == seed}
        arm = ours
        if ours == CHOSEN:
            # Of its classes the choice needs the number alone.
            classes = {"per_class": [{}] * own[0]["intake"]["classes"]}
            markers = {each: ClassifierMarker.from_json(found[each] | classes) for each in VOTES[VOTE_WITH_ZERO_SHOT]}
            taken = choose_setting(markers).settings
            arm = next((name for name, voters in VOTES.items() if voters == taken), taken[0])
        made.append(found[arm]["top1"] - found[other]["top1"])
    return made


def named(pair: tuple[str, str]) -> str:
    """As a column of the table."""
    return " − ".join(pair)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each set and number of shots, then one for all sets of that number."""
    made = []
    for shots in sorted({row["shots"] for row in rows}):
        names = list(dict.fromkeys(row["set"] for row in rows if row["shots"] == shots))
        for name in names:
            own = [row for row in rows if (row["set"], row["shots"]) == (name, shots)]
            arms = {arm: [row["top1"] for row in own if row["setting"] == arm] for arm in {r["setting"] for r in own}}
            top1 = {arm: round(statistics.fmean(values), 2) for arm, values in arms.items()}
            gains = {named(pair): interval(differences(rows, name, shots, *pair)) for pair in PAIRS}
            made.append({"set": name, "shots": shots, "top1": top1, "gains": gains} | _told(own[0]))
        gains = {named(pair): over_sets([differences(rows, name, shots, *pair) for name in names]) for pair in PAIRS}
        made.append({"set": "all", "shots": shots, "top1": {}, "gains": gains})
    return made


def _told(row: dict[str, Any]) -> dict[str, Any]:
    return {"intake": row["intake"], "cost": row["cost"]}


def markdown(result: dict[str, Any]) -> str:
    """The summary as a table."""
    arms = ("zero-shot", "gda-real", "real", "synthetic", "gda-real+synthetic", "real+synthetic")
    head = ["set", "photos per class", "test photos", *(f"`{arm}`" for arm in arms), *map(named, PAIRS)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in result["summary"]:
        test = str(row["intake"]["test"]) if "intake" in row else ""
        figures = [f"{row['top1'][arm]:.1f}" if arm in row["top1"] else "" for arm in arms]
        gains = [told(row["gains"][named(pair)]) for pair in PAIRS]
        lines.append(f"| {' | '.join([row['set'], str(row['shots']), test, *figures, *gains])} |")
    return "\n".join([*lines, *(f"\n{run} failed: {why}" for run, why in result["failed"].items())])


def told(gain: dict[str, Any]) -> str:
    return f"{gain['mean']:+.1f}" + (f" ± {gain['half']:.1f}" if gain["half"] is not None else "")
