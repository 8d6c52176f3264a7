"""Does memory stay flat while 100,000 images stream through, from the samplers to published shards?

    python -m benchmarks.stream --images 100000

The last line is one JSON object. A random pipeline of 32-pixel images and one step generates them, so that the stream
and not the model is what is busy.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from benchmarks.compare import machine
from benchmarks.samples import Samples, mib
from datadream import recipes
from datadream.generate.stage import chunk_units, generate_chunks, publish_dataset
from datadream.models.diffusion.pipeline import load_pipeline
from datadream.run.cell import Cell
from datadream.run.layout import DATASET, progress_file
from datadream.run.store import RunStore
from datadream.runtime.progress import ProgressFile
from datadream.runtime.session import connected

SHOWN = 10
"""Samples that are printed: enough to see a slope."""
NARROW_UNET = {"block_out_channels": (16, 32), "norm_num_groups": 8, "attention_head_dim": (2, 4)}
NARROW_VAE = {"block_out_channels": (8, 8, 16), "norm_num_groups": 4}


def save_pipeline(folder: Path) -> Path:
    """The embedded backbone with narrower networks of random weights in the place of its UNet and VAE."""
    pipeline = load_pipeline(recipes.TINY["diffusion.model"], None, torch.device("cpu"), torch.float32)
    torch.manual_seed(0)
    pipeline.unet = UNet2DConditionModel.from_config(pipeline.unet.config, **NARROW_UNET)
    pipeline.vae = AutoencoderKL.from_config(pipeline.vae.config, **NARROW_VAE)
    pipeline.save_pretrained(folder)
    return folder


def read_memory(store: RunStore, began: float) -> dict[str, Any]:
    """What the driver, the largest worker and the object store hold now, in MiB."""
    there = store.exists(progress_file("generate"))
    return {
        "seconds": round(time.monotonic() - began),
        "generated": store.read_json(progress_file("generate"))["done"] if there else 0,
        "driver": round(mib(psutil.Process().memory_info().rss)),
        "largest_worker": round(mib(max(map(_resident, psutil.Process().children(recursive=True))))),
        "object_store": round(mib(_stored())),
    }


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss if "ray::Map" in " ".join(process.cmdline()) else 0
    except psutil.Error:  # it ended meanwhile
        return 0


def _stored() -> float:
    """Bytes in the object store."""
    return ray.cluster_resources()["object_store_memory"] - ray.available_resources().get("object_store_memory", 0)


def measure(n_images: int, folder: Path) -> dict[str, Any]:
    """Generate and publish so many images in ten classes."""
    changes = {
        "diffusion.model": str(save_pipeline(folder / "pipeline")),
        "diffusion.resolution": 32,
        "data.n_shots": 1,
        "generate.images_per_class": n_images // 10,
        "generate.steps": 1,
        "generate.guidance_scale": 1.0,
        "generate.chunk_size": 100,
        "cluster.device": "cpu",
    }
    config, store = recipes.digits(method="zero-shot", **changes), RunStore(str(folder / "run"))
    cell = Cell(config, store)
    with connected(config.cluster) as workers, Samples(partial(read_memory, store, time.monotonic())) as samples:
        started = time.monotonic()
        generate_chunks(store, chunk_units(cell.chunks), config, workers, [ProgressFile(store)])
        generated = time.monotonic()
        publish_dataset(cell)
        published = time.monotonic()
    every = max(1, len(samples.taken) // SHOWN)
    return {
        "images": store.read_json(DATASET)["n_images"],
        "generating_seconds": round(generated - started, 1),
        "publishing_seconds": round(published - generated, 1),
        "most_mib": {
            name: max(sample[name] for sample in samples.taken)
            for name in ("driver", "largest_worker", "object_store")
        },
        "samples": samples.taken[::every],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(arguments.images, Path(folder))
    about = {"benchmark": "stream", "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    print(json.dumps(about | measured))


if __name__ == "__main__":
    main()
