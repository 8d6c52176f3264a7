"""All that a GPU has to show, in one command of minutes: speed beside the authors' code, memory, and the same results.

    python -m benchmarks.gpu --out FOLDER                                   # one GPU, eight minutes
    python -m benchmarks.gpu --out FOLDER --device cpu --shapes tiny        # the same code where there is no GPU

FOLDER/gpu.json is written after every part, and FOLDER/gpu.md is its figures as tables. Called again, it goes on with
the parts that are missing, and tries again those that failed. Each part is a process with a limit: one that hangs or
is killed for its memory is recorded with its error, and the next begins. Needs no weights, no network and, but for
the part `resume`, no Ray.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu_table import table

RECORD, TABLE = "gpu.json", "gpu.md"
CODE = "benchmarks.gpu_parts"
START_SECONDS = 120
"""For the first process, which imports what the others find imported."""
METHODS = ("forkserver", "spawn")
"""How processes begin: with everything imported, or, where imports have touched the GPU already, with nothing."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is measured in a process of its own."""

    code: str
    """module:function, a generator of figures."""
    limit: float
    """Seconds."""


MACHINE = Part(f"{CODE}:machine_figures", START_SECONDS)
# What says most comes first, in case the time ends.
PARTS = {
    "tests": Part(f"{CODE}:tests", 120),
    "adapt": Part(f"{CODE}:adapt", 120),
    "generate": Part(f"{CODE}:generate", 110),
    "classify": Part(f"{CODE}:classify", 90),
    "adapt_recorded": Part(f"{CODE}:adapt_recorded", 40),
    "generate_ahead": Part(f"{CODE}:generate_ahead", 40),
    "attention": Part(f"{CODE}:attention", 40),
    "roofline": Part(f"{CODE}:roofline", 60),
    "resume": Part(f"{CODE}:resume", 240),
    "adapt_compiled": Part(f"{CODE}:adapt_compiled", 180),
    "generate_compiled": Part(f"{CODE}:generate_compiled", 150),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a part."""

    figures: dict[str, Any]
    error: str | None
    """Why it is not complete."""
    seconds: float


def measure(part: Part, device: str, shapes: str, limit: float, method: str = METHODS[0]) -> Measured:
    """Run a part for at most `limit` seconds; never raises for what goes wrong in it."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        lines = Path(folder) / "figures.jsonl"
        process = _processes(method).Process(target=_work, args=(part.code, device, shapes, folder, str(lines)))
        process.start()
        try:
            process.join(limit)
            error = f"it took longer than {limit:.0f} s" if process.is_alive() else None
        finally:  # Ctrl-C, too: a part does not hear it
            _end(process)
        figures: dict[str, Any] = {}
        # The last line of a process that was killed may be cut off.
        for line in lines.read_text().splitlines(keepends=True) if lines.exists() else []:
            figures |= json.loads(line) if line.endswith("\n") else {}
    told = figures.pop("error", None)
    if error is None and told is None and process.exitcode != 0:
        error = f"its process ended with code {process.exitcode}"
        if process.exitcode < 0:
            error = f"its process was killed by signal {-process.exitcode}: 9 is what too much memory gets"
    return Measured(figures, told or error, round(time.monotonic() - started, 1))


def _processes(method: str) -> Any:
    # Imports ask whether there is a GPU; asked through CUDA itself, it could not be used after the fork.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler tells of every start
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([CODE])
    return context


def _work(code: str, device: str, shapes: str, folder: str, lines: str) -> None:
    """The part's process: a line for each of its figures, and for the error that ended it."""
    os.setpgrp()
    job = importlib.import_module(CODE).Job(device, shapes, Path(folder))
    module, _, name = code.partition(":")
    with open(lines, "a", buffering=1) as file:
        try:
            job.prepare()
            for figures in getattr(importlib.import_module(module), name)(job):
                file.write(json.dumps(figures) + "\n")
        except Exception as error:
            traceback.print_exc()
            file.write(json.dumps({"error": f"{type(error).__name__}: {error}"[:3000]}) + "\n")


def _end(process: Any) -> None:
    """Kill what is left of a part: a run that it started must not take the next one's GPU."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    if process.exitcode is None:
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.join()
    # Where the part itself was killed, what it started has another parent now, but still its group.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    psutil.wait_procs(family, START_SECONDS)


class Record:
    """FOLDER/gpu.json and its tables."""

    def __init__(self, folder: Path, device: str, shapes: str, machine: Mapping[str, Any]) -> None:
        """Goes on with what is there; raises ValueError when that was measured elsewhere."""
        self._folder = folder
        self._content: dict[str, Any] = {
            "benchmark": "gpu",
            "date": time.strftime("%Y-%m-%d"),
            "device": device,
            "shapes": shapes,
            "machine": dict(machine),
            "parts": {},
        }
        if (folder / RECORD).exists():
            kept = json.loads((folder / RECORD).read_text())
            for key in ("device", "shapes", "machine"):
                if kept[key] != self._content[key]:
                    raise ValueError(
                        f"{folder / RECORD} is of {key} {kept[key]}, and this is {self._content[key]}: figures of two "
                        "do not mix. Use another --out."
                    )
            self._content = kept

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those never tried, then those that failed."""
        parts = self._content["parts"]
        failed = [name for name in names if parts.get(name, {}).get("error")]
        return [name for name in names if name not in parts] + failed

    def add(self, name: str, measured: Measured) -> None:
        """Keep a part, in place of what came of it before."""
        own = {"seconds": measured.seconds, "error": measured.error, "figures": measured.figures}
        self._content["parts"][name] = own
        self._folder.mkdir(parents=True, exist_ok=True)
        for file, text in ((RECORD, json.dumps(self._content, indent=1)), (TABLE, table(self._content))):
            unfinished = self._folder / f".{file}"
            unfinished.write_text(text)
            unfinished.replace(self._folder / file)

    def complete(self, names: Sequence[str]) -> bool:
        return not self.missing(names)


def run(folder: Path, device: str, shapes: str, parts: Mapping[str, Part], seconds: float) -> bool:
    """Measure what is missing, as far as the time allows; returns whether all parts are there."""
    deadline = time.monotonic() + seconds
    for method in METHODS:
        machine = measure(MACHINE, device, shapes, MACHINE.limit, method)
        if not machine.error:
            break
    else:
        raise RuntimeError(f"nothing can be measured on {device}: {machine.error}")
    record = Record(folder, device, shapes, machine.figures)
    for name in record.missing(list(parts)):
        left = deadline - time.monotonic()
        if left <= 0:
            print("The time is over: the same command goes on from here.", file=sys.stderr)
            break
        measured = measure(parts[name], device, shapes, min(left, parts[name].limit), method)
        record.add(name, measured)
        print(f"{name}: {measured.seconds} s, {measured.error or 'done'}", file=sys.stderr, flush=True)
    return record.complete(list(parts))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    # Not benchmarks.shapes' own list: to read it would be to import torch, which the first part waits for already.
    parser.add_argument("--shapes", choices=["tiny", "sd21"], default="sd21")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no more is measured")
    arguments = parser.parse_args(argv)
    parts = {name: PARTS[name] for name in arguments.parts}
    try:
        complete = run(arguments.out, arguments.device, arguments.shapes, parts, 60 * arguments.minutes)
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print((arguments.out / TABLE).read_text())
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
