"""Any process of a run is killed again and again, the same command goes on, and its files are those of a quiet run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from datadream import recipes
from tests.tiny_clip import save_tiny_clip

SEED = 0
WATCHDOG_SECONDS = 900
PROCESSES = {
    "worker": "ray::RayTrainWorker",
    "sampler": "ray::MapWorker",
    "raylet": "raylet/raylet",
    "agent": "runtime_env/agent/main.py",
}
"""A part of the command line, by kind."""
PHASES = (
    ("adapters/*/adapter.json", (1, 3, 5, 7), ["worker", "agent", "driver", "raylet"]),
    ("chunks/*.json", (1, 5, 9, 13), ["sampler", "raylet", "driver", "agent"]),
    ("classifier/*/checkpoints/*.pt", (1, 1, 1, 1), ["worker", "driver", "raylet", "agent"]),
)
"""Files to count, at how many of them to kill, and what, in an order that the seed says."""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(WATCHDOG_SECONDS + 60)]


@pytest.fixture
def command(pipeline_folder, tmp_path) -> list[str]:
    """A run of all stages on this machine, without its folder."""
    changes = {
        "diffusion.model": str(pipeline_folder),
        "data.n_shots": 2,
        "adapt.steps_per_class": 60,
        "adapt.batch_size": 2,
        "adapt.adapters_per_step": 1,
        "generate.images_per_class": 8,
        "generate.chunk_size": 4,
        "generate.steps": 20,
        "generate.images_per_shard": 25,
        "classify.model": f"local-dir:{save_tiny_clip(tmp_path / 'clip')}",
        "classify.settings": ["real", "synthetic"],
        "classify.steps": 400,
        "cluster.workers": 2,
        "cluster.checkpoint_steps": 20,
        "cluster.device": "cpu",
    }
    (tmp_path / "config.json").write_text(recipes.digits(**changes).model_dump_json())  # JSON is YAML
    return [sys.executable, "-m", "datadream.cli", "run", "--config", str(tmp_path / "config.json"), "--run"]


class Driver:
    """The command, started again whenever it has ended."""

    def __init__(self, command: list[str], run: Path) -> None:
        self._command = [*command, str(run)]
        self._environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.starts = 0
        self.start()

    def start(self) -> None:
        self.starts += 1
        self._process = psutil.Popen(self._command, env=self._environment, stdout=subprocess.DEVNULL)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def exit_code(self) -> int:
        return self._process.wait()

    def kill(self, kind: str) -> bool:
        """Kill one of a kind; False where there is none at the moment."""
        if kind == "driver":
            self._process.kill()
            self._process.wait()
            return True
        for process in self._process.children(recursive=True) if self.is_running() else ():
            with suppress(psutil.NoSuchProcess):  # it ended meanwhile
                if PROCESSES[kind] in " ".join(process.cmdline()):
                    process.kill()
                    return True
        return False


def bytes_of(run: Path) -> dict[str, bytes]:
    """What must not depend on who was killed."""
    kinds = ("adapters/*/*.safetensors", "chunks/*", "dataset/**/*", "classifier/*/*.safetensors")
    return {
        str(path.relative_to(run)): path.read_bytes() for kind in kinds for path in run.glob(kind) if path.is_file()
    }


def wait_until(driver: Driver, reached: Callable[[], bool]) -> None:
    """Start the driver again whenever it ends before, as one that has lost its Ray does."""
    while not reached():
        if not driver.is_running():
            driver.start()
        time.sleep(0.02)


def test_whatever_is_killed_the_same_command_ends_with_the_files_of_a_quiet_run(command, tmp_path):
    quiet, run, rng, killed = tmp_path / "quiet", tmp_path / "run", random.Random(SEED), []
    subprocess.run([*command, str(quiet)], check=True, stdout=subprocess.DEVNULL)
    driver = Driver(command, run)
    for pattern, counts, kinds in PHASES:
        for count, kind in zip(counts, rng.sample(kinds, len(kinds)), strict=True):
            wait_until(driver, lambda pattern=pattern, count=count: len(list(run.glob(pattern))) >= count)
            wait_until(driver, lambda kind=kind: driver.kill(kind) or (run / "metrics.json").exists())
            killed.append(kind)
    wait_until(driver, lambda: (run / "metrics.json").exists())
    if driver.exit_code() != 0:  # its Ray was killed at the very end
        subprocess.run([*command, str(run)], check=True, stdout=subprocess.DEVNULL)
    assert len(killed) == 12
    assert bytes_of(run) == bytes_of(quiet)
    records = [json.loads((each / "metrics.json").read_text()) for each in (run, quiet)]
    assert records[0] == records[1]
    assert not list(run.rglob(".*"))
    assert not (run / "lock.json").exists()
