"""The command line: `datadream run --recipe digits --run runs/demo adapt.rank=8`."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from datadream import recipes
from datadream.config import ExperimentConfig, flatten, knobs, nearest, takes_text
from datadream.run.store import RunStore

COMMANDS = {
    "run": "every stage that is not done yet, then the report",
    "adapt": "train the LoRA adapters",
    "generate": "generate the images and publish the dataset",
    "classify": "train the classifiers",
    "report": "write metrics.json and report/index.html",
    "predict": "classify photos with what a run has learnt",
    "export": "write a run's classifier as a checkpoint that plain open_clip loads",
    "status": "how far a run is",
    "push": "upload the dataset to the Hugging Face Hub: `datadream push RUN OWNER/NAME`, private unless --public",
    "recipes": "the named configs",
}
CLASSIFIER_COMMANDS = ("predict", "export")
"""Commands that use a run and change nothing in it."""
RUN_HELP = "the run's folder: a path or any fsspec URL; `datadream COMMAND URL` is short for it"
RESUMABLE_COMMANDS = ("run", "adapt", "generate", "classify")
"""Commands that commit as they go, and go on from there when they are given again."""
DEBUG = "DATADREAM_DEBUG"
"""Environment variable that works as --debug does, for commands that sit in scripts and jobs."""
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
BAD_INPUT_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, ImportError)
"""What checks raise about the values and paths that a user gave; ImportError is fsspec's for a URL whose scheme needs
another package. Once work has begun the same types may mean anything."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 bad input (no work was begun), 130 interrupted."""
    arguments, overrides = _parser().parse_known_args(_run_named(sys.argv[1:] if argv is None else argv))
    _quiet_libraries()
    work = None
    try:
        work = _prepare(arguments, overrides)
        work()
    except KeyboardInterrupt:
        print("datadream: interrupted. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # whatever it is, users get a sentence, and scripts an exit code
        if arguments.debug or os.environ.get(DEBUG, "0") not in ("", "0"):
            traceback.print_exc()
        from datadream.checks import RefusedError

        nothing_done = work is None or isinstance(error, RefusedError)
        is_bad_input = nothing_done and isinstance(error, BAD_INPUT_ERRORS)
        print(f"datadream: {_sentence(error)}", file=sys.stderr)
        if not nothing_done and arguments.command in RESUMABLE_COMMANDS:
            print("What is committed is kept: the same command goes on from there.", file=sys.stderr)
        return BAD_INPUT if is_bad_input else FAILED
    return 0


def _prepare(arguments: argparse.Namespace, overrides: Sequence[str]) -> Callable[[], None]:
    """Find what is wrong with a command before any work starts; returns the work.

    Commands that change nothing in a run have no work to go on with: their answer is all found here.
    """
    if arguments.command == "recipes":
        width = max(map(len, recipes.RECIPES)) + 2
        lines = [f"{name:<{width}}{recipe.__doc__.splitlines()[0]}" for name, recipe in recipes.RECIPES.items()]
        return partial(print, "\n".join(lines))
    if arguments.run is None:
        raise ValueError(f"{arguments.command} needs a run's folder. Add --run FOLDER, such as --run runs/demo.")
    if arguments.command in (*CLASSIFIER_COMMANDS, "push"):
        if overrides:
            raise ValueError(f"unexpected {overrides[0]!r}: {arguments.command} takes no knobs. See its --help.")
        return _prepare_push(arguments) if arguments.command == "push" else _use_classifier(arguments)
    return _prepare_stages(arguments.command, _config(arguments, overrides), arguments.run)


def _sentence(error: Exception) -> str:
    """What went wrong, for people. Our own errors are sentences already; of others, which may be bugs, the type says
    more than the message."""
    # The text of what Ray raises for a task is the whole remote traceback; `cause` is what the task raised.
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, (*BAD_INPUT_ERRORS, RuntimeError, OSError)) and str(cause):
        return str(cause)
    first_line = next(iter(str(cause).strip().splitlines()), "")
    return f"unexpected {type(cause).__name__}: {first_line} (--debug or {DEBUG}=1 shows the traceback)"


def _run_named(words: Sequence[str]) -> list[str]:
    """`status runs/demo` as `status --run runs/demo`."""
    short = len(words) > 1 and words[0] in COMMANDS and not words[1].startswith("-") and "=" not in words[1]
    return [words[0], "--run", *words[1:]] if short else list(words)


def _prepare_push(arguments: argparse.Namespace) -> Callable[[], None]:
    from datadream.hub import check_push, push_dataset

    store = RunStore(arguments.run)
    check_push(store, arguments.repository)
    return lambda: print(push_dataset(store, arguments.repository, private=not arguments.public))


