"""How far a run is, from its markers alone: works beside a running stage, on any machine that reaches the folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from datadream.methods.chunks import first_chunks, n_images
from datadream.run.cell import Cell
from datadream.run.layout import (
    ADAPTERS,
    CANDIDATES,
    CHUNKS,
    CLASSIFIERS,
    DATASET,
    SELECTION,
    ProgressRecord,
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
    # Not compared: that a line grew older is no news for `watched`.
    seconds_ago: float = field(default=0.0, compare=False)
    """When it said so."""

    @property
    def is_done(self) -> bool:
        return self.done == self.total

    def __str__(self) -> str:
        line = f"{self.stage:<9} {self.done}/{self.total} {self.unit}"
        if not self.running or self.is_done:
            return line
        return f"{line}\n{'':<10}{self.running} ({self.seconds_ago:.0f} s ago)"


SECONDS_BETWEEN_LOOKS = 10.0


def watched(look: Callable[[], Sequence[StageStatus]]) -> Iterator[StageStatus]:
    """Every stage once, and again whenever it has changed, until all are done."""
    known: dict[str, StageStatus] = {}
    while True:
        stages = look()
        for stage in stages:
            if known.get(stage.stage) != stage:
                known[stage.stage] = stage
                yield stage
        if all(stage.is_done for stage in stages):
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def stage_status(store: RunStore, cells: Sequence[Cell]) -> list[StageStatus]:
    """Adapters, images, published data sets and classifiers over all cells of the run in `store`; with filters also
    for how many the images are chosen.

    Asks with one listing for each kind of file and cell, never for each file.
    """
    adapters: list[bool] = []
    classifiers: list[bool] = []
    published: list[bool] = []
    selected: list[bool] = []
    images = images_done = 0
    for cell in cells:
        files = set().union(*(cell.store.files(folder) for folder in (ADAPTERS, CLASSIFIERS, "dataset")))
        adapters += [adapter_marker(spec.adapter_id) in files for spec in cell.plan.adapters]
        classifiers += [classifier_marker(setting) in files for setting in cell.config.classify.settings]
        if not cell.plan.images:
            continue
        published.append(DATASET in files)
        asked, settings = cell.chunks, cell.config.generate
        if settings.select.on:
            selected.append(SELECTION in files)
            wanted = [settings.accepted_per_class] * len(cell.few_shot.class_names)
            if cell.store.exists(CANDIDATES):  # what is asked for so far, which grows
                wanted = cell.store.read_json(CANDIDATES)
            asked = first_chunks(cell.chunks, wanted)
        committed = cell.store.files(CHUNKS)
        images += n_images(asked)
        images_done += n_images(chunk for chunk in asked if chunk.marker in committed)
    rows = [
        StageStatus("adapt", sum(adapters), len(adapters), "adapters", *_said(store, "adapt")),
        StageStatus("generate", images_done, images, "images", *_said(store, "generate")),
        StageStatus("select", sum(selected), len(selected), "datasets", *_said(store, "select")),
        StageStatus("publish", sum(published), len(published), "datasets", *_said(store, "publish")),
        StageStatus(
            "classify", sum(classifiers), len(classifiers), "classifiers", *_said(store, "classify", "search")
        ),
    ]
    return [row for row in rows if row.stage != "select" or row.total]


def _said(store: RunStore, *stages: str) -> tuple[str, float]:
    """What the first of these that runs said last, and how many seconds ago."""
    for stage in stages:
        with suppress(FileNotFoundError):
            said = ProgressRecord.from_json(store.read_json(progress_file(stage)))
            return said.text, max(0.0, time.time() - said.time)
    return "", 0.0
