"""What the presets of `generate` cost in quality: accuracy of classifiers on their images, and FID, over seeds.

    python -m benchmarks.presets RUNS --seeds 0 1 2      # RUNS keeps the runs: an interrupted call goes on

Digits with the embedded backbone. The exact arm has the paper's 50 steps, the pipeline's own scheduler and guidance
at every step. All arms generate from the same adapters, with the same noise. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import machine
from datadream import Experiment, recipes
from datadream.config import PRESETS
from datadream.data.datasets import open_source
from datadream.images.analysis import Comparison, Encoder
from datadream.images.metrics import frechet_distance

SETTINGS = ("synthetic", "real+synthetic")


def experiment_of(runs: Path, preset: str, seed: int, images: int) -> Experiment:
    changes = {"generate.images_per_class": images, "classify.settings": list(SETTINGS)}
    config = recipes.digits(seed=seed).updated(changes | {"generate.preset": preset})
    return Experiment(config, str(runs / f"{preset}-seed{seed}"))


def borrow_adapters(lender: Experiment, borrower: Experiment) -> None:
    """Presets change nothing of how adapters are trained."""
    if not borrower.store.exists("adapters"):
        shutil.copytree(lender.store.path("adapters"), borrower.store.path("adapters"))


def measure(experiment: Experiment, encoder: Encoder) -> dict[str, float]:
    """Test accuracies in percent, and the Fréchet distance to real photos."""
    top1 = {record["setting"]: record["top1"] for record in experiment.run()}
    dataset = open_source(experiment.config.data.source).dataset()
    photos, images = encoder.photos((*dataset.pool, *dataset.val)), encoder.images(experiment.store)
    return {**top1, "fid": frechet_distance(images.features, photos.features)}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": round(statistics.fmean(values), 3), "sd": sd and round(sd, 3), "n": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=100, help="images per class")
    arguments = parser.parse_args()
    encoder, found = None, {preset: [] for preset in PRESETS}
    for seed in arguments.seeds:
        exact = experiment_of(arguments.runs, "exact", seed, arguments.images)
        for preset in PRESETS:
            experiment = experiment_of(arguments.runs, preset, seed, arguments.images)
            if preset == "exact":
                experiment.adapt()
            else:
                borrow_adapters(exact, experiment)
            if encoder is None:
                classify, data = exact.config.classify, exact.config.data
                encoder = Encoder(Comparison(classify.model, classify.pretrained), data.source, data.background)
            found[preset].append(measure(experiment, encoder))
            print(preset, seed, found[preset][-1], flush=True)
    result = {
        "benchmark": "presets",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "seeds": arguments.seeds,
        "images_per_class": arguments.images,
        "arms": {
            preset: {name: spread([run[name] for run in rows]) for name in rows[0]} for preset, rows in found.items()
        },
        "minus_exact": {
            preset: {
                name: spread([run[name] - exact[name] for run, exact in zip(rows, found["exact"], strict=True)])
                for name in rows[0]
            }
            for preset, rows in found.items()
            if preset != "exact"
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
