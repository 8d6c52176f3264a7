"""Training adapters: ours against the plain loop of the authors' script.

    python -m benchmarks.adapt              # steps, then end to end; minutes on 2 CPU cores
    python -m benchmarks.adapt --only steps
    python -m benchmarks.adapt --device cuda --shapes sd21   # steps alone; `python -m benchmarks.gpu` measures more

The last line is one JSON object: arms, median ratios with their 95 % intervals, counters.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load

from benchmarks.compare import counted, interleaved, machine, milliseconds, speedup
from benchmarks.plain_adapt import PlainTrainer, train_adapter
from benchmarks.shapes import MODEL, SHAPES, Shapes, add_arguments
from datadream import recipes
from datadream.adapt.lora_trainer import AdapterTrainer
from datadream.adapt.stage import PhotosOf, load_trainer
from datadream.config import AdaptConfig
from datadream.data.datasets import open_source
from datadream.methods.base import AdapterSpec, TrainingPhoto
from datadream.models.diffusion.compile import compile_blocks
from datadream.models.source import resolve
from datadream.run.layout import ADAPTER_WEIGHTS
from datadream.runtime.cuda_graph import Recorded
from datadream.runtime.device import dtype_of

N_ADAPTERS, SHOTS = 16, 4
STEPS_PER_CALL = 20
"""So many that what a call does once does not count."""
GROUPS = (1, 2, 4, 5, 8, 16)
"""Adapters side by side; 5 is the most that ours takes on CPUs."""
END_TO_END_STEPS = 40
"""So few that starting up is half of our time (RESULTS.md)."""
PROMPT = "a photo of a digit"
ENDLESS = 10**6
"""Steps of a training that a benchmark never ends, so that its learning rate hardly moves."""


def write_photos(root: Path, shapes: Shapes = SHAPES["tiny"]) -> list[Path]:
    """16 classes of 4 photos: real ones, or noise of the size that a larger generator wants."""
    if not shapes.embedded:
        return _write_noise(root, shapes.resolution)
    source = open_source("digits")
    pool = source.dataset().pool
    folders = [root / f"class {number:02d}" for number in range(N_ADAPTERS)]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for shot in range(SHOTS):
            source.read(pool[number * SHOTS + shot].key).save(folder / f"{shot}.png")
    return folders


def _write_noise(root: Path, pixels: int) -> list[Path]:
    rng, folders = np.random.default_rng(0), [root / f"class {number:02d}" for number in range(N_ADAPTERS)]
    for folder in folders:
        folder.mkdir(parents=True)
        for shot in range(SHOTS):
            noise = rng.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{shot}.png", compress_level=0)
    return folders


def plain_trainer(shapes: Shapes, folder: Path, device: str, dtype: torch.dtype = torch.float32) -> PlainTrainer:
    """The plain loop on a model of its own, which it keeps."""
    photos = sorted(folder.iterdir())
    return PlainTrainer(shapes.pipeline(device, torch.float32), photos, PROMPT, ENDLESS, dtype)


def our_trainer(shapes: Shapes, device: str, steps: int) -> AdapterTrainer:
    """Ours on a model of its own, in the precision that the device gets by default."""
    dtype = dtype_of("auto", torch.device(device), on_cuda=torch.bfloat16)
    config = AdaptConfig(steps_per_class=steps, warmup_steps=2)
    return AdapterTrainer(shapes.pipeline(device, dtype), config, shapes.resolution)


def read_photos(folders: Sequence[Path]) -> tuple[list[AdapterSpec], list[list[Image.Image]]]:
    """An adapter for each folder, and its photos."""
    source, specs = open_source(str(folders[0].parent)), [spec_of(folder) for folder in folders]
    return specs, [[source.read(photo.key) for photo in spec.photos] for spec in specs]


class OurSteps:
    """An adapter for each folder side by side, step by step, without what a training does once for an adapter."""

    def __init__(
        self,
        shapes: Shapes,
        folders: Sequence[Path],
        device: str,
        compiled: bool = False,
        recorded: bool = False,
    ) -> None:
        """`compiled` and `recorded` are what adapt.compile turns on: the blocks', and the step's as a CUDA graph."""
        trainer = our_trainer(shapes, device, ENDLESS)
        self.pipeline = trainer._pipeline
        if compiled:
            # A CPU's code would take minutes to compile, for nothing that is measured there.
            compile_blocks(self.pipeline.unet, backend="inductor" if device == "cuda" else "eager")
        # What `train` does before its first step; it has no public name, since nobody else needs it alone.
        self._training = trainer._start(*read_photos(folders), ENDLESS)
        if recorded:
            self._training._gradient = Recorded(self._training._gradient)

    def step(self) -> None:
        self._training.step()


def time_steps(folders: list[Path], rounds: int, threads: int, shapes: Shapes, device: str) -> dict[str, Any]:
    """A step of one adapter: plain on a model that is kept, and ours with C adapters side by side."""
    torch.set_num_threads(threads)
    plain = plain_trainer(shapes, folders[0], device)
    ours = our_trainer(shapes, device, STEPS_PER_CALL)
    specs, photos = read_photos(folders)
    arms = {"plain": lambda: [plain.step() for _ in range(STEPS_PER_CALL)]}
    arms |= {f"C={n}": lambda n=n: ours.train(specs[:n], photos[:n]) for n in GROUPS}
    seconds = interleaved(arms, rounds)
    for n in GROUPS:
        seconds[f"C={n}"] = [value / n for value in seconds[f"C={n}"]]
    return {
        "threads": threads,
        "ms_per_adapter_step": {name: milliseconds(values, STEPS_PER_CALL) for name, values in seconds.items()},
        "ratio_to_plain": {
            name: speedup(seconds["plain"], values) for name, values in seconds.items() if name != "plain"
        },
    }


def spec_of(folder: Path) -> AdapterSpec:
    """A class's adapter, as the plain loop trains it."""
    photos = tuple(TrainingPhoto(f"{folder.name}/{i}.png", PROMPT) for i in range(SHOTS))
    return AdapterSpec(folder.name, photos, 1, 0)


