"""What went wrong: photos taken for another class, the classes that are confused, and those that images hurt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from datadream.config import ExperimentConfig, public_method
from datadream.report.judged import Difference, Judged, difference, judged, voted
from datadream.report.pictures import Picture, photos
from datadream.report.records import classifiers
from datadream.report.tables import Cells, run_name
from datadream.report.text import listing, number
from datadream.run.choice import VOTERS, choose_setting
from datadream.run.layout import ClassifierMarker
from datadream.run.store import RunStore

VOTE = f"vote of {listing(VOTERS)}"
MAX_MISTAKES = 12
MAX_PAIRS = 8
# Classes of a confusion matrix that can be read on a page.
MAX_MATRIX = 20
MAX_CHANGED = 10
"""Classes that images helped most, and as many that they hurt most, where not all are shown."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A test photo that was taken for another class."""

    name: str
    taken_for: str
    confidence: float
    """In percent."""
    picture: Picture | None
    """None where the photo cannot be read here."""


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """Percent of a class's photos; `share` is how strongly the cell is coloured, in percent."""

    text: str
    share: int
    n: int


@dataclass(frozen=True, slots=True)
class Mistakes:
    """The mistakes of one classifier of one run."""

    setting: str
    run: str
    n_photos: int
    n_wrong: int
    worst: list[Mistake]
    """The most confident ones first."""
    pairs: list[tuple[str, str, int, int]]
    """Class, what its photos were taken for, how many of them, and of how many; most first."""
    matrix: list[tuple[str, int, list[MatrixCell]]]
    """Class, its photos and the cells of its row; empty with many classes."""


@dataclass(frozen=True, slots=True)
class ClassChange:
    """One class, trained on real photos alone and with generated images, over all seeds."""

    name: str
    n: int
    """Test photos, counted once for each seed."""
    real: float
    both: float
    """Accuracies in percent."""
    gained: int
    """Photos right with generated images alone."""
    lost: int

    @property
    def points(self) -> float:
        return self.both - self.real


@dataclass(frozen=True, slots=True)
class ClassChanges:
    """The classes that generated images helped, most first, down to those that they hurt most."""

    method: str
    shots: int
    n_seeds: int
    n_classes: int
    n_helped: int
    n_hurt: int
    rows: list[ClassChange]


def differences(store: RunStore, config: ExperimentConfig) -> list[Difference]:
    """Every setting of one run against its real photos alone, paired by test photo, and at last the vote of the two
    that `predict --setting real,real+synthetic` asks, and that of those which `predict` asks where others vote."""
    real = judged(store, "real")
    markers = classifiers(store)
    # Logits are written before their marker.
    if real is None or "real" not in markers:
        return []
    others = [(setting, judged(store, setting)) for setting in markers if setting != "real"]
    for voters in dict.fromkeys([VOTERS, choose_setting(markers).settings]):
        if len(voters) > 1:
            others.append((f"vote of {listing(voters)}", voted([(store, voter) for voter in voters])))
    found = (difference(name, other, real, config.seed) for name, other in others if other)
    return [each for each in found if each]


def mistakes(store: RunStore, config: ExperimentConfig) -> Mistakes | None:
    """Of a run's last setting in the paper's order; None where no photo was tested."""
    markers = classifiers(store)
    setting, found = next(((name, found) for name in reversed(markers) if (found := judged(store, name))), ("", None))
    if found is None:
        return None
    names = class_names(markers[setting])
    wrong = np.flatnonzero(~found.hits)
    # Stable: of equally confident mistakes, the first photo's.
    worst = wrong[np.argsort(-found.confidence[wrong], kind="stable")][:MAX_MISTAKES].tolist()
    totals = np.bincount(found.labels, minlength=len(names)).tolist()
    confused = Counter(zip(found.labels[wrong].tolist(), found.predicted[wrong].tolist(), strict=True))
    ranked = sorted(confused.items(), key=lambda item: (-item[1], item[0]))[:MAX_PAIRS]
    pictures = photos(config, [found.keys[place] for place in worst], "photos of mistakes")
    return Mistakes(
        setting=setting,
        run=run_name(config),
        n_photos=len(found.keys),
        n_wrong=len(wrong),
        worst=[
            Mistake(
                names[found.labels[place]],
                names[found.predicted[place]],
                100 * float(found.confidence[place]),
                picture,
            )
            for place, picture in zip(worst, pictures, strict=True)
        ],
        pairs=[(names[label], names[other], n, totals[label]) for (label, other), n in ranked],
        matrix=list(_matrix(found, names)) if len(names) <= MAX_MATRIX else [],
    )


def class_changes(cells: Cells, shown: ExperimentConfig) -> ClassChanges | None:
    """What generated images did to each class, over the seeds of the runs that differ from `shown` in no more.

    None where no test photo was judged with and without them.
    """
    like = [
        (store, config)
        for store, config in cells
        if (config.method, config.data.n_shots, config.generate.images_per_class)
        == (shown.method, shown.data.n_shots, shown.generate.images_per_class)
    ]
    pairs: list[tuple[RunStore, Judged, Judged]] = []
    for store, config in like:
        both = judged(store, "real+synthetic")
        # Of any run with the same shots: a table trains on real photos alone once for all methods.
        shots = (config.seed, config.data.n_shots)
        found = (judged(each, "real") for each, other in cells if (other.seed, other.data.n_shots) == shots)
        real = next(filter(None, found), None)
        if both and real and both.keys == real.keys:
            pairs.append((store, both, real))
    if not pairs:
        return None
    names = class_names(classifiers(pairs[0][0])["real+synthetic"])
    labels, with_images, alone = (
        np.concatenate(parts)
        for parts in zip(*((both.labels, both.hits, real.hits) for _, both, real in pairs), strict=True)
    )
    # minlength: a class of the last labels may have no test photo, and is left out below.
    counted = [
        np.bincount(labels[kept], minlength=len(names)).tolist()
        for kept in (labels >= 0, alone, with_images, with_images & ~alone, alone & ~with_images)
    ]
    rows = [
        ClassChange(name, n, 100 * before / n, 100 * after / n, gained, lost)
        for name, n, before, after, gained, lost in zip(names, *counted, strict=True)
        if n
    ]
    rows.sort(key=lambda row: -row.points)
    n_helped, n_hurt = sum(row.points > 0 for row in rows), sum(row.points < 0 for row in rows)
    ends = rows if len(rows) <= 2 * MAX_CHANGED else rows[:MAX_CHANGED] + rows[-MAX_CHANGED:]
    return ClassChanges(public_method(shown.method), shown.data.n_shots, len(pairs), len(rows), n_helped, n_hurt, ends)


def class_names(found: ClassifierMarker) -> list[str]:
    """Names by label."""
    return [entry["name"] for entry in found.per_class or ()]


def _matrix(found: Judged, names: Sequence[str]) -> Iterator[tuple[str, int, list[MatrixCell]]]:
    """Rows of the confusion matrix: shares of each class's photos, so that classes of any size compare."""
    n = len(names)
    counts = np.bincount(found.labels * n + found.predicted, minlength=n * n).reshape(n, n)
    for name, row in zip(names, counts.tolist(), strict=True):
        total = sum(row)
        cells = []
        for count in row:
            share = count / total if total else 0.0
            text = "" if not count else "<1" if share < 0.005 else number(100 * share, 0)
            # By the root, from a quarter on: one photo in a hundred is to be seen beside ninety.
            cells.append(MatrixCell(text, round(25 + 75 * share**0.5) if count else 0, count))
        yield name, total, cells