def _prepare_stages(command: str, config: ExperimentConfig, run: str) -> Callable[[], None]:
    from datadream.experiment import Experiment

    experiment = Experiment(config, run)
    if command == "status":
        return partial(print, "\n".join(map(str, experiment.status())))
    experiment.check_inputs()

    def work() -> None:
        result = getattr(experiment, command)()
        if command in ("run", "report"):
            from datadream.report import text_table

            print(text_table(result))
            print(f"\n{experiment.store.path('report/index.html')}")

    return work


def _use_classifier(arguments: argparse.Namespace) -> Callable[[], None]:
    from datadream.classify.predictor import load_classifier

    classifier = load_classifier(arguments.run, arguments.setting)
    if arguments.command == "export":
        return partial(print, f"local-dir:{classifier.save_checkpoint(arguments.to)}")
    lines = []
    for photo, named in zip(arguments.photos, classifier.predict(arguments.photos), strict=True):
        best = itertools.islice(named.items(), arguments.top)
        lines.append("\t".join([photo, *(f"{name} {probability:.1%}" for name, probability in best)]))
    return partial(print, "\n".join(lines))


def _config(arguments: argparse.Namespace, overrides: Sequence[str]) -> ExperimentConfig:
    """A recipe or the run's own config, then the YAML file, then the overrides."""
    changes = _yaml_file(arguments.config) if arguments.config else {}
    changes |= _dotted(overrides, arguments.run)
    if arguments.recipe:
        return recipes.by_name(arguments.recipe).updated(changes)
    saved = RunStore(arguments.run).saved_config()
    if saved is not None:
        return saved.updated(changes)
    if arguments.command == "status":
        raise FileNotFoundError(
            f"no run at {arguments.run!r}: it holds no config.json. Give the folder of a run with --run."
        )
    if not arguments.config:
        raise ValueError(
            f"nothing says what to run: {arguments.run!r} is no run yet. Add --recipe NAME or --config FILE.yaml."
        )
    return ExperimentConfig().updated(changes)


def _yaml_file(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise FileNotFoundError(f"--config {path!r} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {path!r} holds no mapping of knobs: write lines such as 'method: datadream-dset'.")
    return flatten(values, known=knobs(ExperimentConfig))


def _dotted(words: Sequence[str], run: str) -> dict[str, Any]:
    """Overrides written as key=value, --key=value or --key value, with values in YAML."""
    changes: dict[str, Any] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not key or not (equals or word.startswith("--")):
            hint = nearest(key, list(knobs(ExperimentConfig))) or f"The run is {run!r}: a command takes one folder."
            raise ValueError(f"unexpected {word!r}: write knobs as key=value, such as adapt.rank=8. {hint}")
        if not equals and waiting and not waiting[0].startswith("--"):
            text = waiting.pop(0)
        changes[key] = _value(key, text)
    return changes


def _value(key: str, text: str) -> Any:
    """The value that a YAML text gives to a knob; raises ValueError where YAML would make of it what nobody meant."""
    if not text.strip():
        raise ValueError(f"{key} has no value. Write {key}=VALUE; null unsets a knob that can be unset.")
    is_text = takes_text(ExperimentConfig, key)
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


def _parser() -> argparse.ArgumentParser:
    width = 24
    listing = "\n".join(f"  {name:<{width + 8}} {text}" for name, text in knobs(ExperimentConfig).items())
    parser = argparse.ArgumentParser(
        prog="datadream",
        description="Few photos per class in, a better image classifier out.",
        epilog="knobs (key=value or --key value, after the options):\n" + listing,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=None if name in (*CLASSIFIER_COMMANDS, "push", "recipes") else parser.epilog,
            formatter_class=parser.formatter_class,
            allow_abbrev=False,
        )
        command.add_argument("--debug", action="store_true", help=f"show the traceback of an error, as {DEBUG}=1 does")
        if name == "recipes":
            continue
        command.add_argument("--run", metavar="URL", help=RUN_HELP)
        if name in CLASSIFIER_COMMANDS:
            _add_classifier_options(command)
            continue
        if name == "push":
            command.add_argument("repository", metavar="OWNER/NAME", help="the dataset's name on the Hub")
            command.add_argument("--public", action="store_true", help="a new repository is for everybody to see")
            continue
        command.add_argument("--recipe", metavar="NAME", help=f"a named config: {', '.join(recipes.RECIPES)}")
        command.add_argument("--config", metavar="FILE", help="YAML file of knobs, over the recipe's")
    return parser


def _add_classifier_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--setting", metavar="NAME", help="which classifier (default: the best on validation photos)")
    if command.prog.endswith("export"):
        command.add_argument("--to", required=True, metavar="FOLDER", help="a new local folder")
        return
    command.add_argument("--top", type=int, default=3, metavar="N", help="classes to print (default: 3)")
    command.add_argument("photos", nargs="+", metavar="PHOTO", help="paths or fsspec URLs")


def _quiet_libraries() -> None:
    """Silence the notices of libraries, so that a user reads one progress line per stage and our own warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("datadream").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    sys.exit(main())