def count_work(folders: list[Path], steps: int = 2) -> dict[str, dict[str, float]]:
    """What one worker of ours does for an adapter of each folder, and what the plain script does; free of noise."""
    source, config = open_source(str(folders[0].parent)), recipes.digits(**{"adapt.steps_per_class": steps})
    specs, n = [spec_of(folder) for folder in folders], len(folders)
    with counted() as ours:
        trained = load_trainer(config, torch.device("cpu")).train(specs, [PhotosOf(spec, source) for spec in specs])
    with counted() as plain, tempfile.TemporaryDirectory() as output:
        for folder in folders:
            train_adapter(resolve(MODEL), folder, output, steps, "cpu")
        files = {"ours": trained[0].weights, "plain": (Path(output) / ADAPTER_WEIGHTS).read_bytes()}
    return {
        name: {
            "model_loads": counts["model_loads"],
            "vae_encodes_per_adapter": counts["vae_encodes"] / n,
            "prompt_encodings_per_step": counts["prompt_encodings"] / n / steps,
            "lora_parameters": sum(tensor.numel() for tensor in load(files[name]).values()),
        }
        for name, counts in (("ours", ours), ("plain", plain))
    }


def time_end_to_end(folders: list[Path], rounds: int) -> dict[str, Any]:
    """16 adapters from nothing: the plain script once per class, and `datadream adapt` on a Ray of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        number = iter(range(10**6))
        arms = {
            "plain script": lambda: _run_plain(folders, Path(scratch) / f"plain{next(number)}"),
            "datadream adapt": lambda: _run_ours(folders[0].parent, Path(scratch) / f"ours{next(number)}"),
        }
        seconds = interleaved(arms, rounds, warm_up=0)
    plain, ours = seconds.values()
    return {
        "adapters": N_ADAPTERS,
        "steps": END_TO_END_STEPS,
        "seconds": {name: [round(value, 1) for value in values] for name, values in seconds.items()},
        "ratio": speedup(plain, ours),
    }


def _run_plain(folders: list[Path], output: Path) -> None:
    for folder in folders:
        command = [sys.executable, "-m", "benchmarks.plain_adapt", resolve(MODEL), folder, output / folder.name]
        subprocess.run([*command, "--steps", str(END_TO_END_STEPS)], check=True, stderr=subprocess.DEVNULL)


def _run_ours(photos: Path, run: Path) -> None:
    command = [sys.executable, "-m", "datadream.cli", "adapt", "--recipe", "digits", "--run", run]
    knobs = [f"data.source={photos}", f"data.n_shots={SHOTS}", f"adapt.steps_per_class={END_TO_END_STEPS}"]
    subprocess.run([*command, *knobs], check=True, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["steps", "end-to-end"])
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds of the steps")
    parser.add_argument("--end-to-end-rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of both arms of the steps")
    add_arguments(parser)
    arguments = parser.parse_args()
    shapes, device = SHAPES[arguments.shapes], arguments.device
    # Counters and whole runs are of the embedded backbone: they would tell nothing else of another.
    on_cpu = shapes.embedded and device == "cpu"
    if arguments.only == "end-to-end" and not on_cpu:
        parser.error("--only end-to-end takes --device cpu and --shapes tiny.")
    result: dict[str, Any] = {"benchmark": "adapt", "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        folders = write_photos(Path(folder) / "photos", shapes)
        if on_cpu:
            result["counters"] = {"adapters": 2} | count_work(folders[:2])
        if arguments.only != "end-to-end":
            result["step"] = time_steps(folders, arguments.rounds, arguments.threads, shapes, device)
        if arguments.only != "steps" and on_cpu:
            result["end_to_end"] = time_end_to_end(folders, arguments.end_to_end_rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
