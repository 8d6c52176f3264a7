"""Adapters that others have made, taken for classes of a run instead of training.

A file is committed as it is, so that an image's provenance names the hash of what was given.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from datadream.adapt.artifacts import are_committed, commit_given
from datadream.config import ExperimentConfig, nearest
from datadream.data.listing import one_spelling
from datadream.hashing import sha256
from datadream.methods import AdapterSpec
from datadream.run.cell import Cell
from datadream.run.layout import ADAPTER_WEIGHTS, AdapterMarker, adapter_marker
from datadream.run.store import RunStore
from datadream.runtime.failures import retried
from datadream.runtime.unit import Unit

SUFFIX = ".safetensors"


def find_given(cell: Cell) -> dict[str, str]:
    """The files in `adapt.given` by the ids of the adapters that they are taken for.

    A file or folder is named as a class, with blanks or underscores, or as an adapter. Raises ValueError when there is
    none, when one is for nothing in this run, or when two are for the same adapter.
    """
    folder = cell.config.adapt.given
    if folder is None or not cell.plan.adapters:
        return {}
    by_name: dict[str, list[str]] = defaultdict(list)
    for file in sorted(RunStore(folder).files("")):
        if file.endswith(SUFFIX) and file.count("/") <= 1:
            by_name[one_spelling(file.partition("/")[0].removesuffix(SUFFIX))].append(file)
    if not by_name:
        raise ValueError(
            f"adapt.given {folder!r} holds no adapters. Expected <class>{SUFFIX} or <class>/{ADAPTER_WEIGHTS} there."
        )
    adapters, found = _adapter_names(cell), dict[str, str]()
    for name, files in by_name.items():
        if name not in adapters:
            known = sorted(adapters)
            more = f" and {len(known) - 3} more" if len(known) > 3 else ""
            hint = nearest(name, known) or f"Known: {', '.join(known[:3])}{more}."
            raise ValueError(f"adapt.given has {files[0]!r}, but this run has no class or adapter {name!r}. {hint}")
        # diffusers' name stands for a folder that also holds other formats.
        files = [file for file in files if posixpath.basename(file) == ADAPTER_WEIGHTS] or files
        files += [found[adapters[name]]] if adapters[name] in found else []
        if len(files) > 1:
            raise ValueError(f"adapt.given has {files[0]!r} and {files[1]!r} for one adapter. Leave one.")
        found[adapters[name]] = files[0]
    return found


def _adapter_names(cell: Cell) -> dict[str, str]:
    """Adapters' ids by what files may be called: the id itself or, where one class alone has it, that class."""
    names = {spec.adapter_id: spec.adapter_id for spec in cell.plan.adapters}
    label_of = {photo.key: photo.label for photo in cell.few_shot.photos}
    of_class: dict[int, list[str]] = defaultdict(list)
    for spec in cell.plan.adapters:
        labels = {label_of.get(photo.key, -1) for photo in spec.photos}
        if len(labels) == 1:
            of_class[labels.pop()].append(spec.adapter_id)
    for label, name in enumerate(cell.few_shot.class_names):
        if len(own := of_class[label]) == 1:
            names |= {name: own[0], name.replace(" ", "_"): own[0]}
    return names


def check_given(cells: Sequence[Cell]) -> None:
    """Raises ValueError when given files name nothing of these runs, or are not those that were taken before."""
    for cell in cells:
        for adapter_id, file in find_given(cell).items():
            if not cell.store.exists(marker := adapter_marker(adapter_id)):
                continue
            taken = AdapterMarker.from_json(cell.store.read_json(marker)).weights_sha256
            if sha256(_read(cell.config, file)) != taken:
                raise ValueError(
                    f"adapter {adapter_id!r} of run {cell.store.url!r} was made before adapt.given had this "
                    f"{file!r}. Use another --run, or the files of its first start."
                )


def check_given_fit(cells: Sequence[Cell]) -> None:
    """Raises ValueError naming a given file that is no LoRA, or the layer in which it does not fit the base model."""
    files = sorted({file for cell in cells for file in find_given(cell).values()})
    if not files:
        return
    from datadream.models.diffusion.lora_file import check_fit, layer_shapes, read_lora

    config = cells[0].config
    shapes = layer_shapes(config.diffusion.model, config.diffusion.revision)
    for file in files:
        try:
            check_fit(read_lora(_read(config, file)), shapes)
        except ValueError as error:
            model = config.diffusion.model
            raise ValueError(f"adapt.given: {file!r} {error} (diffusion.model {model!r}). Leave it out.") from None


def take_given(cell: Cell, units: Sequence[Unit[AdapterSpec]]) -> set[tuple[str, str]]:
    """Commit the given adapters of a run that are not committed yet; returns the keys of their units."""
    own = [unit for unit in units if unit.run_url == cell.store.url]
    if cell.config.adapt.given is None or all(done := are_committed(own)):
        return set()  # done, so that the files may be gone
    from datadream.models.diffusion.lora_file import read_lora

    files, keys = find_given(cell), set()
    for unit, is_done in zip(own, done, strict=True):
        if (file := files.get(unit.payload.adapter_id)) is None:
            continue
        keys.add(unit.key)
        if not is_done:
            weights = retried(partial(_read, cell.config, file), f"reading {file}")
            rank = max(low_rank.rank for low_rank in read_lora(weights).values())
            commit = partial(commit_given, cell.store, unit.payload, file, weights, rank, cell.config)
            retried(commit, f"committing {unit.name}")
    return keys


def _read(config: ExperimentConfig, file: str) -> bytes:
    assert config.adapt.given is not None
    return RunStore(config.adapt.given).read_bytes(file)
