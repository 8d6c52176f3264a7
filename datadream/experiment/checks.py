"""What would fail later, found before any work starts and anything is written.

All of these raise ValueError or FileNotFoundError naming the value, what was expected and what to do.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain

from datadream.adapt.given import check_given, check_given_fit
from datadream.classify.ingest.reader import check_published
from datadream.classify.model_selection import check_selection
from datadream.config import SETTINGS_WITHOUT_IMAGES, ExperimentConfig
from datadream.data.datasets import ImageFolder, class_names, open_source
from datadream.data.few_shot import FewShotSet, check_photos
from datadream.models.source import check_pipeline, check_scheduler
from datadream.run.cell import Cell
from datadream.run.config_record import check_config, check_extended, check_reused, config_extending
from datadream.run.layout import CONFIG, DATASET, FEW_SHOT, GENERATE_PLAN, GeneratePlan, classifier_marker
from datadream.run.store import RunStore
from datadream.runtime.tracking import check_trackers

log = logging.getLogger(__name__)

MOST_NAMES = 5
"""New classes that a warning names."""


class RefusedError(ValueError):
    """Something stands in the way that shows only once work would begin, such as another driver; nothing was done."""


SMALL_POOL = 5_000
"""Up to so many photos, all of a pool are decoded: a broken one that these shots pass over would surprise the next
seed. A photo takes about 5 ms."""


def check_inputs(config: ExperimentConfig, store: RunStore, cells: Sequence[Cell]) -> None:
    """Settings, folder, photos, trackers and the generator's files: what is quick to look at."""
    check_folder(config, store)
    _check_is_no_class(config, store)
    if config.images_from is not None:
        _check_source(config, cells)
    elif config.extends is not None and not store.exists(FEW_SHOT):  # begun, so that the other run may be gone
        check_extended(RunStore(config.extends), config)
        _check_adds(RunStore(config.extends), cells[0])
    _say_new_classes(config, store, cells[0])
    # Runs that have begun had theirs decoded then; what they read may be gone since.
    _check_photos([cell for cell in cells if not cell.store.exists(FEW_SHOT)])
    for cell in cells:
        check_selection(cell.few_shot, cell.config.classify)
        _check_generate(cell)
    _check_given(config, cells)
    if _generating(cells):
        check_pipeline(config.diffusion.model, config.diffusion.revision)
        check_scheduler(config.generate.scheduler)


def _generating(cells: Sequence[Cell]) -> list[Cell]:
    """Runs whose images are not published yet: who trains on others' or looks at them may lack the generator."""
    return [cell for cell in cells if cell.plan.images and not cell.store.exists(DATASET)]


def check_folder(config: ExperimentConfig, store: RunStore) -> None:
    """Settings, the run's folder and trackers: what needs neither photos nor models."""
    from datadream.runtime.session import check_lasting

    needy = [name for name in config.classify.settings if name not in SETTINGS_WITHOUT_IMAGES]
    if config.method == "none" and needy and not config.grid.methods:
        raise ValueError(
            f"method 'none' generates no images, but classify.settings has {needy[0]!r}. "
            f"Use classify.settings='[{', '.join(SETTINGS_WITHOUT_IMAGES)}]', or another method."
        )
    check_lasting(store)
    check_config(store, config)
    store.check_writable()
    check_trackers(config, store)


def check_models(config: ExperimentConfig, cells: Sequence[Cell]) -> None:
    """The CLIP can be loaded, and the text encoders tell the classes apart. It imports open_clip, which takes
    seconds."""
    from datadream.runtime.garbage import without_collection

    with without_collection():
        from datadream.models.clip.load import check_clip, check_prompts
        from datadream.models.clip.trainable import check_trainable
    generating = _generating(cells)
    check_given_fit(generating)
    check_clip(config.classify.model, config.classify.pretrained)
    check_trainable(config.classify)
    if config.data.captioner is not None and any(cell.awaits_captions for cell in cells):
        from datadream.models.captioner import check_captioner

        check_captioner(config.data.captioner)
    for prompts in {cell.few_shot.prompts for cell in cells}:
        check_prompts(config.classify.model, prompts)
    if config.classify.context:
        from datadream.models.clip.context import check_context

        for names in {cell.few_shot.class_names for cell in cells}:
            check_context(config.classify.model, names, config.classify.context)
    if config.generate.prompts:
        from datadream.models.diffusion.prompts import check_templates

        model = config.diffusion
        for names in {cell.few_shot.class_names for cell in generating}:
            check_templates(model.model, model.revision, config.generate.prompts, names)
    described = [cell.few_shot for cell in generating]
    if texts := {
        text for each in described for text in chain(each.captions.values(), chain.from_iterable(each.descriptions))
    }:
        from datadream.models.diffusion.prompts import check_texts

        check_texts(config.diffusion.model, config.diffusion.revision, texts)


