"""The command line: `datadream run --recipe digits --run runs/demo adapt.rank=8`."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from datadream import recipes
from datadream.config import ExperimentConfig, flatten, knobs, nearest, parse_config
from datadream.run.store import RunStore

COMMANDS = {
    "run": "every stage that is not done yet, then the report",
    "adapt": "train the LoRA adapters",
    "generate": "draw the images and publish the dataset",
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
BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    arguments, overrides = _parser().parse_known_args(_run_named(sys.argv[1:] if argv is None else argv))
    _quiet_libraries()
    try:
        if arguments.command == "recipes":
            print("\n".join(f"{name:<14}{recipe.__doc__.splitlines()[0]}" for name, recipe in recipes.RECIPES.items()))
            return 0
        if arguments.command in (*CLASSIFIER_COMMANDS, "push"):
            if overrides:
                raise ValueError(f"unexpected {overrides[0]!r}: {arguments.command} takes no knobs. See its --help.")
            return _push(arguments) if arguments.command == "push" else _use_classifier(arguments)
        return _run_command(arguments.command, _config(arguments, overrides), arguments.run)
    except (ValueError, FileNotFoundError) as error:
        print(f"datadream: {error}", file=sys.stderr)
        return BAD_INPUT
    except (RuntimeError, OSError) as error:
        print(f"datadream: {error}\nWhat is committed is kept: the same command goes on from there.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("datadream: interrupted. The same command goes on from here.", file=sys.stderr)
        return 130


def _run_named(words: Sequence[str]) -> list[str]:
    """`status runs/demo` as `status --run runs/demo`."""
    short = len(words) > 1 and words[0] in COMMANDS and not words[1].startswith("-") and "=" not in words[1]
    return [words[0], "--run", *words[1:]] if short else list(words)


def _push(arguments: argparse.Namespace) -> int:
    from datadream.hub import push_dataset

    print(push_dataset(RunStore(arguments.run), arguments.repository, private=not arguments.public))
    return 0


def _run_command(command: str, config: ExperimentConfig, run: str) -> int:
    from datadream.experiment import Experiment

    experiment = Experiment(config, run)
    if command == "status":
        print("\n".join(map(str, experiment.status())))
        return 0
    result = getattr(experiment, command)()
    if command in ("run", "report"):
        from datadream.report import text_table

        print(text_table(result))
        print(f"\n{experiment.store.path('report/index.html')}")
    return 0


def _use_classifier(arguments: argparse.Namespace) -> int:
    from datadream.classify.predictor import load_classifier

    classifier = load_classifier(arguments.run, arguments.setting)
    if arguments.command == "export":
        print(f"local-dir:{classifier.save_checkpoint(arguments.to)}")
        return 0
    for photo, named in zip(arguments.photos, classifier.predict(arguments.photos), strict=True):
        best = itertools.islice(named.items(), arguments.top)
        print("\t".join([photo, *(f"{name} {probability:.1%}" for name, probability in best)]))
    return 0


def _config(arguments: argparse.Namespace, overrides: Sequence[str]) -> ExperimentConfig:
    """A recipe or the run's own config, then the YAML file, then the overrides."""
    changes = _yaml_file(arguments.config) if arguments.config else {}
    changes |= _dotted(overrides)
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
    return parse_config(ExperimentConfig().model_dump()).updated(changes)


def _yaml_file(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise FileNotFoundError(f"--config {path!r} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {path!r} holds no mapping of knobs: write lines such as 'method: datadream-dset'.")
    return flatten(values)


def _dotted(words: Sequence[str]) -> dict[str, Any]:
    """Overrides written as key=value, --key=value or --key value, with values in YAML."""
    changes: dict[str, Any] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--") or not waiting:
                raise ValueError(
                    f"unexpected {word!r}: write knobs as key=value, such as adapt.rank=8. "
                    f"{nearest(key, list(knobs(ExperimentConfig)))}".strip()
                )
            value = waiting.pop(0)
        changes[key] = yaml.safe_load(value)
    return changes


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
            epilog=None if name in CLASSIFIER_COMMANDS else parser.epilog,
            formatter_class=parser.formatter_class,
            allow_abbrev=False,
        )
        if name == "recipes":
            continue
        command.add_argument("--run", required=True, metavar="URL", help=RUN_HELP)
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
    """One progress line per stage is what a user reads; the libraries' own notices go."""
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
