"""The adapt stage: adapters of one class are leased to workers, one of several classes is trained by all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from datadream.adapt.artifacts import are_committed, commit_adapter, write_index
from datadream.adapt.group_size import cpu_group_size
from datadream.config import AdaptConfig, ExperimentConfig
from datadream.data.datasets import PhotoSource, open_source
from datadream.methods import AdapterSpec
from datadream.methods.n_steps import crops_per_step, n_steps
from datadream.run.cell import Cell
from datadream.run.layout import (
    ADAPTER_GROUP,
    ADAPTER_WORKERS,
    FAILED_ADAPTERS,
    AdapterGroup,
    WorkerUsage,
    adapter_checkpoint,
    adapter_marker,
    adapter_samples,
)
from datadream.run.store import RunStore
from datadream.runtime.data_parallel import DataParallel, Report, Train, run_together
from datadream.runtime.failures import Failure, finish, retried
from datadream.runtime.progress import Facts, Listener, Reporter
from datadream.runtime.unit import Unit, titles
from datadream.runtime.work_queue import Group, QueueProgress
from datadream.runtime.worker_groups import Heartbeat, Leased, run_leased
from datadream.runtime.workers import Workers

if TYPE_CHECKING:
    import torch

    from datadream.adapt.lora_trainer import AdapterTrainer
    from datadream.runtime.collectives import Collectives

AdapterUnit = Unit[AdapterSpec]


def adapter_units(run_url: str, specs: Iterable[AdapterSpec], config: AdaptConfig) -> list[AdapterUnit]:
    """A unit for each adapter of a run, sized by its steps."""
    return [
        Unit(
            run_url=run_url,
            name=spec.adapter_id,
            marker=adapter_marker(spec.adapter_id),
            payload=spec,
            size=n_steps(spec, config),
            checkpoints=adapter_checkpoint(spec.adapter_id),
        )
        for spec in specs
    ]


def units_of(cells: Iterable[Cell]) -> list[AdapterUnit]:
    """Those of all runs."""
    return [unit for cell in cells for unit in adapter_units(cell.store.url, cell.plan.adapters, cell.config.adapt)]


def train_adapters(
    store: RunStore,
    units: Sequence[AdapterUnit],
    config: ExperimentConfig,
    workers: Workers,
    listeners: Sequence[Listener] = (),
    given: Set[tuple[str, str]] = frozenset(),
) -> None:
    """Train every adapter that is not committed yet, and write the index of all; `given` are the keys of those that
    are committed and were not trained.

    Those of several classes come first, each trained by the workers together; then those of one class, by whichever
    worker is free, longest first. Raises RuntimeError naming those that failed and why.
    """
    # Given ones must not share a group with others, whose members that are done are trained along.
    every, units = units, [unit for unit in units if unit.key not in given]
    done = are_committed(units)
    failures: dict[tuple[str, str], str] = {}
    if not all(done):
        total, before = sum(unit.size for unit in units), sum(unit.size for unit in itertools.compress(units, done))
        with Reporter("adapt", total, "step", listeners, before, "workers to start") as reporter:
            shared = [unit for unit in units if unit.payload.n_classes > 1]
            single = [unit for unit in units if unit.payload.n_classes == 1]
            single_done = [is_done for unit, is_done in zip(units, done, strict=True) if unit.payload.n_classes == 1]
            if shared:
                # A rank without a crop of the batch would have nothing to do.
                most = min(crops_per_step(unit.payload, config.adapt) for unit in shared)
                how = DataParallel(load=_load_shared, load_from=config, most=most)
                elsewhere = sum(unit.size for unit in itertools.compress(single, single_done))
                failures |= run_together(store, shared, how, workers, reporter, elsewhere)
            if not all(single_done):
                failures |= _train_single(store, single, single_done, config, workers, reporter)
    names = titles(units)
    named = [f"{names[key]}: {reason}" for key, reason in failures.items()]
    finish(store, FAILED_ADAPTERS, named, f"{len(failures)} of {len(units)} adapters")
    write_index(every)


def _train_single(
    store: RunStore,
    units: Sequence[AdapterUnit],
    done: Sequence[bool],
    config: ExperimentConfig,
    workers: Workers,
    reporter: Reporter,
) -> dict[tuple[str, str], str]:
    """Train what is not done, each adapter by one worker; returns why adapters were given up, by their keys."""
    steps = sum(unit.size for unit in units)
    before = reporter.now.total - steps  # of adapters of several classes, which came first

    def look(state: QueueProgress) -> None:
        facts: Facts = {"adapters": f"{state.units}/{len(units)}"}
        if rate := reporter.now.rate:
            facts["adapters_per_hour"] = 3600 * rate * len(units) / steps
        if state.loss is not None:
            facts["loss"] = state.loss
        starting = "" if state.workers else f"{workers.at_most(len(units)).count} workers to start"
        waiting_for = state.waiting_for or starting
        reporter.update(before + state.done, waiting_for, state.failed, **facts)

    size = config.adapt.adapters_per_step
    # On CPUs it is fixed at the first start: the group size changes rounding, and a run that goes on must give the
    # bytes that it would have given. GPUs measure it, for it is their memory that decides.
    if size is None and not workers.use_gpu:
        if not store.exists(ADAPTER_GROUP):
            size = cpu_group_size(len(units), workers.slots)
            store.write_json(ADAPTER_GROUP, AdapterGroup(adapters_per_step=size).to_json())
        size = AdapterGroup.from_json(store.read_json(ADAPTER_GROUP)).adapters_per_step
    most = max(1, len(units) // workers.slots)
    how = Leased(_AdapterWorker, config, size, most, config.cluster.lease_seconds)
    failures, usage = run_leased(store, units, done, how, workers, look)
    store.write_json(ADAPTER_WORKERS, WorkerUsage(**usage).to_json())
    return failures


class _AdapterWorker:
    """A loaded base model that trains groups of adapters (see runtime.worker_groups.GroupWorker)."""

    def __init__(self, config: ExperimentConfig, device: torch.device) -> None:
        self._config, self._source = config, open_source(config.data.source, config.data.background)
        self._trainer = load_trainer(config, device)

    def group_size(self, most: int) -> int:
        return self._trainer.fastest_group(most, self._config.data.n_shots)

    def work(self, group: Group[AdapterSpec], heartbeat: Heartbeat) -> dict[int, Failure]:
        from datadream.adapt.latent_cache import resize_shorter_side  # as in load_trainer

        failures: dict[int, Failure] = {}
        kept: list[tuple[int, AdapterUnit, bool]] = []
        photos: list[list[Image.Image]] = []
        for member in zip(group.positions, group.units, group.missing, strict=True):
            try:
                # Resized as they are read: they are held while the group trains, and whole they can fill the memory.
                whole = PhotosOf(member[1].payload, self._source)
                photos.append([resize_shorter_side(photo, self._config.diffusion.resolution) for photo in whole])
                kept.append(member)
            # Of this adapter alone: the group goes on without it. Clients of stores have errors of their own kinds.
            except Exception as error:
                failures[member[0]] = Failure.of(error)
            heartbeat.alive()
        if not any(missing for *_, missing in kept):
            return failures  # those that could be read are done already
        # Those that are done are trained along and not written: a smaller group would round the others differently.
        specs = [unit.payload for _, unit, _ in kept]
        on_samples = [partial(save_sample, unit) for _, unit, _ in kept]
        trained = self._trainer.train(specs, photos, heartbeat.step, heartbeat.alive, on_samples)
        for (position, unit, missing), outcome in zip(kept, trained, strict=True):
            if isinstance(outcome, Exception):
                failures[position] = Failure.of(outcome)
            elif missing:
                try:
                    commit = partial(commit_adapter, unit.store, unit.payload, outcome, self._config)
                    retried(commit, f"committing {unit.name}")
                except Exception as error:  # clients of stores have errors of their own kinds
                    failures[position] = Failure.of(error)
            heartbeat.alive()
        return failures


def _load_shared(config: ExperimentConfig, device: torch.device, collectives: Collectives) -> Train:
    """What every worker does to train adapters of several classes, each on its share of the batches."""
    trainer, source = load_trainer(config, device), open_source(config.data.source, config.data.background)

    def train(unit: AdapterUnit, report: Report) -> None:
        run, name = unit.store, adapter_checkpoint(unit.payload.adapter_id)

        def save(data: bytes) -> None:
            retried(partial(run.write_bytes, name, data), f"writing {name}")

        trained = trainer.train_shared(
            unit.payload,
            PhotosOf(unit.payload, source),
            collectives,
            checkpoint=retried(lambda: run.read_bytes(name) if run.exists(name) else None, f"reading {name}"),
            save=save if collectives.rank == 0 else None,
            save_every=config.cluster.checkpoint_steps,
            on_step=lambda step, losses: report(step, lambda: {"loss": losses.mean().item()}),
            on_samples=[partial(save_sample, unit)] if collectives.rank == 0 else [],
        )
        if collectives.rank == 0:
            retried(partial(commit_adapter, run, unit.payload, trained, config), f"committing {unit.name}")
            if run.exists(name):
                run.remove(name)

    return train


def save_sample(unit: AdapterUnit, step: int, png: bytes) -> None:
    """Keep what an adapter made after a step of its training; a training that begins anew writes the same again."""
    name = adapter_samples(unit.payload.adapter_id, step)
    retried(partial(unit.store.write_bytes, name, png), f"writing {name}")


def load_trainer(config: ExperimentConfig, device: torch.device) -> AdapterTrainer:
    """The base model on a device, ready to train adapters."""
    # Imported here, not above: diffusers takes seconds, and driver, controller and queue import this module as well.
    import torch

    from datadream.adapt.lora_trainer import AdapterTrainer
    from datadream.models.diffusion.pipeline import load_pipeline
    from datadream.runtime.device import dtype_of

    dtype = dtype_of(config.adapt.precision, device, on_cuda=torch.bfloat16)
    pipeline = load_pipeline(config.diffusion.model, config.diffusion.revision, device, dtype)
    return AdapterTrainer(pipeline, config.adapt, config.diffusion.resolution)


@dataclass(frozen=True, slots=True)
class PhotosOf(Sequence[Image.Image]):
    """The photos of an adapter, each read when it is asked for: a whole data set may not fit in memory."""

    spec: AdapterSpec
    source: PhotoSource

    def __len__(self) -> int:
        return len(self.spec.photos)

    def __getitem__(self, index: Any) -> Any:
        """Raises OSError or ValueError naming a photo that cannot be read."""
        key = self.spec.photos[index].key
        return retried(partial(self.source.read, key), key)
