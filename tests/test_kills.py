"""Any process of a run is killed again and again, the same command goes on, and its files are those of a quiet run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from datadream import recipes
from tests.processes import wait_until_gone
from tests.tiny_clip import save_tiny_clip

SEED = 0
WATCHDOG_SECONDS = 2400
SECONDS_TO_GET_ON = 300.0
"""From a kill until the run has got so far that the next one is due: a start takes ten seconds on an idle machine."""
PROCESSES = {
    "worker": "ray::RayTrainWorker",
    "sampler": "ray::MapWorker",
    "raylet": "raylet/raylet",
    "agent": "ray::RuntimeEnvAgent",
}
"""A part of the command line, by kind."""
PHASES = (
    ("adapters/*/adapter.json", ["worker", "agent", "driver", "raylet"]),
    ("chunks/*.json", ["sampler", "raylet", "driver", "agent"]),
    ("classifier/*/checkpoints/*.pt", ["worker", "driver", "raylet", "agent"]),
)
"""Files that tell progress, and what is killed each time there is some, in an order that the seed says."""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(WATCHDOG_SECONDS + 60)]


@pytest.fixture
def command(pipeline_folder, tmp_path) -> list[str]:
    """A run of all stages on this machine, without its folder.

    Long enough: workers notice seconds later that their raylet is gone, and commit what they do meanwhile.
    """
    changes = {
        "diffusion.model": str(pipeline_folder),
        "data.n_shots": 2,
        "adapt.steps_per_class": 250,
        "adapt.batch_size": 2,
        "adapt.adapters_per_step": 1,
        "generate.images_per_class": 16,
        "generate.chunk_size": 4,
        "generate.steps": 40,
        "generate.images_per_shard": 25,
        "classify.model": f"local-dir:{save_tiny_clip(tmp_path / 'clip')}",
        "classify.settings": ["real", "synthetic"],
        "classify.steps": 800,
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
        self.start()

    def start(self) -> None:
        self._process = psutil.Popen(self._command, env=self._environment, stdout=subprocess.DEVNULL)
        self._ours: set[psutil.Process] = set()

    def is_running(self) -> bool:
        if self._process.poll() is None:
            self._ours.update(self._process.children(recursive=True))
            return True
        return False

    def exit_code(self) -> int:
        return self._process.wait(SECONDS_TO_GET_ON)

    def kill(self, kind: str) -> bool:
        """Kill one of a kind; False where there is none at the moment."""
        if not self.is_running():
            return False
        if kind == "driver":
            self._process.kill()
            self.bury()
            return True
        for process in self._process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it ended meanwhile
                if PROCESSES[kind] in " ".join(process.cmdline()):
                    process.kill()
                    return True
        return False

    def bury(self) -> None:
        """Wait until all processes of a driver that ended are gone: they may write until then."""
        self._process.wait(SECONDS_TO_GET_ON)
        wait_until_gone(self._ours, SECONDS_TO_GET_ON)

    def end(self) -> None:
        """Leave nothing behind, whatever state the test is in."""
        self.is_running()
        for process in (self._process, *self._ours):
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture
def driver(command, tmp_path) -> Iterator[Driver]:
    driver = Driver(command, tmp_path / "run")
    yield driver
    driver.end()


def bytes_of(run: Path) -> dict[str, bytes]:
    """What must not depend on who was killed."""
    kinds = ("adapters/*/*.safetensors", "chunks/*", "dataset/**/*", "classifier/*/*.safetensors")
    return {
        str(path.relative_to(run)): path.read_bytes() for kind in kinds for path in run.glob(kind) if path.is_file()
    }


def written(run: Path, pattern: str) -> dict[str, int]:
    """When each of these files was written."""
    found = {}
    for path in run.glob(pattern):
        with suppress(FileNotFoundError):  # a checkpoint goes once its training is done
            found[str(path)] = path.stat().st_mtime_ns
    return found


def wait_until(driver: Driver, reached: Callable[[], bool], what: str) -> None:
    """Start the driver again whenever it ends before, as one that has lost its Ray does."""
    deadline = time.monotonic() + SECONDS_TO_GET_ON
    while not reached():
        if not driver.is_running():
            driver.bury()
            driver.start()
        assert time.monotonic() < deadline, f"waited too long {what}"
        time.sleep(0.02)


def test_whatever_is_killed_the_same_command_ends_with_the_files_of_a_quiet_run(command, driver, tmp_path):
    run, rng, killed = tmp_path / "run", random.Random(SEED), []
    for pattern, kinds in PHASES:
        for kind in rng.sample(kinds, len(kinds)):
            before = written(run, pattern)
            after = f"for {pattern} after {killed}"
            wait_until(driver, lambda known=before, files=pattern: written(run, files).items() - known.items(), after)
            wait_until(driver, lambda victim=kind: driver.kill(victim), f"for a {kind} to kill {after}")
            killed.append(kind)
            assert not (run / "metrics.json").exists(), f"over before {killed}"
    wait_until(driver, (run / "metrics.json").exists, f"for the end after {killed}")
    if driver.exit_code() != 0:  # its Ray was killed at the very end
        subprocess.run([*command, str(run)], check=True, stdout=subprocess.DEVNULL)
    quiet = tmp_path / "quiet"
    subprocess.run([*command, str(quiet)], check=True, stdout=subprocess.DEVNULL)
    assert len(killed) == 12
    assert bytes_of(run) == bytes_of(quiet)
    records = [json.loads((each / "metrics.json").read_text()) for each in (run, quiet)]
    assert records[0] == records[1]
    assert not list(run.rglob(".*"))
    assert not (run / "lock.json").exists()
