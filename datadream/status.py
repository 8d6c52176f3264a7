"""How far a run is, from its markers alone: works beside a running stage, on any machine that reaches the folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from datadream.config import ExperimentConfig
from datadream.methods import Plan
from datadream.methods.chunks import Chunk, first_chunks, split_into_chunks
from datadream.run.layout import (
    CANDIDATES,
    CHUNKS,
    DATASET,
    SELECTION,
    adapter_marker,
    classifier_marker,
    progress_file,
)
from datadream.run.store import RunStore


@dataclass(frozen=True, slots=True)
class StageStatus:
    """Committed and planned units of one stage."""

    stage: str
    done: int
    total: int
    unit: str
    running: str = ""
    """What the stage said last, if it runs now or was killed."""

    def __str__(self) -> str:
        line = f"{self.stage:<9} {self.done}/{self.total} {self.unit}"
        return f"{line}\n{'':<10}{self.running}" if self.running and self.done < self.total else line


def stage_status(store: RunStore, cells: Sequence[tuple[RunStore, ExperimentConfig, Plan]]) -> list[StageStatus]:
    """Adapters, images, published data sets and classifiers over all single runs of the run in `store`; with filters
    also for how many the images are chosen."""
    adapters = [store.exists(adapter_marker(spec.adapter_id)) for store, _, plan in cells for spec in plan.adapters]
    datasets = [store.exists(DATASET) for store, _, plan in cells if plan.images]
    classifiers = [
        store.exists(classifier_marker(name)) for store, config, _ in cells for name in config.classify.settings
    ]
    filtered = [store for store, config, plan in cells if plan.images and config.generate.select.on]
    selections = [store.exists(SELECTION) for store in filtered]
    select = StageStatus("select", sum(selections), len(selections), "datasets", _said(store, "select"))
    return [
        StageStatus("adapt", sum(adapters), len(adapters), "adapters", _said(store, "adapt")),
        StageStatus("generate", *_images(cells), "images", _said(store, "generate")),
        *([select] if selections else []),
        StageStatus("publish", sum(datasets), len(datasets), "datasets"),
        StageStatus(
            "classify",
            sum(classifiers),
            len(classifiers),
            "classifiers",
            _said(store, "classify") or _said(store, "search"),
        ),
    ]


def _said(store: RunStore, stage: str) -> str:
    try:
        said = store.read_json(progress_file(stage))
    except FileNotFoundError:
        return ""
    return f"{said['text']} ({max(0, time.time() - said['time']):.0f} s ago)"


def _images(cells: Sequence[tuple[RunStore, ExperimentConfig, Plan]]) -> tuple[int, int]:
    done = total = 0
    for store, config, plan in cells:
        committed = store.markers(CHUNKS)
        chunks = split_into_chunks(store.url, plan.images, config.generate.chunk_size)
        if config.generate.select.on:
            chunks = first_chunks(chunks, _asked(store, config, chunks))
        for chunk in chunks:
            total += len(chunk.requests)
            done += len(chunk.requests) if chunk.chunk_id in committed else 0
    return done, total


def _asked(store: RunStore, config: ExperimentConfig, chunks: Sequence[Chunk]) -> list[int]:
    """Candidates of each class that are asked for so far; their number grows by rounds."""
    if store.exists(CANDIDATES):
        return store.read_json(CANDIDATES)
    return [config.generate.accepted_per_class] * (1 + max((chunk.requests[0].label for chunk in chunks), default=0))
