"""What does it cost to plan and to hash the images of many classes?

    python -m benchmarks.plan --classes 1000 --images 500

The last line is one JSON object; MiB are the peak of resident memory above that after the imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

from benchmarks.compare import machine
from datadream import recipes
from datadream.data.few_shot import FewShotSet
from datadream.methods import METHODS
from datadream.methods.chunks import plan_hash, split_into_chunks


def named_classes(n_classes: int, n_shots: int = 16) -> FewShotSet:
    """A few-shot set of photos that nothing reads."""
    names = tuple(f"class {label}" for label in range(n_classes))
    shots = tuple(tuple(f"train/{name}/{number}.jpg" for number in range(n_shots)) for name in names)
    return FewShotSet(names, tuple(f"a photo of a {name}" for name in names), shots, (), (), flippable=True)


def measure(few_shot: FewShotSet, method: str, images_per_class: int) -> dict[str, float]:
    """Seconds and MiB until all chunks are planned, and until they are hashed too."""
    config = recipes.paper(method=method, **{"generate.images_per_class": images_per_class})
    before, began = _peak_mib(), time.perf_counter()
    chunks = split_into_chunks("run", METHODS[method](few_shot, config).images, config.generate.chunk_size)
    planned, planned_mib = time.perf_counter(), _peak_mib() - before
    plan_hash(chunks, config)
    hashed, hashed_mib = time.perf_counter(), _peak_mib() - before
    return {
        "chunks": len(chunks),
        "plan_seconds": round(planned - began, 2),
        "plan_mib": round(planned_mib, 1),
        "hash_seconds": round(hashed - planned, 2),
        "hash_mib": round(hashed_mib, 1),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--method", default="datadream-cls", choices=[name for name in METHODS if name != "none"])
    arguments = parser.parse_args()
    measured = measure(named_classes(arguments.classes), arguments.method, arguments.images)
    about = {"benchmark": "plan", "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    print(json.dumps(about | vars(arguments) | measured))


if __name__ == "__main__":
    main()
