"""The figures of a run as flat records, and their means and spreads over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from datadream.config import (
    SETTINGS_WITHOUT_IMAGES,
    ExperimentConfig,
    MethodName,
    Setting,
    public_dataset,
    public_method,
)
from datadream.run.cell import images_store
from datadream.run.layout import DATASET, ClassifierMarker, DatasetMarker, SelectionTotals, classifier_marker
from datadream.run.store import RunStore

Record = dict[str, Any]
# Method, setting, shots and generated images per class.
Group = tuple[str, str, int, int]

# In the order of the paper's tables; of the methods the baselines first.
SETTINGS: tuple[str, ...] = get_args(Setting)
METHODS: tuple[str, ...] = get_args(MethodName)
NO_METHOD = "none"
# What a record says beside top-1, and runs of older versions may lack.
FURTHER = ("top5", "macro", "ece", "chosen_by")
COUNTS = ("n_test", "n_val", "n_synthetic", "images_per_class")


@dataclass(frozen=True, slots=True)
class Row:
    """One way to train at one number of shots, over its seeds; accuracies in percent."""

    method: str
    setting: str
    shots: int
    mean: float | None
    """Test accuracy; None without test photos."""
    sd: float | None
    """Sample standard deviation; None with fewer than two seeds."""
    val_mean: float | None
    val_sd: float | None
    n_seeds: int
    n_test: int
    n_val: int
    n_synthetic: int
    images_per_class: int
    """Generated images per class to train on; 0 where none are used."""
    top5: float | None = None
    """None with five classes or fewer."""
    macro: float | None = None
    """Mean over classes."""
    ece: float | None = None
    """Expected calibration error, in points."""
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """95 % bootstrap intervals of top1, top5, macro and ece, where known; of one seed alone."""
    chosen_by: str | None = None
    """Photos that chose the weights: val, test, shots or folds; None: nothing was chosen."""
    searched: tuple[str, ...] = ()
    """Knobs of training that a search chose, of each run for itself."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What a method's images add to the real photos: real+synthetic minus real, paired by seed, in points."""

    method: str
    shots: int
    mean: float
    sd: float | None
    n_seeds: int


@dataclass(frozen=True, slots=True)
class Summary:
    """All rows in the order of the paper's tables, and the paired gains."""

    rows: tuple[Row, ...]
    gains: tuple[Gain, ...]
    by_images: tuple[Row, ...] = ()
    """Where several numbers of generated images were trained on: a row for each. `rows` has the largest alone."""

    @property
    def shots(self) -> list[int]:
        return sorted({row.shots for row in self.rows})

    @property
    def has_test(self) -> bool:
        return any(row.mean is not None for row in self.rows)

    @property
    def chosen_on_test(self) -> bool:
        """Whether test photos chose some weights, so that their figures flatter."""
        return any(row.chosen_by == "test" for row in self.rows)

    @property
    def searched(self) -> list[str]:
        """Knobs of training that a search chose."""
        return list(dict.fromkeys(name for row in self.rows for name in row.searched))

    def find(self, method: str, setting: str, shots: int) -> Row | None:
        return next((r for r in self.rows if (r.method, r.setting, r.shots) == (method, setting, shots)), None)


def classifiers(store: RunStore) -> dict[str, ClassifierMarker]:
    """The committed metrics of every setting, in the paper's order."""
    found = {}
    for setting in SETTINGS:
        if store.exists(name := classifier_marker(setting)):
            value = store.read_json(name)
            # Older versions knew an interval of top-1 alone, under a name of its own.
            older = {"top1": value["top1_interval"]} if value.get("top1_interval") else {}
            found[setting] = ClassifierMarker.from_json(value | {"intervals": value.get("intervals") or older})
    return found


def method_of(setting: str, config: ExperimentConfig) -> str:
    """The method that a setting's figures belong to: none for the settings that use no images."""
    return NO_METHOD if setting in SETTINGS_WITHOUT_IMAGES else public_method(config.method)


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods in the paper's order, then those of users by name."""
    return sorted(set(methods), key=_method_order)


def _method_order(method: str) -> tuple[int, str]:
    return METHODS.index(method) if method in METHODS else len(METHODS), method


