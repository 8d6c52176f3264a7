"""The record of the config that a run's folder belongs to: a folder never mixes the work of two configs."""

from __future__ import annotations

from importlib.metadata import version

from datadream.config import ExperimentConfig, flatten, parse_config
from datadream.run.layout import CONFIG
from datadream.run.store import RunStore

LIBRARIES = ("datadream", "torch", "diffusers", "transformers", "peft", "open_clip_torch", "ray", "pyarrow", "pillow")


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
    config = store.read_json(CONFIG)["config"]
    # Runs that do not say were trained without.
    config.setdefault("classify", {}).setdefault("lora_dropout", 0.0)
    try:
        return parse_config(config)
    except ValueError as error:
        raise ValueError(
            f"{CONFIG} of run {store.url!r} was written by another version: {error} Go on with that version, or "
            "start anew with another --run."
        ) from None


def check_config(store: RunStore, config: ExperimentConfig) -> None:
    """Raises ValueError naming the keys in which this folder's config differs from `config`."""
    recorded = recorded_config(store)
    if recorded is None:
        return
    # Where a run is computed and who watches it shape nothing in its files, and may change from call to call.
    old, new = (flatten(c.model_dump(mode="json", exclude={"cluster", "tracking"})) for c in (recorded, config))
    different = [f"{key} ({old.get(key)} there, {new.get(key)} now)" for key in new if old.get(key) != new[key]]
    if different:
        raise ValueError(
            f"run {store.url!r} was made with another config: {'; '.join(different)}. Use another --run, "
            "or those values."
        )


def record_config(store: RunStore, config: ExperimentConfig) -> None:
    """Say whose work the folder holds from now on, and with which library versions it began."""
    if not store.exists(CONFIG):
        store.write_json(CONFIG, {"config": config.model_dump(mode="json"), "versions": library_versions()})


def library_versions() -> dict[str, str]:
    """Versions of the libraries that shape the results."""
    return {name: version(name) for name in LIBRARIES}
