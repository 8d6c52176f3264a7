"""Locations that a user types, made absolute once: workers have other working directories than the command."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Any

from datadream.config.experiment import ExperimentConfig
from datadream.config.section import flatten

LOCATIONS = (
    "images_from",
    "extends",
    "data.source",
    "data.names",
    "data.captions",
    "data.captioner",
    "data.descriptions",
    "diffusion.model",
    "adapt.given",
    "classify.model",
    "classify.pretrained",
)
"""Knobs whose value may be a path on this machine."""
READ_ONCE = ("data.names", "data.captions", "data.descriptions")
"""Of these, files that the driver alone reads, when a run begins."""
READ_THROUGHOUT = ("data.source", "adapt.given")
"""Of these, places of photos and adapters, where a bare name is a path: ids of the Hub begin with hf-hub: there."""
LOCAL_DIR = "local-dir:"
"""What open_clip has before a folder."""


def located(config: ExperimentConfig) -> ExperimentConfig:
    """The config with the paths in it made absolute, from the current directory or from ~.

    What names no file or folder that is there stays as it is: a data set, a Hub id, an architecture, a URL.
    """
    values = flatten(config.model_dump())
    found: dict[str, Any] = {
        "method": _absolute_method(config.method),
        "grid.methods": tuple(map(_absolute_method, config.grid.methods)),
    }
    for knob in LOCATIONS:
        value = values[knob]
        # URLs, fsspec's chains of them, and scikit-learn's digits, also where a folder is called so.
        if value is None or "://" in value or "::" in value or value == "digits":
            continue
        scheme = LOCAL_DIR if value.startswith(LOCAL_DIR) else ""
        path = Path(value.removeprefix(scheme)).expanduser()
        # A folder that is called like an architecture or a tag of weights is not meant by that name alone.
        is_name = knob.startswith("classify.") and not scheme and not (path.suffix and path.is_file())
        if not is_name and path.exists():
            found[knob] = scheme + os.path.abspath(path)
    changed = {knob: value for knob, value in found.items() if value != values[knob]}
    return config.updated(changed) if changed else config


def locations(config: ExperimentConfig) -> dict[str, str]:
    """Whatever the config reads from: a path, URL or name by knob."""
    values = flatten(config.model_dump())
    return {knob: str(values[knob]).removeprefix(LOCAL_DIR) for knob in LOCATIONS if values[knob] is not None}


def local_inputs(config: ExperimentConfig) -> dict[str, str]:
    """Files and folders of this machine that workers read, by knob."""
    return {
        knob: path
        for knob, path in locations(config).items()
        if knob not in READ_ONCE and os.path.isabs(path) and os.path.exists(path)
    }


def _absolute_method(method: str) -> str:
    file, _, function = method.rpartition(":")
    return f"{os.path.abspath(Path(file).expanduser())}:{function}" if file.endswith(".py") else method


def is_left_behind(old: str | None, new: str | None) -> bool:
    """Whether a path that names nothing from the current directory is that of a place which is still where it was."""
    # `located` has made those absolute that are there.
    if not old or not new or not os.path.isabs(old) or os.path.isabs(new):
        return False
    return os.path.exists(old) and is_same_place(old, new)


def is_same_place(old: str | None, new: str | None) -> bool:
    """Whether two values may be one location, typed from another directory."""
    if not old or not new:
        return old == new
    shorter, longer = sorted((posixpath.normpath(old), posixpath.normpath(new)), key=len)
    return longer == shorter or (not shorter.startswith("/") and longer.endswith(f"/{shorter}"))
