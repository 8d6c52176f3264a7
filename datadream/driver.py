"""The one driver of a run: it holds the run's lock, is connected to Ray, and carries out the stages over all cells."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from datadream.adapt.stage import AdapterUnit, train_adapters
from datadream.config import ExperimentConfig
from datadream.run.cell import Cell
from datadream.run.layout import (
    ADAPTER_INDEX,
    FEW_SHOT,
    AdapterEntry,
    ClassifierMarker,
    StageSeconds,
    classifier_marker,
    stage_seconds,
)
from datadream.run.lock import RunLock
from datadream.run.plan_record import claim_run
from datadream.run.store import RunStore
from datadream.runtime.metrics import RayMetrics
from datadream.runtime.nodes import check_shared
from datadream.runtime.progress import Listener, ProgressFile, Terminal
from datadream.runtime.session import connected
from datadream.runtime.workers import Workers
from datadream.tracking import Tracking, tracked


class Driver:
    """The stages over all cells; made by `driving`."""

    def __init__(
        self,
        config: ExperimentConfig,
        store: RunStore,
        cells: Sequence[Cell],
        adapters: Sequence[AdapterUnit],
        workers: Workers,
        tracking: Tracking,
        listeners: Sequence[Listener],
    ) -> None:
        self._config, self._store, self._cells, self._adapters = config, store, cells, adapters
        self._workers, self._tracking, self._listeners = workers, tracking, listeners

    def adapt(self) -> None:
        with self._timed("adapt"):
            train_adapters(self._store, self._adapters, self._config, self._workers, self._listeners)
        columns = ("adapter_id", "n_photos", "steps", "last_loss", "seconds")
        rows = []
        for cell in (cell for cell in self._cells if cell.plan.adapters):
            index = map(AdapterEntry.from_json, cell.store.read_json(ADAPTER_INDEX))
            rows += [{"run": cell.store.name} | {name: getattr(entry, name) for name in columns} for entry in index]
        self._tracking.table("adapters", rows)

    def generate(self) -> None:
        from datadream.generate.stage import generate_and_publish

        self._claim()
        with self._timed("generate"):
            generate_and_publish(self._store, self._cells, self._config, self._workers, self._listeners)

    def adapt_and_generate(self) -> None:
        """Workers that no adapter needs generate the classes whose adapters are there; then all generate the rest."""
        from datadream.generate.stage import generating_beside

        self._claim()
        with generating_beside(self._store, self._cells, self._adapters, self._config, self._workers, self._listeners):
            self.adapt()
        self.generate()

    def classify(self) -> None:
        from datadream.classify.search.stage import choose_knobs
        from datadream.classify.stage import classifier_jobs, train_classifiers

        jobs = classifier_jobs(self._cells)
        with self._timed("classify"):
            choose_knobs(self._store, jobs, self._workers, self._listeners)
            train_classifiers(self._store, jobs, self._workers, self._listeners)
        rows = []
        for cell in self._cells:
            for setting in cell.config.classify.settings:
                found = ClassifierMarker.from_json(cell.store.read_json(classifier_marker(setting)))
                rows.append(
                    {"run": cell.store.name, "setting": setting, "top1": found.top1, "chosen_by": found.chosen_by}
                )
        self._tracking.table("classifiers", rows)

    def _claim(self) -> None:
        """Raises ValueError when a folder holds images of another plan, before any work."""
        for cell in self._cells:
            claim_run(cell.store, cell.plan_hash)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """The block's seconds, however it ends, add to those that earlier starts spent on the stage."""
        name, started = stage_seconds(stage), time.monotonic()
        before = StageSeconds.from_json(self._store.read_json(name)).seconds if self._store.exists(name) else 0.0
        try:
            yield
        finally:
            seconds = round(before + time.monotonic() - started, 2)
            self._store.write_json(name, StageSeconds(seconds=seconds).to_json())


@contextmanager
def driving(
    config: ExperimentConfig, store: RunStore, cells: Sequence[Cell], adapters: Sequence[AdapterUnit]
) -> Iterator[Driver]:
    """The run's lock, Ray, trackers and listeners, for the length of a block.

    The cluster may still refuse the workers, and a node may see another folder, so nothing but the lock is written
    before. Raises ValueError in these cases, and when another driver holds the run.
    """
    with ExitStack() as stack:
        for url in dict.fromkeys([store.url, *(cell.store.url for cell in cells)]):
            stack.enter_context(RunLock(RunStore(url)))
        workers = stack.enter_context(connected(config.cluster))
        check_shared(store)
        store.save_config(config)
        for cell in cells:
            cell.store.save_config(cell.config)
            if not cell.store.exists(FEW_SHOT):
                cell.store.write_json(FEW_SHOT, cell.few_shot.to_json())
        tracking = stack.enter_context(tracked(config, store))
        listeners = [Terminal(), ProgressFile(store), RayMetrics(), tracking]
        yield Driver(config, store, cells, adapters, workers, tracking, listeners)
