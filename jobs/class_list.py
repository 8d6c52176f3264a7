"""Adapters and images for the classes that a text file lists, one a line; no classifier.

    python jobs/class_list.py CLASSES PHOTOS RUN [RECIPE]

PHOTOS has a folder for each class, and perhaps many more. Where workers are to spare, a class's images are generated
as soon as its adapter is trained, beside the other adapters. The same command goes on after a kill. The photos that
it takes are listed in PHOTOS/<name of CLASSES>.jsonl, which is the run's data.source.
"""

import json
import sys
from pathlib import Path

from datadream import Experiment, recipes
from datadream.data.decode import IMAGE_SUFFIXES


def list_photos(classes: Path, photos: Path) -> Path:
    """Write the list of all photos of the classes; raises ValueError naming a class that has none."""
    rows = []
    for name in dict.fromkeys(classes.read_text().split("\n")):
        found = [path for path in sorted((photos / name).rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
        if name and not found:
            raise ValueError(f"class {name!r} of {classes} has no photos: expected some in {photos / name}.")
        rows += [{"path": path.relative_to(photos).as_posix(), "label": name} for path in found if name]
    listing = photos / f"{classes.stem}.jsonl"
    listing.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return listing


if __name__ == "__main__":
    classes, photos, run = sys.argv[1:4]
    config = recipes.by_name(sys.argv[4] if len(sys.argv) > 4 else "paper")
    source = list_photos(Path(classes), Path(photos))
    experiment = Experiment(config.updated({"data.source": str(source)}), run)
    experiment.run(until="generate")
    print(*experiment.status(), sep="\n")
