"""What a classifier said of each test photo, and how two classifiers differ on the same photos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datadream.config import ExperimentConfig, public_method
from datadream.report.records import Gain, classifiers, in_order, mean_and_sd
from datadream.run.layout import classifier_logits
from datadream.run.store import RunStore

# Logits of ImageNet's 50,000 photos are 200 MB: they are read in parts, of which three numbers a photo are kept.
ROWS = 4096
RESAMPLES = 10_000


@dataclass(frozen=True)
class Judged:
    """The test photos of one setting of one run, in the run's order."""

    keys: tuple[str, ...]
    """Paths below data.source."""
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    """Probability of the predicted class, in [0, 1]."""

    @cached_property
    def hits(self) -> NDArray[np.bool_]:
        return self.predicted == self.labels


@dataclass(frozen=True, slots=True)
class Difference:
    """Accuracy of a setting minus that of another on the same photos, in points."""

    setting: str
    mean: float
    low: float
    high: float
    """Ends of the paired 95 % bootstrap interval."""
    gained: int
    """Photos that this setting alone gets right."""
    lost: int
    """Photos that the other alone gets right."""


def judged(store: RunStore, setting: str) -> Judged | None:
    """The judgements of a committed setting; None without test photos, and in runs whose version kept no logits."""
    return voted([(store, setting)])


def voted(members: Sequence[tuple[RunStore, str]]) -> Judged | None:
    """What settings, each of a run, say together by their mean probability, as `predict --setting A,B` does; None as
    in `judged`, and where they judged other photos."""
    files = [(store, classifier_logits(setting)) for store, setting in members]
    if not all(store.exists(name) for store, name in files):
        return None
    labels, predicted, confidence = [], [], []
    with ExitStack() as opened:
        tables = [pq.ParquetFile(opened.enter_context(store.fs.open(store.path(name), "rb"))) for store, name in files]
        keys, *others = (table.read(["key"])["key"].to_pylist() for table in tables)
        if not keys or any(other != keys for other in others):
            return None
        for rows in zip(*(table.iter_batches(ROWS) for table in tables), strict=True):
            probabilities = np.mean([_probabilities(each) for each in rows], axis=0)
            labels.append(rows[0]["label"].to_numpy())
            predicted.append(probabilities.argmax(axis=1))
            confidence.append(probabilities.max(axis=1))
    return Judged(tuple(keys), *map(np.concatenate, (labels, predicted, confidence)))


def vote_gains(cells: Sequence[tuple[RunStore, ExperimentConfig]]) -> list[Gain]:
    """What the vote of VOTERS gives beyond real photos alone, paired by seed as `Summary.gains`, of a table's runs; of
    several numbers of images by the largest."""
    most = max(config.generate.images_per_class for _, config in cells)
    alone: dict[tuple[int, int], tuple[RunStore, Judged]] = {}
    both: dict[tuple[str, int, int], RunStore] = {}
    for store, config in cells:
        there, place = classifiers(store), (config.data.n_shots, config.seed)
        if "real" in there and place not in alone and (real := judged(store, "real")):
            alone[place] = store, real
        if "real+synthetic" in there and config.generate.images_per_class == most:
            both[public_method(config.method), *place] = store
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for (method, shots, seed), store in both.items():
        if (shots, seed) not in alone:
            continue
        without, real = alone[shots, seed]
        if vote := voted([(without, "real"), (store, "real+synthetic")]):
            found[method, shots].append(100 * float(vote.hits.mean() - real.hits.mean()))
    gains = []
    for method in in_order(method for method, _ in found):
        for shots in sorted(shots for each, shots in found if each == method):
            mean, sd = mean_and_sd(values := found[method, shots])
            gains.append(Gain(method, shots, mean or 0.0, sd, len(values)))
    return gains


def _probabilities(rows: pa.RecordBatch) -> NDArray[np.float64]:
    logits = rows["logits"].flatten().to_numpy().reshape(len(rows), -1).astype(np.float64)
    # The largest is taken off before the exponential: fp64 overflows from 710 on, and softmax stays the same.
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def difference(setting: str, ours: Judged, theirs: Judged, seed: int) -> Difference | None:
    """How `ours`, of `setting`, differs from `theirs`; None where they judged other photos."""
    if ours.keys != theirs.keys:
        return None
    n, gained, lost = len(ours.keys), int((ours.hits & ~theirs.hits).sum()), int((theirs.hits & ~ours.hits).sum())
    # A photo counts 1, -1 or 0, so that resampling photos is sampling how many there are of each.
    counts = np.random.default_rng(seed).multinomial(n, [gained / n, lost / n, 1 - (gained + lost) / n], RESAMPLES)
    low, high = np.percentile(100 * (counts[:, 0] - counts[:, 1]) / n, [2.5, 97.5])
    return Difference(setting, 100 * (gained - lost) / n, float(low), float(high), gained, lost)
