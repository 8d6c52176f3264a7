"""The stages in order: the one face that the command line, jobs/ and Python drivers share.

    Experiment(recipes.digits(), run="runs/demo").run()

Every stage does only what is missing, so a run that was killed anywhere goes on when it is started again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

from datadream.classify.selection import check_selection
from datadream.config import SETTINGS_WITHOUT_IMAGES, ExperimentConfig
from datadream.data.datasets import check_photos, open_source
from datadream.data.few_shot import FewShotSet, check_held_out, draw
from datadream.methods import METHODS, AdapterSpec, Plan
from datadream.methods.chunks import Chunk, claim_run, first_chunks, split_into_chunks
from datadream.models.source import check_pipeline
from datadream.overlap import spare_workers, train_beside_drawing
from datadream.run.grid import table_cells
from datadream.run.layout import (
    ADAPTER_INDEX,
    CHUNKS,
    FEW_SHOT,
    METRICS,
    adapter_marker,
    classifier_marker,
    stage_seconds,
)
from datadream.run.store import RunStore
from datadream.runtime.session import Workers, check_workers, connected
from datadream.status import StageStatus, stage_status
from datadream.tracking import Tracking, check_trackers, tracked

CHUNKS_PER_WORKER = 4
"""Chunks that a spare worker draws before it is seen whether the training goes on: enough to be worth its start."""
SMALL_POOL = 5_000
"""Photos that are all decoded before the work starts, drawn or not."""


class Experiment:
    """One run in one folder, or with `config.grid` a table of runs in its sub-folders."""

    def __init__(self, config: ExperimentConfig, run: str, drawn_by: Experiment | None = None) -> None:
        """`run` is a folder or any fsspec URL; nothing is read or written yet.

        With `drawn_by`, this run trains on the first images of each class of another that draws the same and more.
        """
        self.config = config
        self.store = RunStore(run)
        self._drawn_by = drawn_by
        self._is_checked = False
        self._workers: Workers
        self._tracking: Tracking

    def run(self) -> list[dict[str, Any]]:
        """Every stage in order; returns the accuracy records of metrics.json."""
        self.check()
        if not self.is_finished():
            with self._connected():
                self._adapt_and_generate()
                self._classify()
        return self._report()

    def adapt(self) -> None:
        """Train the adapters that are missing."""
        self._stage(self._adapt)

    def generate(self) -> None:
        """Draw the images that are missing and publish the dataset."""
        self._stage(self._generate)

    def classify(self) -> None:
        """Train the classifiers that are missing."""
        self._stage(self._classify)

    def report(self) -> list[dict[str, Any]]:
        """Write metrics.json and report/index.html from what is there; returns the records."""
        self.check()
        self._record()
        return self._report()

    def check(self) -> None:
        """Find what would fail later, before any work starts and anything is written.

        Once: it decodes photos, so the stages that call it again rely on what it found.
        Raises ValueError or FileNotFoundError naming the value, what was expected and what to do.
        """
        if self._is_checked:
            return
        self._check_settings()
        self.store.check_config(self.config)
        self.store.check_writable()
        check_trackers(self.config, self.store)
        for cell in self.cells:
            cell._check_photos()
            check_selection(cell.few_shot, cell.config.classify)
            cell._check_filters()
        check_workers(self.config.cluster)
        if any(cell.plan.images for cell in self.cells):
            check_pipeline(self.config.diffusion.model, self.config.diffusion.revision)
        # open_clip takes seconds to import: last.
        from datadream.models.clip.load import check_clip
        from datadream.models.clip.trainable import check_trainable

        check_clip(self.config.classify.model, self.config.classify.pretrained)
        check_trainable(self.config.classify)
        self._is_checked = True

    @cached_property
    def cells(self) -> list[Experiment]:
        """The single runs: this one, or the table's."""
        if not self.config.grid.on:
            return [self]
        made: dict[str | None, Experiment] = {}
        for cell in table_cells(self.config):
            folder = self.store.child(f"cells/{cell.name}").url
            made[cell.name] = Experiment(cell.config, folder, drawn_by=made.get(cell.drawn_by))
        return list(made.values())

    @cached_property
    def few_shot(self) -> FewShotSet:
        """The run's real photos: the recorded draw, or a new one."""
        if self.store.exists(FEW_SHOT):
            return FewShotSet.from_json(self.store.read_json(FEW_SHOT))
        dataset = open_source(self.config.data.source).dataset()
        return draw(dataset, self.config.data.n_shots, self.config.seed, self.config.data.prompt)

    @cached_property
    def plan(self) -> Plan:
        """What the method asks for, and is not done by another run."""
        return Plan() if self._drawn_by else METHODS[self.config.method](self.few_shot, self.config)

    def is_finished(self) -> bool:
        """Whether every adapter, image and classifier is committed."""
        return all(stage.done == stage.total for stage in self.status())

    def status(self) -> list[StageStatus]:
        """How far each stage is, from the run's files alone."""
        return stage_status(self.store, [(cell.store, cell.config, cell.plan) for cell in self.cells])

    def _check_settings(self) -> None:
        needy = [name for name in self.config.classify.settings if name not in SETTINGS_WITHOUT_IMAGES]
        if self.config.method == "none" and needy and not self.config.grid.methods:
            raise ValueError(
                f"method 'none' draws no images, but classify.settings has {needy[0]!r}. "
                f"Use classify.settings='{list(SETTINGS_WITHOUT_IMAGES)}', or another method."
            )

    def _check_photos(self) -> None:
        """Draw the shots and decode every photo that the run will read, unless an earlier start did."""
        if self.store.exists(FEW_SHOT):
            return
        source = open_source(self.config.data.source)
        pool = source.dataset().pool
        # A broken photo that this draw passes over would surprise the next one.
        others = pool if len(pool) <= SMALL_POOL else ()
        check_photos(source, dict.fromkeys(self.few_shot.all_photos + others))
        check_held_out(source, self.few_shot)

    def _check_filters(self) -> None:
        top_k, n_classes = self.config.generate.select.label_top_k, len(self.few_shot.class_names)
        if top_k is not None and top_k > n_classes:
            raise ValueError(
                f"generate.select.label_top_k is {top_k}, but {self.config.data.source!r} has {n_classes} classes. "
                "Use a smaller one; 1 asks that CLIP finds an image's class most likely."
            )

    def _stage(self, work: Callable[[], None]) -> None:
        self.check()
        with self._connected():
            work()

    def _adapt(self) -> None:
        from datadream.adapt.stage import train_adapters
        from datadream.methods.n_steps import n_steps
        from datadream.runtime.work_queue import AdapterJob

        jobs = [
            AdapterJob(cell.store.url, spec, n_steps(spec, cell.config.adapt))
            for cell in self.cells
            for spec in cell.plan.adapters
        ]
        with self._watched("adapt"):
            train_adapters(self.store, jobs, self.config, self._workers)
        self._tracking.table("adapters", [row for cell in self.cells for row in cell._adapter_rows()])

    def _adapt_and_generate(self) -> None:
        """Where there are more workers than adapters to train, the others draw with those that are there."""
        self._claim()
        spare = self._spare_workers()
        if spare:
            drawers = replace(self._workers, count=spare, grows=False)
            train_beside_drawing(self._adapt, lambda: self._draw_ready(drawers))
        else:
            self._adapt()
        self._generate()

    def _spare_workers(self) -> int:
        return spare_workers(self._workers, [spec for _, spec in self._missing_adapters()])

    def _draw_ready(self, drawers: Workers) -> None:
        """Draw a little of what will be asked for in any case and needs no adapter that is missing.

        A little, because all workers are to draw when the training has ended.
        """
        from datadream.generate.stage import draw_chunks

        missing = {(cell.store.url, spec.adapter_id) for cell, spec in self._missing_adapters()}
        ready: list[Chunk] = []
        for cell in self.cells:
            committed = cell.store.markers(CHUNKS)
            n_classes = len(cell.few_shot.class_names)
            ready += [
                chunk
                for chunk in first_chunks(cell.chunks, [cell.config.generate.accepted_per_class] * n_classes)
                if chunk.chunk_id not in committed
                and not any((cell.store.url, adapter_id) in missing for adapter_id in chunk.adapter_ids)
            ]
        draw_chunks(self.store, ready[: CHUNKS_PER_WORKER * drawers.count], self.config, drawers)

    @cached_property
    def chunks(self) -> list[Chunk]:
        """All that may be drawn, cut into units of work."""
        return split_into_chunks(self.store.url, self.plan.images, self.config.generate.chunk_size)

    def _claim(self) -> None:
        """Raises ValueError when a folder holds images of another plan, before any work."""
        for cell in self.cells:
            claim_run(cell.store, cell.chunks, cell.config)

    def _generate(self) -> None:
        from datadream.generate.publish import publish_dataset
        from datadream.generate.select.rejection_sampling import Candidates, draw_and_select
        from datadream.generate.stage import draw_chunks

        self._check_adapters()
        self._claim()
        with self._watched("generate"):
            if self.config.generate.select.on:
                runs = [Candidates(cell.store, cell.few_shot, cell.config, cell.chunks) for cell in self.cells]
                with self._tracking.following(self.store, "select"):
                    draw_and_select(self.store, runs, self.config, self._workers)
            else:
                every = [chunk for cell in self.cells for chunk in cell.chunks]
                draw_chunks(self.store, every, self.config, self._workers)
            for cell in self.cells:
                publish_dataset(cell.store, cell.chunks, cell.few_shot, cell.config)

    def _classify(self) -> None:
        from datadream.classify.job import ClassifierJob
        from datadream.classify.search.stage import choose_knobs
        from datadream.classify.stage import train_classifiers

        jobs = [
            ClassifierJob(cell.store, cell.few_shot, cell.config, (cell._drawn_by or cell).store)
            for cell in self.cells
        ]
        with self._watched("classify"):
            with self._tracking.following(self.store, "search"):
                choose_knobs(self.store, jobs, self._workers)
            train_classifiers(self.store, jobs, self._workers)
        self._tracking.table("classifiers", [row for cell in self.cells for row in cell._classifier_rows()])

    def _missing_adapters(self) -> list[tuple[Experiment, AdapterSpec]]:
        return [
            (cell, spec)
            for cell in self.cells
            for spec in cell.plan.adapters
            if not cell.store.exists(adapter_marker(spec.adapter_id))
        ]

    def _check_adapters(self) -> None:
        missing = self._missing_adapters()
        if missing:
            _, first = missing[0]
            raise ValueError(
                f"{len(missing)} adapters are not trained yet, such as {first.adapter_id!r}. Run adapt first."
            )

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Ray with the workers of a stage. The cluster may still refuse them, so nothing is written before."""
        with connected(self.config.cluster) as self._workers:
            self._record()
            with tracked(self.config, self.store) as self._tracking:
                yield

    def _record(self) -> None:
        """Write down the config and the few-shot draw, and clear what killed writers left."""
        self.store.sweep_temporary()
        self.store.save_config(self.config)
        for cell in self.cells:
            cell.store.save_config(cell.config)
            if not cell.store.exists(FEW_SHOT):
                cell.store.write_json(FEW_SHOT, cell.few_shot.to_json())

    @contextmanager
    def _watched(self, stage: str) -> Iterator[None]:
        """Trackers follow the block, and its seconds add to those that earlier starts spent on the stage."""
        name, started = stage_seconds(stage), time.monotonic()
        before = self.store.read_json(name)["seconds"] if self.store.exists(name) else 0.0
        with self._tracking.following(self.store, stage):
            yield
        self.store.write_json(name, {"seconds": round(before + time.monotonic() - started, 2)})

    def _adapter_rows(self) -> list[dict[str, Any]]:
        """What trackers show of the adapters."""
        index = self.store.read_json(ADAPTER_INDEX) if self.plan.adapters else []
        columns = ("adapter_id", "n_photos", "steps", "last_loss", "seconds")
        return [{"run": self.store.name} | {name: entry[name] for name in columns} for entry in index]

    def _classifier_rows(self) -> list[dict[str, Any]]:
        """What trackers show of the classifiers."""
        settings = self.config.classify.settings
        found = {name: self.store.read_json(classifier_marker(name)) for name in settings}
        columns = ("top1", "chosen_by")
        return [
            {"run": self.store.name, "setting": name} | {column: found[name][column] for column in columns}
            for name in settings
        ]

    def _report(self) -> list[dict[str, Any]]:
        from datadream.report.page import write_report

        write_report(self.store, [(cell.store, cell.config) for cell in self.cells], self.config)
        return self.store.read_json(METRICS)
