"""The command line: `datadream run --recipe digits --run runs/demo adapt.rank=8`."""

from __future__ import annotations

import argparse
import csv
import glob
import io
import itertools
import json
import logging
import os
import shlex
import signal
import sys
import textwrap
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from datadream import __version__, recipes
from datadream.config import ExperimentConfig, flatten, knobs, nearest, takes_text
from datadream.run.config_record import config_extending, config_reusing, recorded_config
from datadream.run.layout import PAGE, STAGES
from datadream.run.store import RunStore

if TYPE_CHECKING:
    from datadream.costs.constants import Cluster
    from datadream.experiment import Experiment

COMMANDS = {
    "plan": "what a run takes: units, memory, disk, hours and cost by stage, and where it stops scaling",
    "run": "every stage that is not done yet, then the report",
    "adapt": "train the LoRA adapters",
    "generate": "generate the images and publish the dataset",
    "classify": "train the classifiers",
    "images": "compare the generated images with photos (FID and others), and show it on the page",
    "report": "write metrics.json and report/index.html",
    "suite": "many runs, such as a whole table of the paper: `datadream suite paper/table1 --datasets dtd,eurosat`",
    "predict": "classify photos with what a run has learnt",
    "export": "write what a run has made for other programs: a classifier, adapters or the dataset",
    "status": "how far a run is",
    "push": "upload the dataset to the Hugging Face Hub: `datadream push RUN OWNER/NAME`, private unless --public",
    "recipes": "the named configs, or those below a name with the paper's figures: `datadream recipes paper/table1`",
    "knobs": "all knobs with their defaults: `datadream knobs`, or of one group, such as `datadream knobs adapt`",
}
WITHOUT_KNOBS = ("recipes", "knobs")
WITHOUT_RUN = ("plan", "suite", *WITHOUT_KNOBS)
# What a file of a suite may say beside knobs.
LISTED_OPTIONS = ("datasets", "methods", "seeds")
SUITE_OPTIONS = ("suite", "run", *LISTED_OPTIONS)
# Commands that use a run and change nothing in it.
CLASSIFIER_COMMANDS = ("predict", "export")
# Commands that commit as they go, and go on from there when they are given again.
RESUMABLE_COMMANDS = ("run", "adapt", "generate", "classify", "suite")
# Environment variable that works as --debug does, for commands that sit in scripts and jobs.
DEBUG = "DATADREAM_DEBUG"
COMMON_KNOBS = (
    *("method", "data.source", "data.n_shots", "data.prompt", "diffusion.model", "adapt.batch_size"),
    *("generate.images_per_class", "generate.preset", "classify.settings", "cluster.address"),
)
ALL_KNOBS = "All knobs: datadream knobs. Those of one group: datadream knobs adapt."
# 130 is what shells give to a command that Ctrl-C ended.
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
SAID = "said"
"""Of an interrupt: the user has been told."""
# What checks raise about the values and paths that a user gave; ImportError is fsspec's for a URL whose scheme needs
# another package. Once work has begun the same types may mean anything.
BAD_INPUT_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 bad input (no work was begun), 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    # `status runs/demo` is short for `status --run runs/demo`; a word with = is a knob.
    takes_run = words[:1] and words[0] in COMMANDS and words[0] not in WITHOUT_RUN
    if takes_run and len(words) > 1 and not words[1].startswith("-") and "=" not in words[1]:
        words.insert(1, "--run")
    arguments, overrides = _parser().parse_known_args(words)
    _quiet_libraries()
    with _ended_like_ctrl_c():
        return _carry_out(arguments, overrides)


