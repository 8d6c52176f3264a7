"""Knobs as people write them: key=value on the command line, and lines of a YAML file."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from datadream import recipes
from datadream.cli.parser import LISTED_OPTIONS
from datadream.config import ExperimentConfig, flatten, knobs, nearest, takes_text
from datadream.config.unique_keys import UniqueKeys
from datadream.run.config_record import config_extending, config_reusing, recorded_config
from datadream.run.store import RunStore


def file_knobs(arguments: argparse.Namespace, options: Sequence[str] = ("run", "recipe")) -> dict[str, Any]:
    """The knobs in the --config file. Its lines of `options` count where the command line does not say these."""
    path = arguments.config
    try:
        values = yaml.load(Path(path).read_text(), Loader=UniqueKeys)  # noqa: S506
    except OSError as error:
        raise FileNotFoundError(f"--config {path!r} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        hint = "write lines such as 'method: datadream-dset'."
        raise ValueError(f"--config {path!r} holds no mapping of knobs: {hint}")
    for option in options:
        value = values.pop(option, None)
        if option in LISTED_OPTIONS and isinstance(value, list | int):
            value = ",".join(map(str, value if isinstance(value, list) else [value]))
        if not isinstance(value, str | None):
            raise ValueError(f"--config {path!r} has {option}: {value!r}, but expected text.")
        if getattr(arguments, option) is None:
            setattr(arguments, option, value)
    return flatten(values, known=knobs(ExperimentConfig))


def config_of(arguments: argparse.Namespace, changes: dict[str, Any]) -> ExperimentConfig:
    """A recipe's, the run's own, or that of the run whose images it uses or which it extends, with changes."""
    for option, knob, config_from in (
        ("--from", "images_from", config_reusing),
        ("--extend", "extends", config_extending),
    ):
        if source := getattr(arguments, option.removeprefix("--"), None):
            if arguments.recipe:
                raise ValueError(
                    f"--recipe {arguments.recipe} beside {option}: the knobs are those of run {source!r}."
                )
            recorded = recorded_config(RunStore(arguments.run))
            if recorded and getattr(recorded, knob) == RunStore(source).url:
                return recorded.updated(changes)  # begun, so that the other run may be gone
            return config_from(RunStore(source)).updated(changes)
    if arguments.recipe:
        return recipes.by_name(arguments.recipe, changes)
    saved = recorded_config(RunStore(arguments.run))
    if saved is not None:
        return saved.updated(changes)
    if arguments.command in ("status", "images"):
        hint = "it holds no config.json. Give the folder of a run with --run."
        raise FileNotFoundError(f"no run at {arguments.run!r}: {hint}")
    if not arguments.config:
        hint = "is no run yet. Add --recipe NAME or --config FILE.yaml."
        raise ValueError(f"nothing says what to run: {arguments.run!r} {hint}")
    return ExperimentConfig().updated(changes)


def dotted(words: Sequence[str], run: str) -> dict[str, Any]:
    """Overrides written as key=value, --key=value or --key value, with values in YAML."""
    changes: dict[str, Any] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not key or not (equals or word.startswith("--")):
            hint = nearest(key, list(knobs(ExperimentConfig)))
            hint = hint or (f"The run is {run!r}: a command takes one folder." if run else "")
            raise ValueError(f"unexpected {word!r}: write knobs as key=value, such as adapt.rank=8. {hint}")
        if not equals and waiting and not waiting[0].startswith("--"):
            text = waiting.pop(0)
        changes[key] = _value(key, text)
    return changes


def _value(key: str, text: str) -> Any:
    """The value that a YAML text gives to a knob; raises ValueError where YAML would make of it what nobody meant."""
    if not text.strip():
        raise ValueError(f"{key} has no value. Write {key}=VALUE; null unsets a knob that can be unset.")
    # json.dumps: a JSON text is a quoted YAML text; shlex.quote gets it through the shell.
    is_text = takes_text(ExperimentConfig, key)
    if is_text and text.startswith("#"):  # a colour; to YAML all of it is a comment
        return text
    quoted = f"Quote it for YAML and the shell: {key}={shlex.quote(json.dumps(text, ensure_ascii=False))}."
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(getattr(error, "problem", error)).split())
        fix = f". {quoted}" if is_text else f": {reason}."
        raise ValueError(f"{key}={text} is not YAML{fix}") from None
    if isinstance(value, dict) and key in knobs(ExperimentConfig):
        fix = quoted if is_text else f"{key} takes one value."
        raise ValueError(f"{key}={text} became a mapping, as braces and colons do in YAML. {fix}")
    if isinstance(value, str) and text.startswith(value) and text[len(value) :].lstrip().startswith("#"):
        raise ValueError(f"{key}={text} became {value!r}, since # begins a comment in YAML. {quoted}")
    # YAML reads a revision such as 0123456 as octal, 12:30 as minutes, and on as true.
    is_other = value is not None and not isinstance(value, str | list | dict)
    return text if is_text and is_other else value
