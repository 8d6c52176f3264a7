"""Small run folders as the code of an earlier revision leaves them: python -m tests.golden REVISION FOLDER.

What is written there must stay readable, and be what the present code would write. They are made anew rather than
kept, because bytes of weights belong to a processor and to the installed libraries.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from datadream.data.datasets import open_source

ROOT = Path(__file__).parent.parent
SMALL = {
    "cluster.workers": 2,
    "adapt.steps_per_class": 4,
    "adapt.adapters_per_step": 2,  # measured otherwise, and rounding depends on it
    "generate.images_per_class": 4,
    "generate.chunk_size": 2,
    "generate.steps": 2,
    "generate.images_per_shard": 15,
    "classify.steps": 4,
    "classify.eval_every": 2,
}
VARIANTS = {
    "one adapter per class": {"classify.settings": "[zero-shot, gda-real, real, real+synthetic]"},
    "one adapter for all, and a selection": {
        "method": "datadream-dset",
        "generate.select.coverage": 1.5,
        "classify.settings": "[synthetic]",
    },
    "a search": {
        "method": "zero-shot",
        "classify.settings": "[real+synthetic]",
        "classify.search.learning_rates": "[1.0e-3, 1.0e-4]",
    },
}
PHOTO, PREDICTION = "photo.png", "prediction.txt"


def make(revision: str, folder: Path) -> None:
    """A folder for each variant, a photo, and what the first variant's classifier says of it.

    Raises subprocess.CalledProcessError for an unknown revision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = open_source("digits")
    source.read(source.dataset().pool[0].key).save(folder / PHOTO)
    with tempfile.TemporaryDirectory() as code:
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(code, filter="data")
        for variant in VARIANTS:
            run(variant, folder / variant, Path(code))
        said = datadream("predict", str(folder / next(iter(VARIANTS))), str(folder / PHOTO), code=Path(code))
        (folder / PREDICTION).write_text(said)


def run(variant: str, folder: Path, code: Path = ROOT) -> None:
    """Do what is missing of a variant's run."""
    knobs = [f"{name}={value}" for name, value in (SMALL | VARIANTS[variant]).items()]
    datadream("run", "--recipe", "digits", "--run", str(folder), *knobs, code=code)


def datadream(*arguments: str, code: Path = ROOT) -> str:
    """What a command prints, with the code in that folder and the libraries that are installed here."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-m", "datadream.cli", *arguments],
        cwd=code,
        env=environment | {"PYTHONPATH": str(code)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    make(arguments.revision, arguments.folder.resolve())


if __name__ == "__main__":
    main()
