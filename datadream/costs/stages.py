"""The units that each stage has to do, and what these take so many workers."""

from __future__ import annotations

import heapq
import math
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from datadream.adapt.group_size import cpu_group_size
from datadream.classify.model_selection import selection_of
from datadream.classify.schedule import schedule_of
from datadream.classify.search.successive_halving import candidates, rung_steps
from datadream.config import GAUSSIAN_SETTINGS, GAUSSIAN_VIEWS, TRAINED_SETTINGS, ExperimentConfig
from datadream.costs.constants import SIDE, Cluster, Constants, constants_of, is_embedded
from datadream.data.datasets import Photo
from datadream.data.few_shot import FewShotSet
from datadream.generate.publish import COPIES_WHILE_WRITING, POOLS, WINDOW_IMAGES
from datadream.methods.chunks import first_chunks
from datadream.methods.n_steps import crops_per_step, n_steps
from datadream.run.cell import Cell, cells_of
from datadream.run.layout import (
    ADAPTERS,
    CHUNKS,
    CLASSIFIERS,
    DATASET,
    DATASET_FOLDER,
    FEW_SHOT,
    adapter_marker,
    classifier_marker,
    search_marker,
    trial_marker,
)
from datadream.run.store import RunStore

REUSED = 0.38
"""Of a denoising step, what is computed where the inner blocks are reused."""
CROPS_PER_PHOTO = 22
"""Distinct crops of a photo of 683 x 512 pixels on a grid of 8."""
PUBLISHED_BYTES = 1e8
"""That a CPU writes into shards in a second, measured."""
SECONDS_TO_PUBLISH = 3.0
"""Until tasks run, and for the card at the end."""
GIB = 2**30


NAMES = ("adapt", "generate", "publish", "search", "classify")
"""Of the stages, in their order."""
MAKE_IMAGES = NAMES[:3]
"""Those that a run on another's images does without."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage takes."""

    name: str
    """One of NAMES."""
    n_units: int
    """That are left to do."""
    unit: str
    seconds: float
    """On the cluster's clock, start included."""
    work: float
    """Seconds of workers, start not included."""
    memory: str
    """Of each worker."""
    n_bytes: float
    useful: int
    """More workers than these find nothing to do."""
    why: str


class _Training(NamedTuple):
    """Of an adapter that is not trained yet."""

    steps: int
    crops: int
    """In a step."""
    encoding: float
    """Seconds of its photos' encoding."""


def stages_of(cells: Sequence[Cell], cluster: Cluster) -> list[Stage]:
    """The stages of all runs in order, with what is left to do of each; those with nothing left are left out.

    The runs of a table share their knobs of model and format, which are taken from the first. Spare workers that
    generate while the last adapters are trained are not counted, so that hours are an upper bound.
    """
    constants = constants_of(cells[0].config, cluster)
    found = (make(cells, cluster, constants) for make in (_adapt, _generate, _publish, _search, _classify))
    return [stage for stage in found if stage.n_units]


def _adapt(cells: Sequence[Cell], cluster: Cluster, constants: Constants) -> Stage:
    config, single, shared = cells[0].config, list[_Training](), list[_Training]()
    for cell in cells:
        done = cell.store.files(ADAPTERS)
        for spec in cell.plan.adapters:
            if adapter_marker(spec.adapter_id) not in done:
                steps, crops = n_steps(spec, cell.config.adapt), crops_per_step(spec, cell.config.adapt)
                encoded = min(CROPS_PER_PHOTO * len(spec.photos), steps * crops)
                trained = _Training(steps, crops, encoded * constants.encode)
                (single if spec.n_classes == 1 else shared).append(trained)
    size = config.adapt.adapters_per_step or 1
    if single and not cluster.gpu and config.adapt.adapters_per_step is None:
        size = cpu_group_size(len(single), cluster.workers)
    groups = [
        part[0].steps * constants.step(sum(each.crops for each in part)) + sum(each.encoding for each in part)
        for part in (single[start : start + size] for start in range(0, len(single), size))
    ]
    batch = max((each.crops for each in (*single, *shared)), default=1)
    most = min(cluster.workers, batch)
    together = [each.steps * constants.step(each.crops, most) + each.encoding / most for each in shared]
    alone = [each.steps * constants.step(each.crops) + each.encoding for each in shared]
    useful, why = len(single), "an adapter of one class is trained by one worker"
    if shared:
        useful, why = max(useful, batch), f"an adapter of all classes has {batch} crops in a step to share out"
    memory = "1.0 GiB, measured"
    if not is_embedded(config):
        # benchmarks.memory: 8.2 GiB with one adapter in a step, and 6.0 for each other.
        counted = 2.2 + 6.0 * size * batch / 8 * (config.diffusion.resolution / SIDE) ** 2
        memory = f"{counted:.1f} GiB or more, counted" if cluster.gpu else "6.2 GiB, measured"
    return Stage(
        name="adapt",
        n_units=len(single) + len(shared),
        unit="adapter",
        seconds=constants.start + queue_seconds(groups, cluster.workers) + sum(together),
        work=sum(groups) + sum(alone),
        memory=memory,
        n_bytes=(len(single) + len(shared)) * constants.adapter_bytes * config.adapt.rank / 16,
        useful=useful,
        why=why,
    )


