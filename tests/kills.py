"""Any process of a run is killed again and again while the same command goes on: python -m tests.kills --seeds 5.

Each seed is a run of 12 kills in an order of its own, beside a quiet run for all of them. Prints a line of JSON for
each seed, and one for all.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from datadream import recipes
from tests.processes import wait_until_gone
from tests.tiny_clip import save_tiny_clip
from tests.tiny_models import save_pipeline

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
MARKERS = ("adapters/*/adapter.json", "chunks/*.json", "dataset/dataset.json", "classifier/*/metrics.json")
RESULTS = ("adapters/*/*.safetensors", "chunks/*", "dataset/**/*", "classifier/*/*.safetensors", "metrics.json")
"""What must not depend on who was killed."""


def command(pipeline: Path, folder: Path) -> list[str]:
    """A run of all stages on this machine, without its folder.

    Long enough: workers notice seconds later that their raylet is gone, and commit what they do meanwhile.
    """
    changes = {
        "diffusion.model": str(pipeline),
        "data.n_shots": 2,
        "adapt.steps_per_class": 250,
        "adapt.batch_size": 2,
        "adapt.adapters_per_step": 1,
        "generate.images_per_class": 16,
        "generate.chunk_size": 4,
        "generate.steps": 40,
        "generate.images_per_shard": 25,
        "classify.model": f"local-dir:{save_tiny_clip(folder / 'clip')}",
        "classify.settings": ["real", "synthetic"],
        "classify.steps": 800,
        "cluster.workers": 2,
        "cluster.checkpoint_steps": 20,
        "cluster.device": "cpu",
    }
    (folder / "config.json").write_text(recipes.digits(**changes).model_dump_json())  # JSON is YAML
    return [sys.executable, "-m", "datadream.cli", "run", "--config", str(folder / "config.json"), "--run"]


def bytes_of(run: Path) -> dict[str, bytes]:
    """The files that are the result."""
    return {
        str(path.relative_to(run)): path.read_bytes() for kind in RESULTS for path in run.glob(kind) if path.is_file()
    }


class Driver:
    """The command, started again whenever it has ended."""

    def __init__(self, command: Sequence[str], run: Path) -> None:
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
        """Leave nothing behind, whatever state the storm is in."""
        self.is_running()
        for process in (self._process, *self._ours):
            with suppress(psutil.NoSuchProcess):
                process.kill()


@dataclass(slots=True)
class Outcome:
    """What a storm left."""

    seed: int
    killed: list[str] = field(default_factory=list)
    longest_silence: float = 0.0
    """Seconds from a kill, or a start after it, to the next sign of progress."""
    twice: list[str] = field(default_factory=list)
    """Units that were committed again."""
    differ: list[str] = field(default_factory=list)
    """Results that are not the quiet run's, or are not there."""
    left_behind: list[str] = field(default_factory=list)
    """Temporaries, locks and checkpoints."""


class Storm:
    """Kills through all phases of one run."""

    def __init__(self, command: Sequence[str], run: Path, seed: int) -> None:
        self._command, self._run, self._rng = command, run, random.Random(seed)
        self._committed: dict[str, int] = {}
        self.outcome = Outcome(seed)

    def blow(self, quiet: Path) -> Outcome:
        """Kill, go on, and compare with what a quiet run left."""
        self._driver = Driver(self._command, self._run)
        try:
            self._kill_all()
        finally:
            self._driver.end()
        if (self._run / "lock.json").exists():  # its Ray was killed at the very end
            subprocess.run([*self._command, str(self._run)], check=True, stdout=subprocess.DEVNULL)
        ours, theirs = bytes_of(self._run), bytes_of(quiet)
        self.outcome.differ = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
        left = [*self._run.rglob(".*"), *self._run.glob("lock.json"), *self._run.glob("classifier/*/checkpoints")]
        self.outcome.left_behind = [str(path.relative_to(self._run)) for path in left]
        return self.outcome

    def _kill_all(self) -> None:
        killed, metrics = self.outcome.killed, self._run / "metrics.json"
        for pattern, kinds in PHASES:
            for kind in self._rng.sample(kinds, len(kinds)):
                before, after = self._written(pattern), f"for {pattern} after {killed}"
                self._wait_until(
                    lambda known=before, files=pattern: self._written(files).items() - known.items(), after
                )
                self._wait_until(lambda victim=kind: self._driver.kill(victim), f"for a {kind} to kill {after}")
                killed.append(kind)
                assert not metrics.exists(), f"over before {killed}"
        self._wait_until(metrics.exists, f"for the end after {killed}")
        if self._driver.exit_code() != 0:
            subprocess.run([*self._command, str(self._run)], check=True, stdout=subprocess.DEVNULL)

    def _written(self, pattern: str) -> dict[str, int]:
        """When each of these files was written."""
        found = {}
        for path in self._run.glob(pattern):
            with suppress(FileNotFoundError):  # a checkpoint goes once its training is done
                found[str(path.relative_to(self._run))] = path.stat().st_mtime_ns
        return found

    def _wait_until(self, reached: Callable[[], bool], what: str) -> None:
        """Start the driver again whenever it ends before, as one that has lost its Ray does."""
        began = time.monotonic()
        while not reached():
            if not self._driver.is_running():
                self._driver.bury()
                self._driver.start()
            self._look_for_twice()
            waited = time.monotonic() - began
            assert waited < SECONDS_TO_GET_ON, f"waited too long {what}"
            time.sleep(0.02)
        self._look_for_twice()
        self.outcome.longest_silence = max(self.outcome.longest_silence, round(time.monotonic() - began, 1))

    def _look_for_twice(self) -> None:
        now = {name: when for pattern in MARKERS for name, when in self._written(pattern).items()}
        self.outcome.twice += [name for name, when in now.items() if self._committed.get(name, when) != when]
        self._committed |= now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = command(save_pipeline(folder / "pipeline"), folder)
        subprocess.run([*words, str(folder / "quiet")], check=True, stdout=subprocess.DEVNULL)
        outcomes = []
        for seed in range(seeds):
            outcomes.append(Storm(words, folder / f"run-{seed}", seed).blow(folder / "quiet"))
            print(json.dumps(asdict(outcomes[-1])), flush=True)
    counts = {
        name: sum(len(getattr(outcome, name)) for outcome in outcomes)
        for name in ("killed", "twice", "differ", "left_behind")
    }
    print(json.dumps(counts | {"longest_silence": max(outcome.longest_silence for outcome in outcomes)}))


if __name__ == "__main__":
    main()
