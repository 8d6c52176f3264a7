"""The record of the config that a run's folder belongs to: a folder never mixes the work of two configs."""

from __future__ import annotations

import os
from collections.abc import Set
from importlib.metadata import version

from datadream import __version__
from datadream.config import (
    LOCATIONS,
    READ_THROUGHOUT,
    ExperimentConfig,
    flatten,
    is_left_behind,
    is_same_place,
    parse_config,
    public_method,
)
from datadream.data.datasets import open_dataset
from datadream.data.few_shot import FewShotSet
from datadream.methods.own import method_sha256
from datadream.run.layout import CONFIG, FEW_SHOT
from datadream.run.store import RunStore

METHOD_KNOBS = ("method", "grid.methods")
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "ray", "pyarrow", "pillow")


def recorded_config(store: RunStore) -> ExperimentConfig | None:
    """The config that this folder was made with, if it is a run.

    Raises ValueError when that config does not fit this version, or the URL cannot be reached.
    """
    try:
        there = store.exists(CONFIG)
    except Exception as error:  # every file system has its own
        raise ValueError(
            f"run URL {store.url!r} cannot be read: {str(error) or type(error).__name__}. Check it, and the "
            "endpoint and credentials of its file system."
        ) from None
    if not there:
        return None
    try:
        config = dict(store.read_json(CONFIG)["config"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{store.url_of(CONFIG)!r} is not that of a run. Give the folder of a run or, to begin one, a new folder."
        ) from None
    # Runs that do not say were trained without dropout, on squares, and their adapters in full batches; where steps
    # are given there is no other law, and a recipe that gives them need not name it.
    if config.get("adapt", {}).get("steps_per_class") is None:
        config.setdefault("adapt", {}).setdefault("step_law", "crops")
    classify = config.setdefault("classify", {})
    classify.setdefault("lora_dropout", 0.0)
    classify.setdefault("augment", {}).setdefault("crop_from", "square")
    try:
        return parse_config(config)
    except ValueError as error:
        raise ValueError(
            f"{CONFIG} of run {store.url!r} was written by another version: {error} Go on with that version, or "
            "start anew with another --run."
        ) from None


def config_reusing(source: RunStore) -> ExperimentConfig:
    """The config of a run that trains classifiers on the images of a finished one; raises FileNotFoundError or
    ValueError where there is no such run."""
    recorded = _single_run(source)
    # A run that uses another's images has none of its own.
    return recorded if recorded.images_from else recorded.updated({"images_from": source.url})


def config_extending(source: RunStore) -> ExperimentConfig:
    """The config of a run that adds classes or images to another; raises FileNotFoundError or ValueError where there
    is no such run."""
    return _single_run(source).updated({"extends": source.url})


def check_extended(source: RunStore, config: ExperimentConfig) -> None:
    """Raises FileNotFoundError or ValueError where `config` contradicts the run that it adds classes or images to."""
    recorded = _single_run(source)
    if config.grid.on or recorded.images_from is not None:
        which = "a table" if config.grid.on else "a run on another's images"
        raise ValueError(f"extends is {source.url!r}, but {which} cannot grow. Extend a single run that has its own.")
    if not source.exists(FEW_SHOT):
        raise ValueError(
            f"run {source.url!r} has sampled no photos yet, so there is nothing to extend. Start it first."
        )
    if different := _differences(source, recorded, config, {"extends", "classify", "generate.images_per_class"}):
        raise ValueError(
            f"run {source.url!r}, which is extended, was made with another config: {different}. Leave these knobs "
            "out, or start a run of its own."
        )


def check_reused(source: RunStore, config: ExperimentConfig) -> None:
    """Raises ValueError naming the knobs in which `config` contradicts the run whose images it uses."""
    different = _differences(source, _single_run(source), config, {"images_from", "classify"})
    if different:
        raise ValueError(
            f"the images of run {source.url!r} were made with another config: {different}. Leave these knobs out, or "
            "start a run that generates its own."
        )


def _single_run(source: RunStore) -> ExperimentConfig:
    recorded = recorded_config(source)
    if recorded is None:
        raise FileNotFoundError(f"no run at {source.url!r}: it holds no {CONFIG}. Give the folder of a finished run.")
    if recorded.grid.on:
        raise ValueError(f"run {source.url!r} is a table of runs: give one of the folders in its cells/.")
    return recorded


def check_config(store: RunStore, config: ExperimentConfig) -> None:
    """Raises ValueError naming the keys in which this folder's config differs from `config`.

    Photos and models may have moved: paths are the same that end alike, and folders that hold the run's photos.
    """
    recorded = recorded_config(store)
    if recorded is None:
        return
    if different := _differences(store, recorded, config):
        raise ValueError(
            f"run {store.url!r} was made with another config: {different}. Use another --run, or those values."
        )
    old, new = flatten(recorded.model_dump()), flatten(config.model_dump())
    for knob in READ_THROUGHOUT:
        if is_left_behind(old[knob], new[knob]):
            raise ValueError(
                f"{knob} is {new[knob]!r}, which is not in {os.getcwd()!r}; run {store.url!r} was begun with "
                f"{old[knob]!r}. Give that path, or go on from where {new[knob]!r} is."
            )
    hashes = store.read_json(CONFIG).get("methods", {})
    for name, found in _own_methods(config).items():
        if hashes.get(name, found) != found:
            raise ValueError(
                f"run {store.url!r} was made with another version of method {name!r}: its file has changed "
                f"({hashes[name][:8]} there, {found[:8]} now). Use another --run, or that version."
            )


def _differences(
    store: RunStore, recorded: ExperimentConfig, config: ExperimentConfig, other: Set[str] = frozenset()
) -> str:
    """The knobs that differ from the store's config, as text; those in `other` may."""
    # Where a run is computed and who watches it shape nothing in its files, and may change from call to call.
    free = {"cluster", "tracking", *other}
    old, new = (flatten(c.model_dump(mode="json", exclude=free)) for c in (recorded, config))
    different = [key for key in new if old.get(key) != new[key] and key not in other]
    different = [key for key in different if key not in LOCATIONS or not is_same_place(old.get(key), new[key])]
    if "data.source" in different and store.exists(FEW_SHOT):
        # A source is as good as the recorded one where it has the classes and all photos that the run has recorded.
        few_shot, dataset = FewShotSet.from_json(store.read_json(FEW_SHOT)), open_dataset(config.data)
        there = {photo.key for photo in (*dataset.pool, *dataset.val, *dataset.test)}
        has_classes = set(few_shot.class_names) <= set(dataset.class_names)  # it may have gained others since
        if has_classes and there >= {photo.key for photo in few_shot.all_photos}:
            different.remove("data.source")
    # Where a method of the user's lies may change; what it does may not.
    theirs, ours = (list(map(public_method, (c.method, *c.grid.methods))) for c in (recorded, config))
    if theirs == ours:
        different = [key for key in different if key not in METHOD_KNOBS]
    return "; ".join(f"{key} ({old.get(key)} there, {new.get(key)} now)" for key in different)


def _own_methods(config: ExperimentConfig) -> dict[str, str]:
    """Hashes of the files that hold the user's own methods, by public name; none where another run generated."""
    own = (
        []
        if config.images_from is not None
        else [method for method in (config.method, *config.grid.methods) if ":" in method]
    )
    return {public_method(method): method_sha256(method) for method in own}


def record_config(store: RunStore, config: ExperimentConfig) -> None:
    """Say whose work the folder holds from now on, with which library versions it began, and where its photos are."""
    values = config.model_dump(mode="json")
    if not store.exists(CONFIG):
        own = _own_methods(config)
        store.write_json(
            CONFIG, {"config": values, "versions": library_versions()} | ({"methods": own} if own else {})
        )
        return
    # Only where things lie is brought up to date. All else has been found equal, and the versions stay those that the
    # run began with.
    record, now = store.read_json(CONFIG), flatten(values)
    then = flatten(record["config"])
    moved = [knob for knob in (*LOCATIONS, *METHOD_KNOBS) if then.get(knob) != now[knob]]
    # A path that names nothing from here says less than the one that was recorded.
    moved = [knob for knob in moved if knob not in LOCATIONS or not is_left_behind(then.get(knob), now[knob])]
    for knob in moved:
        *sections, name = knob.split(".")
        place = record["config"]
        for section in sections:
            place = place[section]
        place[name] = now[knob]
    if moved:
        store.write_json(CONFIG, record)


def library_versions() -> dict[str, str]:
    """Versions of this package and of the libraries that shape the results."""
    return {"datadream": __version__} | {name: version(name) for name in LIBRARIES}
