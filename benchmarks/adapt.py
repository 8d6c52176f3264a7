"""Training adapters: ours against the plain loop of the authors' script.

    python -m benchmarks.adapt              # steps, then end to end; minutes on 2 CPU cores
    python -m benchmarks.adapt --only steps

The last line is one JSON object: arms, median ratios with their 95 % intervals, counters.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from benchmarks.compare import counted, interleaved, machine, milliseconds, speedup
from benchmarks.plain_adapt import PlainTrainer, train_adapter
from datadream import recipes
from datadream.adapt.lora_trainer import AdapterTrainer
from datadream.adapt.stage import PhotosOf, load_trainer
from datadream.config import AdaptConfig
from datadream.data.datasets import open_source
from datadream.methods.base import AdapterSpec, TrainingPhoto
from datadream.models.diffusion.pipeline import load_pipeline
from datadream.models.source import resolve
from datadream.run.layout import ADAPTER_WEIGHTS

N_ADAPTERS, SHOTS = 16, 4
STEPS_PER_CALL = 20
"""So many that what a call does once does not count."""
GROUPS = (1, 2, 4, 5, 8, 16)
"""Adapters side by side; 5 is the most that ours takes on CPUs."""
END_TO_END_STEPS = 40
"""So few that starting up is half of our time (RESULTS.md)."""
MODEL = recipes.TINY["diffusion.model"]


def write_photos(root: Path) -> list[Path]:
    """16 classes of 4 real photos."""
    source = open_source("digits")
    pool = source.dataset().pool
    folders = [root / f"class {number:02d}" for number in range(N_ADAPTERS)]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for shot in range(SHOTS):
            source.read(pool[number * SHOTS + shot].key).save(folder / f"{shot}.png")
    return folders


def time_steps(folders: list[Path], rounds: int, threads: int) -> dict[str, Any]:
    """A step of one adapter: plain on a model that is kept, and ours with C adapters side by side."""
    torch.set_num_threads(threads)
    plain = PlainTrainer(
        resolve(MODEL), sorted(folders[0].iterdir()), "a photo of a digit", 10**6, "cpu", torch.float32
    )
    pipeline = load_pipeline(MODEL, None, torch.device("cpu"), torch.float32)
    config = AdaptConfig(steps_per_class=STEPS_PER_CALL, warmup_steps=2)
    ours = AdapterTrainer(pipeline, config, resolution=32)
    source = open_source(str(folders[0].parent))
    specs = [spec_of(folder) for folder in folders]
    photos = [[source.read(photo.key) for photo in spec.photos] for spec in specs]
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
    photos = tuple(TrainingPhoto(f"{folder.name}/{i}.png", "a photo of a digit") for i in range(SHOTS))
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
    arguments = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "adapt", "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        folders = write_photos(Path(folder) / "photos")
        result["counters"] = {"adapters": 2} | count_work(folders[:2])
        if arguments.only != "end-to-end":
            result["step"] = time_steps(folders, arguments.rounds, arguments.threads)
        if arguments.only != "steps":
            result["end_to_end"] = time_end_to_end(folders, arguments.end_to_end_rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
