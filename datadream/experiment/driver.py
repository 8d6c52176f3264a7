"""The one driver of a run: it holds the run's lock, is connected to Ray, and carries out the stages over all cells."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from datadream.adapt.extended import take_adapters
from datadream.adapt.given import take_given
from datadream.adapt.stage import AdapterUnit, train_adapters, units_of
from datadream.config import ExperimentConfig
from datadream.config.locations import local_inputs, locations
from datadream.costs.constants import is_embedded
from datadream.data.intake import intake, intake_lines
from datadream.experiment.checks import RefusedError, check_models
from datadream.generate.caption.stage import caption_shots
from datadream.generate.extended import take_chunks
from datadream.generate.stage import chunk_units, generate_chunks, publish_dataset
from datadream.methods.chunks import Chunk, first_chunks
from datadream.run.cell import Cell
from datadream.run.config_record import record_config
from datadream.run.layout import (
    ADAPTER_INDEX,
    FEW_SHOT,
    INTAKE,
    AdapterEntry,
    ClassifierMarker,
    StageSeconds,
    classifier_marker,
    stage_seconds,
)
from datadream.run.lock import RunLock
from datadream.run.plan_record import check_plan, record_plan
from datadream.run.store import RunStore
from datadream.runtime.metrics import RayMetrics
from datadream.runtime.nodes import check_shared, hardware
from datadream.runtime.progress import EventFile, Listener, ProgressFile, Terminal
from datadream.runtime.session import connected
from datadream.runtime.tracking import Tracking, tracked
from datadream.runtime.unit import Unit, pending, ready
from datadream.runtime.workers import Workers

log = logging.getLogger(__name__)

CHUNKS_PER_WORKER = 4
"""Chunks that a spare worker generates before it is seen whether the training goes on: enough to repay its start."""
SECONDS_BETWEEN_LOOKS = 5.0
"""Between looks for chunks whose adapters have been trained meanwhile."""


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
        hardware: Mapping[str, Any],
    ) -> None:
        self._config, self._store, self._cells, self._adapters = config, store, cells, adapters
        self._workers, self._tracking, self._listeners, self._hardware = workers, tracking, listeners, hardware

    def adapt(self) -> None:
        with self._timed("adapt"):
            for cell in self._cells:
                take_adapters(cell, self._adapters)
            given = set().union(*(take_given(cell, self._adapters) for cell in self._cells))
            train_adapters(self._store, self._adapters, self._config, self._workers, self._listeners, given)
        columns = ("adapter_id", "n_photos", "steps", "last_loss", "seconds")
        rows = []
        for cell in (cell for cell in self._cells if cell.plan.adapters):
            index = map(AdapterEntry.from_json, cell.store.read_json(ADAPTER_INDEX))
            rows += [{"run": cell.store.name} | {name: getattr(entry, name) for name in columns} for entry in index]
        self._tracking.table("adapters", rows)

    def generate(self) -> None:
        self._record_plans()
        with self._timed("generate"):
            for cell in self._cells:
                take_chunks(cell)
            if self._config.generate.select.on:
                from datadream.generate.select.stage import generate_and_select

                generate_and_select(self._store, self._cells, self._config, self._workers, self._listeners)
            else:
                units = chunk_units([chunk for cell in self._cells for chunk in cell.chunks])
                generate_chunks(self._store, units, self._config, self._workers, self._listeners)
            for cell in self._cells:
                publish_dataset(cell, self._listeners)

    def adapt_and_generate(self) -> None:
        """Workers that no adapter needs generate the classes whose adapters are there; then all generate the rest."""
        self._record_plans()
        for cell in self._cells:  # before spare workers generate
            take_adapters(cell, self._adapters)
            take_chunks(cell)
        spare = self.spare_workers()
        if spare is None:
            self.adapt()
        else:
            adapted = threading.Event()
            generating = threading.Thread(target=self._generate_beside, args=(spare, adapted), daemon=True)
            generating.start()
            try:
                self.adapt()
            finally:
                adapted.set()
                # Nobody is to write once the lock is released; only who interrupts does not wait for images.
                if not isinstance(sys.exception(), KeyboardInterrupt):
                    generating.join()
        self.generate()

    def spare_workers(self) -> Workers | None:
        """Workers that the missing adapters will never ask for, so that neither stage waits for the other's."""
        missing, workers = pending(self._adapters), self._workers
        # An adapter of several classes is trained by all workers.
        if not missing or workers.shares_cores or any(unit.payload.n_classes > 1 for unit in missing):
            return None
        # Not growing: a pool that grows takes all that is free, and what joins is for the training.
        count = workers.slots - min(workers.count, len(missing))
        return replace(workers, count=count, grows=False) if count > 0 else None

    def ready_chunks(self) -> list[Unit[Chunk]]:
        """Chunks that will be asked for in any case, are not generated, and need no adapter that is missing."""
        asked = []
        for cell in self._cells:
            wanted = [cell.config.generate.accepted_per_class] * len(cell.few_shot.class_names)
            asked += first_chunks(cell.chunks, wanted)
        return ready(chunk_units(asked))

    def _generate_beside(self, workers: Workers, adapted: threading.Event) -> None:
        while not adapted.wait(SECONDS_BETWEEN_LOOKS):
            try:
                # A few, because all workers are to generate once the adapters are trained.
                units = self.ready_chunks()[: CHUNKS_PER_WORKER * workers.count]
                generate_chunks(self._store, units, self._config, workers, self._listeners)
            except Exception as error:
                log.warning("to be generated again once the adapters are trained: %s", error)
                return

    def classify(self) -> None:
        # Imported here, not above: they import torch, which the earlier stages' drivers do without.
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

    def _record_plans(self) -> None:
        for cell in self._cells:
            record_plan(cell.store, cell.plan_hash)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """The block's seconds, however it ends, add to those that earlier starts spent on the stage."""
        # Added up in the file and not in memory: a stage may have been killed and started again many times.
        name, started = stage_seconds(stage), time.monotonic()
        before = StageSeconds.from_json(self._store.read_json(name)).seconds if self._store.exists(name) else 0.0
        try:
            yield
        finally:
            seconds = round(before + time.monotonic() - started, 2)
            ended = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
            record = StageSeconds(seconds=seconds, ended=ended, hardware=self._hardware)
            self._store.write_json(name, record.to_json())