def _carry_out(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    work = None
    try:
        work = _prepare(arguments, overrides)
        work()
    except KeyboardInterrupt as interrupt:
        if interrupt.args != (SAID,):
            _say_interrupted()
        return INTERRUPTED
    except Exception as error:  # whatever it is, users get a sentence, and scripts an exit code
        if arguments.debug or os.environ.get(DEBUG, "0") not in ("", "0"):
            traceback.print_exc()
        # Here and not above, as the other rooms: `recipes` and `--help` answer without what these import.
        from datadream.checks import RefusedError

        nothing_done = work is None or isinstance(error, RefusedError)
        is_bad_input = nothing_done and isinstance(error, BAD_INPUT_ERRORS)
        print(f"datadream: {_sentence(error)}", file=sys.stderr)
        if not nothing_done and arguments.command in RESUMABLE_COMMANDS:
            print(f"What is committed is kept: the same command goes on from there: {_typed()}", file=sys.stderr)
        return BAD_INPUT if is_bad_input else FAILED
    return 0


def _prepare(arguments: argparse.Namespace, overrides: Sequence[str]) -> Callable[[], None]:
    """Find what is wrong with a command before any work starts; returns the work.

    Commands that change nothing in a run have no work to go on with: their answer is all found here.
    """
    command = arguments.command
    if command == "recipes":
        return partial(print, recipes.listing(arguments.name))
    if command == "knobs":
        return partial(print, _listed_knobs(arguments.group))
    if command == "suite":
        return _suite(arguments, overrides)
    changes = _file_knobs(arguments) if getattr(arguments, "config", None) else {}
    if command == "plan":
        return partial(print, _planned(arguments, changes | _dotted(overrides, "")))
    if not arguments.run:  # an unset variable of a script gives an empty name
        raise ValueError(f"{command} needs a run's folder. Add --run FOLDER, such as --run runs/demo.")
    if overrides and command in (*CLASSIFIER_COMMANDS, "push"):
        raise ValueError(f"unexpected {overrides[0]!r}: {command} takes no knobs. See its --help.")
    if command == "export" and arguments.kind != "clip":
        from datadream.export import check_export

        if arguments.setting:
            raise ValueError(f"--setting names a classifier: leave it out with --as {arguments.kind}.")
        export = check_export(arguments.run, arguments.kind, arguments.to)
        return lambda: print(export())
    if command in CLASSIFIER_COMMANDS:
        return _use_classifier(arguments)
    if command == "push":
        from datadream.hub import check_push, push_dataset

        store = RunStore(arguments.run)
        check_push(store, arguments.repository)
        return lambda: print(push_dataset(store, arguments.repository, private=not arguments.public))
    from datadream.experiment import Experiment

    experiment = Experiment(_config(arguments, changes | _dotted(overrides, arguments.run)), arguments.run)
    if command == "status":
        return partial(_watch, experiment) if arguments.watch else partial(print, *experiment.status(), sep="\n")
    experiment.check_inputs()
    if command == "run" and arguments.dry_run:
        return partial(print, _dry_run(experiment))
    do = partial(experiment.run, arguments.until) if command == "run" else getattr(experiment, command)
    if command == "images":
        do = partial(do, arguments.model, arguments.pretrained, arguments.against)

    def work() -> None:
        result = do()
        if command == "images":
            from datadream.report import images_text

            print(images_text([(cell.store, cell.config) for cell in experiment.cells]))
        elif command in ("run", "report") and result:
            from datadream.report import text_table

            print(text_table(result))
        if command in ("images", "run", "report") and result:
            print(f"\n{experiment.store.path(PAGE)}")

    return work


def _planned(arguments: argparse.Namespace, changes: dict[str, Any]) -> str:
    """What a config takes on a cluster that there is, or that the options describe."""
    from datadream.config import located
    from datadream.costs.constants import Cluster, gpu_named
    from datadream.costs.report import report
    from datadream.costs.stages import imagined
    from datadream.run.cell import cells_of

    if not (arguments.recipe or arguments.config):
        raise ValueError("nothing says what to plan. Add --recipe NAME or --config FILE.yaml.")
    for option in ("gpus", "classes"):
        if (count := getattr(arguments, option)) is not None and count < 1:
            raise ValueError(f"--{option} is {count}: expected 1 or more.")
    if arguments.address:
        changes["cluster.address"] = arguments.address
    made = recipes.by_name(arguments.recipe, changes) if arguments.recipe else ExperimentConfig().updated(changes)
    config = located(made)
    if arguments.gpus and not arguments.gpu:
        raise ValueError(f"--gpus {arguments.gpus} of which kind? Add --gpu, such as --gpu h100.")
    cluster = Cluster(arguments.gpus, gpu_named(arguments.gpu)) if arguments.gpus else _cluster(config, arguments.gpu)
    cells = imagined(config, arguments.classes) if arguments.classes else cells_of(config, RunStore("memory://plan"))
    return report(cells, cluster, arguments.price)


def _dry_run(experiment: Experiment) -> str:
    """What a run would take in and what is left of it, after all checks; writes nothing."""
    from datadream.costs.report import report
    from datadream.data.intake import intake, intake_lines

    experiment.check()
    first = experiment.cells[0]
    lines = intake_lines(intake(first.dataset, first.few_shot))
    return "\n".join([*lines, "", report(experiment.cells, _cluster(experiment.config))])


def _cluster(config: ExperimentConfig, gpu: str | None = None) -> Cluster:
    """The cluster that a run of this config would use; its GPUs may be called otherwise."""
    from datadream.costs.constants import Cluster, gpu_named
    from datadream.runtime.session import room

    workers, each = room(config.cluster)
    return Cluster(workers.count, gpu_named(gpu or each) if workers.use_gpu else None)


def _suite(arguments: argparse.Namespace, overrides: Sequence[str]) -> Callable[[], None]:
    from datadream.suite import SEEDS, Suite

    changes = _file_knobs(arguments, SUITE_OPTIONS) if arguments.config else {}
    changes |= _dotted(overrides, arguments.suite or "")
    if not arguments.suite:
        raise ValueError("which suite? Name a table, such as paper/table1, or one that `datadream recipes` lists.")
    datasets, methods, seeds = (
        [word.strip() for word in (getattr(arguments, name) or "").split(",") if word.strip()]
        for name in LISTED_OPTIONS
    )
    if not all(seed.isdecimal() for seed in seeds):
        raise ValueError(f"--seeds is {arguments.seeds!r}: expected whole numbers, such as 0,1,2.")
    suite = Suite(
        arguments.suite,
        arguments.run or "runs",
        datasets=datasets,
        methods=methods,
        seeds=list(map(int, seeds)) or SEEDS,
        changes=changes,
    )
    if arguments.check:
        return partial(print, suite.needs(_cluster(suite.runs[0].config)))
    suite.check()

    def work() -> None:
        print(suite.run())
        print(f"\n{suite.page}")

    return work


def _typed() -> str:
    """The command that runs now, as it can be given again."""
    is_installed_script = os.path.basename(sys.argv[0]) == "datadream"
    return shlex.join(sys.orig_argv[1:] if is_installed_script else sys.orig_argv)


def _watch(experiment: Experiment) -> None:
    """Say how far the run is whenever it gets on, until it is done or whoever looks has seen enough."""
    from datadream.status import watched

    with suppress(KeyboardInterrupt):
        for stage in watched(experiment.status):
            print(time.strftime("%H:%M:%S"), stage, flush=True)


def _sentence(error: Exception) -> str:
    """What went wrong, for people. Our own errors are sentences already; of others, which may be bugs, the type says
    more than the message."""
    # The text of what Ray raises for a task is the whole remote traceback; `cause` is what the task raised.
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, (*BAD_INPUT_ERRORS, RuntimeError, OSError)) and str(cause):
        return str(cause)
    first_line = next(iter(str(cause).strip().splitlines()), "")
    return f"unexpected {type(cause).__name__}: {first_line} (--debug or {DEBUG}=1 shows the traceback)"


