"""What the presets of `generate` cost in quality: accuracy of classifiers on their images, and FID, over seeds.

    python -m benchmarks.presets RUNS --seeds 0 1 2      # RUNS keeps the runs: an interrupted call goes on

Digits with the embedded backbone. The exact arm has the paper's 50 steps, the pipeline's own scheduler and guidance
at every step. All arms generate from the same adapters, with the same noise. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.compare import machine
from benchmarks.fid import frechet_distance
from datadream import Experiment, recipes
from datadream.config import PRESETS
from datadream.data.datasets import open_source
from datadream.models.clip.load import ClipModel, load_clip
from datadream.run.layout import DATASET

SETTINGS = ("synthetic", "real+synthetic")
BATCH = 256
"""Images whose features are taken at once; bounds memory alone."""


def experiment_of(runs: Path, preset: str, seed: int, images: int) -> Experiment:
    changes = {"generate.images_per_class": images, "classify.settings": list(SETTINGS)}
    config = recipes.digits(seed=seed).updated(changes | {"generate.preset": preset})
    return Experiment(config, str(runs / f"{preset}-seed{seed}"))


def borrow_adapters(lender: Experiment, borrower: Experiment) -> None:
    """Presets change nothing of how adapters are trained."""
    if not borrower.store.exists("adapters"):
        shutil.copytree(lender.store.path("adapters"), borrower.store.path("adapters"))


@torch.inference_mode()
def features(clip: ClipModel, images: Iterable[Image.Image]) -> np.ndarray:
    """CLIP's image features [n, D]."""
    pixels = torch.stack([clip.preprocess(image) for image in images])
    return torch.cat([clip.model.encode_image(part) for part in pixels.split(BATCH)]).double().numpy()


def published_images(experiment: Experiment) -> list[Image.Image]:
    store = experiment.store
    tables = [pq.read_table(store.path(f"dataset/{shard}")) for shard in store.read_json(DATASET)["shards"]]
    return [Image.open(io.BytesIO(row["bytes"])) for table in tables for row in table["image"].to_pylist()]


def real_images(experiment: Experiment) -> list[Image.Image]:
    """All photos but those of the test part."""
    source = open_source(experiment.config.data.source)
    dataset = source.dataset()
    return [source.read(photo.key) for photo in (*dataset.pool, *dataset.val)]


def measure(experiment: Experiment, clip: ClipModel, real: np.ndarray) -> dict[str, float]:
    """Test accuracies in percent, and the Fréchet distance to real photos."""
    top1 = {record["setting"]: record["top1"] for record in experiment.run()}
    return {**top1, "fid": frechet_distance(features(clip, published_images(experiment)), real)}


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
    clip, real, found = None, None, {preset: [] for preset in PRESETS}
    for seed in arguments.seeds:
        exact = experiment_of(arguments.runs, "exact", seed, arguments.images)
        for preset in PRESETS:
            experiment = experiment_of(arguments.runs, preset, seed, arguments.images)
            if preset == "exact":
                experiment.adapt()
            else:
                borrow_adapters(exact, experiment)
            if clip is None:
                clip = load_clip(exact.config.classify.model, exact.config.classify.pretrained, "cpu")
                real = features(clip, real_images(exact))
            found[preset].append(measure(experiment, clip, real))
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