@contextmanager
def driving(
    config: ExperimentConfig, store: RunStore, cells: Sequence[Cell], adapters: Sequence[AdapterUnit]
) -> Iterator[Driver]:
    """The run's lock, Ray, trackers and listeners, for the length of a block.

    The cluster may still refuse the workers, and a node may see another folder, so nothing but the lock is written
    before. Raises RefusedError in these cases, when another driver holds the run, and where other images lie in it.
    """
    with ExitStack() as stack:
        try:
            # The table's own last: whoever holds a lock sweeps its folder, and the cells lie in the table's.
            for url in dict.fromkeys([*(cell.store.url for cell in cells), store.url]):
                stack.enter_context(RunLock(RunStore(url)))
            n_units = max(len(adapters), sum(len(cell.chunks) for cell in cells))
            reached = [store.url, *locations(config).values()]
            workers = stack.enter_context(
                connected(config.cluster, lambda: check_models(config, cells), n_units, reached)
            )
            check_shared(store, local_inputs(config))
            for cell in cells:
                check_plan(cell.store, cell.plan_hash)
        except (ValueError, FileNotFoundError) as error:
            raise RefusedError(str(error)) from error
        if config.cluster.device == "auto" and not workers.use_gpu and n_units and not is_embedded(config):
            log.warning(
                "%s works on CPUs: no GPU is there, or PyTorch cannot use it. "
                "cluster.device=cuda stops where there is none.",
                config.diffusion.model,
            )
        record_config(store, config)
        tracking = stack.enter_context(tracked(config, store))
        listeners: list[Listener] = [Terminal(), ProgressFile(store), EventFile(store), RayMetrics(), tracking]
        # Before few_shot.json is written, which records the captions, and before any plan is.
        if any(cell.awaits_captions for cell in cells):
            caption_shots(store, cells, config, workers, listeners)
            adapters = units_of(cells)  # a method of the user's may train with captions
        for cell in cells:
            record_config(cell.store, cell.config)
            if not cell.store.exists(FEW_SHOT):
                told = intake(cell.dataset, cell.few_shot)
                # few_shot.json comes last: where it is there, the rest of this is not done again.
                cell.store.write_json(INTAKE, told)
                if cell is cells[0]:  # the others of a table have the same photos
                    log.info("%s", "\n".join(intake_lines(told)))
                cell.store.write_json(FEW_SHOT, cell.few_shot.to_json())
            if cell.config.images_from is not None:
                record_plan(cell.store, cell.plan_hash)
        yield Driver(config, store, cells, adapters, workers, tracking, listeners, hardware(workers))
