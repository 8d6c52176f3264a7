"""Commands and options, and what `--help` and `datadream knobs` say of them."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from datadream import __version__
from datadream.config import ExperimentConfig, flatten, knobs, nearest
from datadream.run.layout import STAGES

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


def make_parser() -> argparse.ArgumentParser:
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
            several = ", or several that vote: A,B" if name == "predict" else ""
            add("--setting", metavar="NAME", help=f"which classifier{several} (default: what the run's page names)")
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
                "a run to add classes or images to: its adapters and images are taken, new folders come behind"
            )
            add("--extend", metavar="URL", help=extend_help)
            dry_run = "check everything, say what is taken in and what is left to do, and do and write nothing"
            add("--dry-run", action="store_true", help=dry_run)
            add("--until", choices=STAGES, help="do no stage after this one, and no report")
        elif name == "status":
            add("--watch", action="store_true", help="say so again whenever the run gets on, until it is done")
    return parser


def listed_knobs(group: str) -> str:
    """Knobs with default and help; raises ValueError for a group that there is not."""
    texts, defaults = knobs(ExperimentConfig), flatten(ExperimentConfig().model_dump(mode="json"))
    chosen = [name for name in texts if not group or name == group or name.startswith(f"{group}.")]
    if not chosen:
        raise ValueError(f"no knobs {group!r}. {nearest(group, sorted({name.partition('.')[0] for name in texts}))}")
    indented = {name: textwrap.indent(textwrap.fill(texts[name], 96), "    ") for name in chosen}
    return "\n".join(f"{name} = {json.dumps(defaults[name])}\n{indented[name]}" for name in chosen)