def _check_adds(source: RunStore, cell: Cell) -> None:
    """Raises ValueError where a run has no more classes and no more images than the one that it extends."""
    theirs = FewShotSet.from_json(source.read_json(FEW_SHOT)).class_names
    ours, there = (each.generate.images_per_class for each in (cell.config, config_extending(source)))
    if cell.few_shot.class_names == theirs and ours <= there:
        raise ValueError(
            f"run {source.url!r} is extended by nothing: data.source has no class that it lacks, and "
            f"generate.images_per_class is {ours}, where it has {there}. Add folders of photos, or ask for more."
        )


def _check_is_no_class(config: ExperimentConfig, store: RunStore) -> None:
    """A run among the class folders would be a class of the next run."""
    if not store.is_local or config.data.dataset is not None or store.exists(CONFIG):
        return
    source = open_source(config.data.source, config.data.background)
    if isinstance(source, ImageFolder) and source.takes_in(store.root):
        raise ValueError(
            f"run {store.url!r} lies in data.source {config.data.source!r}, where it would be taken for a class of "
            "photos. Give --run a folder that is not in it."
        )


def _say_new_classes(config: ExperimentConfig, store: RunStore, cell: Cell) -> None:
    """A run keeps the classes of its first start; say which others have come since, and how they are taken in."""
    if not cell.store.exists(FEW_SHOT):
        return
    with suppress(OSError, ValueError):  # the photos may be gone, where nothing reads them any more
        known = set(cell.few_shot.class_names)
        if new := [name for name in class_names(config.data) if name not in known]:
            shown = ", ".join(map(repr, new[:MOST_NAMES])) + ("" if len(new) <= MOST_NAMES else " and others")
            log.warning(
                "data.source has %d classes that this run lacks, %s: they are left out. To take them in: datadream "
                "run --run NEW --extend %s",
                *(len(new), shown, store.url),
            )


def _check_source(config: ExperimentConfig, cells: Sequence[Cell]) -> None:
    """The run whose images are used is finished, its config agrees, and its images are those of the first start."""
    if config.grid.on:
        raise ValueError("the images of one run make no table. Unset grid, or generate them anew without images_from.")
    (cell,) = cells
    if all(cell.store.exists(classifier_marker(setting)) for setting in config.classify.settings):
        return  # done, so that the other run may be gone
    check_reused(cell.images, config)
    check_published(cell.images, cell.few_shot.class_names)
    begun = GeneratePlan.from_json(cell.store.read_json(GENERATE_PLAN)) if cell.store.exists(GENERATE_PLAN) else None
    if begun is not None and begun.plan != cell.plan_hash:
        raise ValueError(
            f"run {cell.images.url!r} holds other images than when run {cell.store.url!r} began to train on them. "
            "Use another --run."
        )


def _check_photos(cells: Sequence[Cell]) -> None:
    """Decode every photo that the runs will read, each once however many runs of a table share it."""
    by_source: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        by_source[cell.config.data.source, cell.config.data.background].append(cell)
    for named, own in by_source.items():
        pool = own[0].dataset.pool
        check_photos(open_source(*named), [cell.few_shot for cell in own], pool if len(pool) <= SMALL_POOL else ())


def _check_given(config: ExperimentConfig, cells: Sequence[Cell]) -> None:
    if config.adapt.given is None or config.images_from is not None:
        return
    if not any(cell.plan.adapters for cell in cells):
        raise ValueError(f"adapt.given is {config.adapt.given!r}, but the method takes no adapters. Leave it out.")
    # Of images that are published, the files may be gone.
    check_given([cell for cell in cells if not cell.store.exists(DATASET)])


def _check_generate(cell: Cell) -> None:
    """A filter by label has as many classes as it asks for, and a noised photo at least one step to be restored in."""
    top_k, n_classes = cell.config.generate.select.label_top_k, len(cell.few_shot.class_names)
    if top_k is not None and top_k > n_classes:
        raise ValueError(
            f"generate.select.label_top_k is {top_k}, but {cell.config.data.source!r} has {n_classes} classes. "
            "Use a smaller one; 1 asks that CLIP finds an image's class most likely."
        )
    steps = cell.config.generate.steps
    for strength in {series.strength for series in cell.plan.images if series.strength is not None}:
        if int(steps * strength) < 1:  # as diffusers counts them
            raise ValueError(
                f"generate.strength {strength} leaves none of generate.steps {steps} to restore a photo in. Raise "
                "one of them."
            )
