"""What each command does, after all that can be found wrong with it was."""

from __future__ import annotations

import argparse
import csv
import glob
import io
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datadream import recipes
from datadream.cli.overrides import config_of, dotted, file_knobs
from datadream.cli.parser import CLASSIFIER_COMMANDS, LISTED_OPTIONS, SUITE_OPTIONS, listed_knobs
from datadream.config import ExperimentConfig
from datadream.run.layout import PAGE
from datadream.run.store import RunStore

if TYPE_CHECKING:
    from datadream.classify.predictor import Classifier
    from datadream.costs.constants import Cluster
    from datadream.experiment.experiment import Experiment

log = logging.getLogger(__name__)


def prepare(arguments: argparse.Namespace, overrides: Sequence[str]) -> Callable[[], None]:
    """Find what is wrong with a command before any work starts; returns the work.

    Commands that change nothing in a run have no work to go on with: their answer is all found here.
    """
    command = arguments.command
    if command == "recipes":
        return partial(print, recipes.listing(arguments.name))
    if command == "knobs":
        return partial(print, listed_knobs(arguments.group))
    if command == "suite":
        return _suite(arguments, overrides)
    changes = file_knobs(arguments) if getattr(arguments, "config", None) else {}
    if command == "plan":
        return partial(print, _planned(arguments, changes | dotted(overrides, "")))
    if not arguments.run:  # an unset variable of a script gives an empty name
        raise ValueError(f"{command} needs a run's folder. Add --run FOLDER, such as --run runs/demo.")
    if overrides and command in (*CLASSIFIER_COMMANDS, "push"):
        raise ValueError(f"unexpected {overrides[0]!r}: {command} takes no knobs. See its --help.")
    if command == "export" and arguments.kind != "clip":
        from datadream.export.formats import check_export

        if arguments.setting:
            raise ValueError(f"--setting names a classifier: leave it out with --as {arguments.kind}.")
        export = check_export(arguments.run, arguments.kind, arguments.to)
        return lambda: print(export())
    if command in CLASSIFIER_COMMANDS:
        return _use_classifier(arguments)
    if command == "push":
        from datadream.export.hub import check_push, push_dataset

        store = RunStore(arguments.run)
        check_push(store, arguments.repository)
        return lambda: print(push_dataset(store, arguments.repository, private=not arguments.public))
    from datadream.experiment.experiment import Experiment

    experiment = Experiment(config_of(arguments, changes | dotted(overrides, arguments.run)), arguments.run)
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
            print(f"\n{experiment.store.url_of(PAGE)}")

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
    from datadream.costs.constants import STAND_IN, Cluster, gpu_named
    from datadream.runtime.session import room

    named = gpu and gpu_named(gpu)
    workers, each = room(config.cluster)
    if not workers.use_gpu:
        if named:
            raise ValueError(f"--gpu {gpu}: there is none here. Say how many to plan for, such as --gpus 1.")
        return Cluster(workers.count, None)
    try:
        return Cluster(workers.count, named or gpu_named(each))
    except ValueError as error:  # a run of it can be planned all the same
        log.warning("%s Times and costs are those of %d %s.", error, workers.count, STAND_IN.upper())
        return Cluster(workers.count, STAND_IN)


def _suite(arguments: argparse.Namespace, overrides: Sequence[str]) -> Callable[[], None]:
    from datadream.experiment.suite import SEEDS, Suite

    # A word with = is a knob, also where a suite's name may stand, which the file may have.
    if arguments.suite and "=" in arguments.suite:
        overrides, arguments.suite = [arguments.suite, *overrides], None
    changes = file_knobs(arguments, SUITE_OPTIONS) if arguments.config else {}
    changes |= dotted(overrides, arguments.suite or "")
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


def _watch(experiment: Experiment) -> None:
    """Say how far the run is whenever it gets on, until it is done or whoever looks has seen enough."""
    from datadream.experiment.status import watched

    with suppress(KeyboardInterrupt):
        for stage in watched(experiment.status):
            print(time.strftime("%H:%M:%S"), stage, flush=True)


def _use_classifier(arguments: argparse.Namespace) -> Callable[[], None]:
    from datadream.classify.predictor import load_classifier

    if arguments.command == "export" and "://" in arguments.to:
        raise ValueError(f"--to is {arguments.to!r}: a checkpoint needs a local folder. Copy it from there.")
    classifier = load_classifier(arguments.run, arguments.setting and arguments.setting.split(","))
    if arguments.command == "export":
        classifier.check_checkpoint()
        return lambda: print(f"local-dir:{classifier.save_checkpoint(arguments.to)}")
    if arguments.top < 1:
        raise ValueError(f"--top is {arguments.top}: expected 1 or more classes to print.")
    photos = [path for asked in arguments.photos for path in _photos_of(asked)]
    return partial(_predict, classifier, photos, arguments)


def _predict(classifier: Classifier, photos: Sequence[str], arguments: argparse.Namespace) -> None:
    """Print what each photo shows; raises RuntimeError after the last where some could not be read, RefusedError
    where none could."""
    from datadream.experiment.checks import RefusedError

    unread, first = list[str](), None
    with _any_names_printed():
        if arguments.csv:
            print("photo,class,probability")
        for photo, answer in zip(photos, classifier.answers(photos), strict=True):
            if isinstance(answer, Exception):
                said = f"{type(answer).__name__}: {answer}"
                unread.append(str(answer) if photo in str(answer) else f"photo {photo!r} cannot be read ({said})")
                first = first or answer
                continue
            best = list(itertools.islice(answer.items(), arguments.top))
            if arguments.json:
                print(json.dumps({"photo": photo, "classes": answer}, ensure_ascii=False))
            elif arguments.csv:
                rows = csv.writer(sys.stdout, lineterminator="\n")
                rows.writerows((photo, name, f"{share:.4f}") for name, share in best)
            else:
                print(photo, *(f"{name} {probability:.1%}" for name, probability in best), sep="\t")
    if unread:
        if len(unread) == len(photos):
            raise RefusedError("\n  ".join(unread)) from first
        said = f"{len(unread)} of {len(photos)} photos could not be read:"
        raise RuntimeError("\n  ".join([said, *unread])) from first


@contextmanager
def _any_names_printed() -> Iterator[None]:
    """Names of files need be no UTF-8: they are printed as they are, for the length of a block."""
    stdout = sys.stdout
    if not isinstance(stdout, io.TextIOWrapper):  # who calls `main` may have put another in its place
        yield
        return
    errors = stdout.errors
    stdout.reconfigure(errors="surrogateescape")
    try:
        yield
    finally:
        stdout.reconfigure(errors=errors)  # it flushes, before anything is said on stderr


def _photos_of(asked: str) -> list[str]:
    """The photo itself, those in a folder and all folders inside it, or those that a pattern names.

    Raises ValueError where a folder or a pattern has none.
    """
    from datadream.data.decode import IMAGE_SUFFIXES
    from datadream.data.image_folder import is_litter

    if "://" in asked or os.path.isfile(asked):
        return [asked]
    if os.path.isdir(asked):
        inside = (path for path in Path(asked).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        found = sorted(str(path) for path in inside if not any(map(is_litter, path.relative_to(asked).parts)))
    elif glob.has_magic(asked):
        paths = [path for path in map(Path, glob.glob(asked, recursive=True)) if path.suffix.lower() in IMAGE_SUFFIXES]
        found = sorted(str(path) for path in paths if path.is_file() and not is_litter(path.name))
    else:
        return [asked]
    if not found:
        raise ValueError(f"{asked!r} has no photo. Expected {', '.join(IMAGE_SUFFIXES)} files.")
    return found