def _generate(cells: Sequence[Cell], cluster: Cluster, constants: Constants) -> Stage:
    lengths, n_images, settings = list[float](), 0, cells[0].config.generate
    for cell in cells:
        done, seconds = cell.store.files(CHUNKS), image_seconds(cell.config, constants)
        wanted = [cell.config.generate.accepted_per_class] * len(cell.few_shot.class_names)
        for chunk in first_chunks(cell.chunks, wanted):
            if chunk.marker not in done:
                # A start from a noised photo skips the first steps.
                lengths.append(len(chunk.requests) * seconds * (chunk.requests.strength or 1.0))
                n_images += len(chunk.requests)
    weights = "2.4 GiB or more, its weights" if cluster.gpu else "6.2 GiB, measured"
    return Stage(
        name="generate",
        n_units=len(lengths),
        unit="chunk",
        seconds=constants.start + queue_seconds(lengths, cluster.workers),
        work=sum(lengths),
        memory="1.0 GiB, measured" if constants.is_measured else weights,
        n_bytes=n_images * constants.image_bytes[settings.image_format],
        useful=len(lengths),
        why=f"a chunk of {settings.chunk_size} images is made by one worker (generate.chunk_size)",
    )


def _publish(cells: Sequence[Cell], cluster: Cluster, constants: Constants) -> Stage:
    settings = cells[0].config.generate
    per_image, lengths = constants.image_bytes[settings.image_format], list[float]()
    shards_of_window = max(1, WINDOW_IMAGES // settings.images_per_shard)
    for cell in cells:
        n_images = cell.config.generate.images_per_class * len(cell.few_shot.class_names)
        if cell.plan.images and DATASET not in cell.store.files(DATASET_FOLDER):
            count = math.ceil(math.ceil(n_images / settings.images_per_shard) / shards_of_window)
            lengths += [n_images / count * per_image / PUBLISHED_BYTES] * count
    window, shard = max(lengths, default=0.0) * PUBLISHED_BYTES, settings.images_per_shard * per_image
    return Stage(
        name="publish",
        n_units=len(lengths),
        unit="window",
        seconds=SECONDS_TO_PUBLISH + queue_seconds(lengths, cluster.workers),
        work=sum(lengths),
        memory=f"{(POOLS + window + COPIES_WHILE_WRITING * min(shard, window)) / GIB:.1f} GiB of a CPU, counted",
        n_bytes=sum(lengths) * PUBLISHED_BYTES,
        useful=len(lengths),
        why=f"a window of {shards_of_window} shards is written by one CPU, and the card at the end by the driver",
    )


def _search(cells: Sequence[Cell], cluster: Cluster, constants: Constants) -> Stage:
    rungs: dict[int, list[float]] = defaultdict(list)
    for cell in cells:
        config, done = cell.config.classify, cell.store.files(CLASSIFIERS)
        searched = [name for name in config.settings if name in TRAINED_SETTINGS and config.search.combinations]
        for setting in searched:
            if {search_marker(setting), classifier_marker(setting)} & done:
                continue
            chosen = selection_of(setting, cell.few_shot, config)
            whole = schedule_of(setting, len(cell.few_shot.class_names), cell.config)
            count, trainings = len(candidates(config)), max(1, len(chosen.folds))
            every = rung_steps(whole.steps, config.search.grace, config.search.reduction)
            for rung, steps in enumerate(every):
                # In the last rung the config's own knobs compete as well.
                count += rung > 0 and steps == whole.steps
                markers = [trial_marker(setting, steps, number) for number in range(len(candidates(config)))]
                left = max(0, count - len(done.intersection(markers)))
                read = math.ceil(steps / whole.eval_every) * chosen.n_photos * constants.read
                rungs[rung] += [trainings * steps * _classifier_step(cell, constants) + read] * left
                count = max(1, count // config.search.reduction)
    lengths = [each for rung in rungs.values() for each in rung]
    return Stage(
        name="search",
        n_units=len(lengths),
        unit="trial",
        seconds=sum(constants.start + queue_seconds(rung, cluster.workers) for rung in rungs.values()),
        work=sum(lengths),
        memory=_classifier_memory(constants),
        n_bytes=0,
        useful=max(map(len, rungs.values()), default=0),
        why="a trial of knobs is trained by one worker, and the next rung waits for all of them",
    )


def _classify(cells: Sequence[Cell], cluster: Cluster, constants: Constants) -> Stage:
    seconds, work, useful, n_units = 0.0, 0.0, 1, 0
    batch = cells[0].config.classify.batch_size
    readers = max(1, batch // 2)  # workers that a batch has images for: each needs a part of each half
    for cell in cells:
        config, few_shot, done = cell.config.classify, cell.few_shot, cell.store.files(CLASSIFIERS)
        share, a_step = min(cluster.workers, readers), _classifier_step(cell, constants)
        for setting in config.settings:
            if classifier_marker(setting) in done:
                continue
            n_units, steps, read = n_units + 1, 0, len(few_shot.test)
            chosen = selection_of(setting, few_shot, config)
            if setting in TRAINED_SETTINGS:
                schedule = schedule_of(setting, len(few_shot.class_names), cell.config)
                steps = schedule.steps * chosen.n_trainings
                read += math.ceil(schedule.steps / schedule.eval_every) * chosen.n_photos
                bound = math.ceil(a_step / constants.together) if constants.together else readers
                useful = max(useful, min(readers, bound))
            elif setting in GAUSSIAN_SETTINGS:
                sets = (few_shot, *chosen.folds) if "real" in setting else ()
                read += GAUSSIAN_VIEWS["real"] * sum(len(each.photos) for each in sets) + chosen.n_photos
                if "synthetic" in setting:
                    read += cell.config.generate.images_per_class * len(few_shot.class_names)
            work += steps * a_step + read * constants.read
            seconds += steps * max(a_step / share, constants.together) + read * constants.read / share
    fixed = f"launching a step takes {1000 * constants.together:g} ms on any number"
    shared = f"a batch has {batch} images to share out"
    return Stage(
        name="classify",
        n_units=n_units,
        unit="classifier",
        seconds=constants.start + seconds,
        work=work,
        memory=_classifier_memory(constants),
        n_bytes=n_units * constants.classifier_bytes,
        useful=useful,
        why=f"one classifier after the other, each step by all workers: {shared if useful == readers else fixed}",
    )


def _classifier_step(cell: Cell, constants: Constants) -> float:
    """Seconds of one worker."""
    computing = cell.config.classify.batch_size * constants.image + len(cell.few_shot.class_names) * constants.name
    return max(computing, constants.together)


def _classifier_memory(constants: Constants) -> str:
    return "1.0 GiB, measured" if constants.is_measured else "0.6 GiB or more, its weights"


def image_seconds(config: ExperimentConfig, constants: Constants) -> float:
    """What a worker takes for one image from noise."""
    settings, (low, high) = config.generate, config.generate.guidance_interval
    # Stable Diffusion's own scheduler, PNDM, evaluates the UNet once more than it has steps.
    steps = settings.steps + (settings.scheduler is None and not is_embedded(config))
    guided = (high - low) if settings.guidance_scale > 1 else 0.0
    computed = math.ceil(steps / settings.cache_interval)
    a_step = guided * constants.guided + (1 - guided) * constants.plain
    return (computed + REUSED * (steps - computed)) * a_step + constants.decode


def queue_seconds(lengths: Iterable[float], workers: int) -> float:
    """Until the last of so many workers is done who each take the longest piece that is left."""
    # Longest first, as the queues of the stages have it: the last round is then short.
    free = [0.0] * workers
    for length in sorted(lengths, reverse=True):
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def imagined(config: ExperimentConfig, n_classes: int) -> list[Cell]:
    """The runs of a config over so many classes of photos that are not there; with as many photos to validate and to
    test as shots."""
    # A store of its own each time: fsspec's memory:// is one for the whole process.
    cells = cells_of(config, RunStore(f"memory://{uuid.uuid4().hex}"))
    names = tuple(f"class {label}" for label in range(n_classes))
    prompts = tuple(config.data.prompt.format(name=name) for name in names)
    for cell in cells:
        keys = [[f"{name}/{number}.jpg" for number in range(cell.config.data.n_shots)] for name in names]
        held_out = tuple(Photo(key, label) for label, own in enumerate(keys) for key in own)
        shots = tuple(map(tuple, keys))
        few_shot = FewShotSet(names, prompts, shots, val=held_out, test=held_out, flippable=False)
        # Whatever they say, as many.
        if cell.config.data.captions is not None:
            few_shot = replace(few_shot, captions={photo.key: prompts[photo.label] for photo in held_out})
        if cell.config.data.descriptions is not None:
            few_shot = replace(few_shot, descriptions=tuple((prompt,) for prompt in prompts))
        cell.store.write_json(FEW_SHOT, few_shot.to_json())
    return cells