def _use_classifier(arguments: argparse.Namespace) -> Callable[[], None]:
    from datadream.classify.predictor import load_classifier

    classifier = load_classifier(arguments.run, arguments.setting)
    if arguments.command == "export":
        return partial(print, f"local-dir:{classifier.save_checkpoint(arguments.to)}")
    if arguments.top < 1:
        raise ValueError(f"--top is {arguments.top}: expected 1 or more classes to print.")
    photos = [path for asked in arguments.photos for path in _photos_of(asked)]
    lines = ["photo,class,probability"] if arguments.csv else []
    for photo, named in zip(photos, classifier.predict(photos), strict=True):
        best = list(itertools.islice(named.items(), arguments.top))
        if arguments.json:
            lines.append(json.dumps({"photo": photo, "classes": named}, ensure_ascii=False))
        elif arguments.csv:
            rows = io.StringIO()
            csv.writer(rows, lineterminator="\n").writerows((photo, name, f"{share:.4f}") for name, share in best)
            lines.append(rows.getvalue().rstrip())
        else:
            lines.append("\t".join([photo, *(f"{name} {probability:.1%}" for name, probability in best)]))
    return partial(print, "\n".join(lines))


def _photos_of(asked: str) -> list[str]:
    """The photo itself, those in a folder and all folders inside it, or those that a pattern names.

    Raises ValueError where a folder or a pattern has none.
    """
    from datadream.data.decode import IMAGE_SUFFIXES

    if "://" in asked or os.path.isfile(asked):
        return [asked]
    if os.path.isdir(asked):
        found = sorted(str(path) for path in Path(asked).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    elif glob.has_magic(asked):
        found = sorted(glob.glob(asked, recursive=True))
    else:
        return [asked]
    if not found:
        raise ValueError(f"{asked!r} has no photo. Expected {', '.join(IMAGE_SUFFIXES)} files.")
    return found


def _file_knobs(arguments: argparse.Namespace, options: Sequence[str] = ("run", "recipe")) -> dict[str, Any]:
    """The knobs in the --config file. Its lines of `options` count where the command line does not say these."""
    path = arguments.config
    try:
        values = yaml.safe_load(Path(path).read_text())
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


def _config(arguments: argparse.Namespace, changes: dict[str, Any]) -> ExperimentConfig:
    """A recipe's, the run's own, or that of the run whose images it uses or which it extends, with changes."""
    for option, config_of in (("--from", config_reusing), ("--extend", config_extending)):
        if source := getattr(arguments, option.removeprefix("--"), None):
            if arguments.recipe:
                raise ValueError(
                    f"--recipe {arguments.recipe} beside {option}: the knobs are those of run {source!r}."
                )
            return config_of(RunStore(source)).updated(changes)
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


def _dotted(words: Sequence[str], run: str) -> dict[str, Any]:
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
    texts = knobs(ExperimentConfig)
    listing = "\n".join(
        textwrap.fill(texts[name], 100, initial_indent=f"  {name:<26}", subsequent_indent=" " * 28)
        for name in COMMON_KNOBS
    )
    epilog = f"knobs that people change (key=value or --key value, after the options):\n{listing}\n\n{ALL_KNOBS}"
    # No abbreviations: a mistyped --reci=x must be told as a knob that is unknown, and not be taken for --recipe.
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    what_for = "Few photos per class in, a better image classifier out."
    parser = argparse.ArgumentParser(prog="datadream", description=what_for, epilog=epilog, **style)
    parser.add_argument("--version", action="version", version=f"datadream {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        takes_knobs = name not in (*CLASSIFIER_COMMANDS, "push", *WITHOUT_KNOBS)
        command = commands.add_parser(
            name, help=text, description=text, epilog=epilog if takes_knobs else None, **style
        )
        add = command.add_argument
        add("--debug", action="store_true", help=f"show the traceback of an error, as {DEBUG}=1 does")
        if name not in WITHOUT_RUN:
            run_help = "the run's folder: a path or any fsspec URL; `datadream COMMAND URL` is short for it"
            add("--run", metavar="URL", help=run_help)
        if name in CLASSIFIER_COMMANDS:
            add("--setting", metavar="NAME", help="which classifier (default: the best on validation photos)")
        if name == "suite":
            add(
                "suite",
                nargs="?",
                metavar="NAME",
                help="a table or a part of one: paper/table1, paper/table1/dtd, digits/table1",
            )
            add("--run", metavar="URL", help="the folder of all runs (default: runs)")
            add("--datasets", metavar="A,B", help="these data sets alone (default: the table's)")
            add("--methods", metavar="A,B", help="these rows alone (default: all)")
            add("--seeds", metavar="0,1,2", help="a run for each (default: 0,1,2)")
            add("--check", action="store_true", help="say what the runs need: weights, data sets, memory, disk, hours")
            add(
                "--config",
                metavar="FILE",
                help="YAML file of knobs; may also have the lines suite, run, datasets, ...",
            )
        elif name == "recipes":
            add("name", nargs="?", default="", metavar="NAME", help="such as paper/table1, or paper/table1/dtd")
        elif name == "knobs":
            add("group", nargs="?", default="", metavar="GROUP", help="such as adapt, or one knob")
        elif name == "export":
            add("--to", required=True, metavar="FOLDER", help="a new folder; of clip a local one, else also a URL")
            kinds = (
                "clip (a classifier for open_clip; default), kohya (the adapters), parquet or webdataset (the images)"
            )
            add("--as", dest="kind", default="clip", metavar="KIND", help=kinds)
        elif name == "predict":
            add("--top", type=int, default=3, metavar="N", help="classes to print (default: 3)")
            add("--json", action="store_true", help="a JSON object for each photo, a line each, with all classes")
            add("--csv", action="store_true", help="photo, class and probability, a line each")
            add("photos", nargs="+", metavar="PHOTO", help="files, folders, patterns such as '*.jpg', or fsspec URLs")
        elif name == "push":
            add("repository", metavar="OWNER/NAME", help="the dataset's name on the Hub")
            add("--public", action="store_true", help="a new repository is for everybody to see")
        elif takes_knobs:
            add("--recipe", metavar="NAME", help="a named config: `datadream recipes` lists them")
            add("--config", metavar="FILE", help="YAML of knobs over the recipe's, of run and recipe")
            if name in ("run", "classify"):
                from_help = "a finished run: train other classifiers on its images, generating none"
                add("--from", metavar="URL", help=from_help)
        if name == "plan":
            command.set_defaults(run=None)
            add("--gpus", type=int, metavar="N", help="of a cluster that need not be there; --gpu says which")
            add("--gpu", metavar="KIND", help="such as h100 (default: those of the cluster)")
            add("--address", metavar="URL", help="the Ray cluster to plan for (default: this machine)")
            add("--price", type=float, metavar="X", help="of one GPU, or one CPU worker, for an hour")
            add("--classes", type=int, metavar="N", help="plan for so many, in place of those of data.source")
        if name == "images":
            add("--model", metavar="ID", help="any open_clip model, or inception (default: the run's CLIP)")
            add("--pretrained", metavar="TAG", help="weights of an architecture, or a file of Inception's")
            which = "held-out (neither shots nor test photos; default), train (these with the shots) or test"
            add("--against", default="held-out", metavar="PHOTOS", help=f"photos to compare with: {which}")
        elif name == "run":
            extend_help = (
                "a run to add classes to: its own are taken with adapters and images, new folders come behind"
            )
            add("--extend", metavar="URL", help=extend_help)
            dry_run = "check everything, say what is taken in and what is left to do, and do and write nothing"
            add("--dry-run", action="store_true", help=dry_run)
            add("--until", choices=STAGES, help="do no stage after this one, and no report")
        elif name == "status":
            add("--watch", action="store_true", help="say so again whenever the run gets on, until it is done")
    return parser


def _listed_knobs(group: str) -> str:
    """Knobs with default and help; raises ValueError for a group that there is not."""
    texts, defaults = knobs(ExperimentConfig), flatten(ExperimentConfig().model_dump(mode="json"))
    chosen = [name for name in texts if not group or name == group or name.startswith(f"{group}.")]
    if not chosen:
        raise ValueError(f"no knobs {group!r}. {nearest(group, sorted({name.partition('.')[0] for name in texts}))}")
    indented = {name: textwrap.indent(textwrap.fill(texts[name], 96), "    ") for name in chosen}
    return "\n".join(f"{name} = {json.dumps(defaults[name])}\n{indented[name]}" for name in chosen)


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Take the signals with which schedulers and closed terminals end a command for what Ctrl-C is.

    Then all is as before: who calls `main` from Python has signals and logs of their own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # nohup and the like start a command with a signal ignored, and mean it.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    ours = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    disabled = logging.root.manager.disable
    for number in ours:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in ours.items():
            if handler is not None:  # one that was not set from Python cannot be set again from it
                signal.signal(number, handler)
        logging.disable(disabled)


def _interrupt(number: int, frame: object) -> None:
    # At once and not when all is closed: `ray job stop` kills after 3 s, and Ray alone may take as long to shut down.
    _say_interrupted()
    # These are the last words: what is cut off and what Ray misses from now on is no news.
    logging.disable()
    raise KeyboardInterrupt(SAID)


def _say_interrupted() -> None:
    line = f"datadream: interrupted. The same command goes on from here: {_typed()}\n"
    # Not by print: a signal may come in the midst of another one.
    os.write(sys.stderr.fileno(), line.encode())


def _quiet_libraries() -> None:
    """Silence the notices of libraries, so that a user reads one progress line per stage and our own warnings."""
    # A log is read on other days, a terminal at once.
    date = "%H:%M:%S" if sys.stderr.isatty() else "%Y-%m-%d %H:%M:%S"
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt=date)
    logging.getLogger("datadream").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # These read their level when they are imported, so that it is set here and not through logging.
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for library in ("HF_HUB", "HF_DATASETS"):
        os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    sys.exit(main())