def records(store: RunStore, config: ExperimentConfig) -> list[Record]:
    """One record for each committed setting of one run."""
    selection = selection_totals(images_store(store, config))
    return [
        {
            "method": method_of(setting, config),
            "setting": setting,
            "shots": config.data.n_shots,
            "seed": config.seed,
            **{name: getattr(found, name) for name in ("top1", "n_test", "val_top1", "n_val", "n_synthetic")},
            "images_per_class": 0 if setting in SETTINGS_WITHOUT_IMAGES else config.generate.images_per_class,
            "dataset": public_dataset(config.data),
            **{name: getattr(found, name) for name in (*FURTHER, "intervals")},
            "chosen_knobs": (found.search or {}).get("knobs"),
            "selection": None if setting in SETTINGS_WITHOUT_IMAGES else selection,
        }
        for setting, found in classifiers(store).items()
    ]


def selection_totals(store: RunStore) -> Record | None:
    """What filters left out of the run's dataset: `candidates`, `published`, `rejected` by reason, `n_short` classes
    with fewer images than wanted, and the `worst` class; None where all images were published, or another run
    generated them."""
    marker = DatasetMarker.from_json(store.read_json(DATASET)) if store.exists(DATASET) else None
    if marker is None or not marker.selection:
        return None
    # Older versions did not name the worst class.
    totals = SelectionTotals.from_json({"worst": None, **marker.selection})
    counts = {"candidates": totals.candidates, "published": marker.n_images, "rejected": totals.rejected}
    return counts | {"n_short": len(totals.short), "worst": totals.worst}


def unique(found: Iterable[Record]) -> list[Record]:
    """Records in the paper's order, without the baselines that the cells of a table share."""
    first: dict[tuple, Record] = {}
    for record in found:
        first.setdefault((*_group(record), record["seed"], record["dataset"]), record)
    return [first[key] for key in sorted(first, key=lambda key: (_paper_order(key), key[3:]))]


def summarise(found: Iterable[Record]) -> Summary:
    """Means and spreads over seeds, in the paper's order: zero-shot, real, synthetic and real+synthetic by method."""
    points: dict[Group, list[Record]] = defaultdict(list)
    for record in unique(found):
        points[_group(record)].append(record)
    order = sorted(points, key=lambda group: (_paper_order(group), group))
    # Ascending, so that of several numbers of images the largest stays.
    groups = {group[:3]: points[group] for group in order}
    has_curve = len(points) > len(groups)
    return Summary(
        rows=tuple(_row(*group, members) for group, members in groups.items()),
        gains=tuple(_gains(groups)),
        by_images=tuple(_row(*group[:3], points[group]) for group in order if group[3] and has_curve),
    )


def mean_and_sd(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of what was measured; None where there is too little for it."""
    known = [value for value in values if value is not None]
    return (statistics.fmean(known) if known else None), (statistics.stdev(known) if len(known) > 1 else None)


def _group(record: Record) -> Group:
    return record["method"], record["setting"], record["shots"], record["images_per_class"]


def _paper_order(group: tuple) -> tuple[int, tuple[int, str], int]:
    method, setting, shots = group[:3]
    return SETTINGS.index(setting), _method_order(method), shots


def _row(method: str, setting: str, shots: int, members: list[Record]) -> Row:
    mean, sd = mean_and_sd(record["top1"] for record in members)
    val_mean, val_sd = mean_and_sd(record["val_top1"] for record in members)
    figures: dict[str, Any] = {name: max(record[name] for record in members) for name in COUNTS}
    # `get`: metrics.json of versions before these figures lacks them.
    figures |= {name: mean_and_sd(record.get(name) for record in members)[0] for name in ("top5", "macro", "ece")}
    return Row(
        method=method,
        setting=setting,
        shots=shots,
        mean=mean,
        sd=sd,
        val_mean=val_mean,
        val_sd=val_sd,
        n_seeds=len(members),
        **figures,
        # An interval of one test set's resamplings; over seeds there is a deviation instead.
        intervals=members[0].get("intervals", {}) if len(members) == 1 else {},
        chosen_by=next((by for record in members if (by := record.get("chosen_by"))), None),
        searched=tuple(dict.fromkeys(name for record in members for name in record.get("chosen_knobs") or ())),
    )


def _gains(groups: dict[tuple[str, str, int], list[Record]]) -> Iterable[Gain]:
    for method, setting, shots in sorted(groups, key=_paper_order):
        if setting != "real+synthetic":
            continue
        real, both = (
            {record["seed"]: record["top1"] for record in members if record["top1"] is not None}
            for members in (groups.get((NO_METHOD, "real", shots), []), groups[method, setting, shots])
        )
        # Paired by seed: both were trained on the same shots, whose luck cancels out.
        differences = [both[seed] - real[seed] for seed in sorted(both.keys() & real.keys())]
        mean, sd = mean_and_sd(differences)
        if mean is not None:
            yield Gain(method, shots, mean, sd, len(differences))
