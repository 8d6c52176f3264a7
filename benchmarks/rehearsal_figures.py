"""What a rehearsal's records and requests say, and what they let expect of more workers on GPUs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.object_store import ObjectStore
from datadream.run.layout import (
    ADAPTER_GROUP,
    ADAPTER_WORKERS,
    EVENTS,
    AdapterGroup,
    ClassifierMarker,
    EventRecord,
    WorkerUsage,
)
from datadream.run.store import RunStore

MARKERS = {
    "adapt": "run/adapters/*/adapter.json",
    "generate": "run/chunks/*.json",
    "publish": "run/stages/publish/*.json",
    "classify": "run/classifier/*/metrics.json",
}
WORKERS = (8, 64, 512)
IMAGENET = {"adapt": 1000, "generate": 10_000}
"""Adapters, and chunks of 50 images."""
GPU_SECONDS = {"adapt": 16.5, "generate": 9.6}
"""Of one of these on an H200: modelled from arithmetic (README), not measured."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stage from its beginning to its end or interruption."""

    stage: str
    begun: float
    ended: float
    done: int
    """In it, in the stage's own count."""
    busy_percent: float
    """Of the workers' time, by the last that was said of it; 0 where nothing was."""


def stretches(events: Sequence[EventRecord]) -> list[Stretch]:
    """Each stage's parts; one that was killed ends with the last that it said."""
    parts: dict[str, list[list[EventRecord]]] = {}
    for event in events:
        own = parts.setdefault(event.stage, [])
        if event.state == "begun":
            own.append([])
        own[-1].append(event)
    found = []
    for stage, own in parts.items():
        for first, last in ((part[0], part[-1]) for part in own):
            busy = float(last.facts.get("busy_percent", 0.0))
            found.append(Stretch(stage, first.time, last.time, last.done - first.done, busy))
    return found


def figures(store: ObjectStore, n_workers: int) -> dict[str, Any]:
    """Of each stage: seconds, the share of its workers' time that is lost, and requests; and the model."""
    requests = list(store.requests)  # before our own
    run = RunStore(f"{store.url}/run")
    events = [EventRecord.from_json(json.loads(line)) for line in run.read_bytes(EVENTS).decode().splitlines()]
    parts, stages = stretches(events), {}
    for stage, pattern in MARKERS.items():
        own = [part for part in parts if part.stage == stage]
        units, seconds = sorted(store.written(pattern).values()), sum(part.ended - part.begun for part in own)
        came = [request for request in requests if any(part.begun <= request.time <= part.ended for part in own)]
        methods = Counter(request.method for request in came).most_common()
        stages[stage] = {
            "seconds": round(seconds, 1),
            "units": len(units),
            "seconds_to_first": round(units[0] - own[0].begun, 1),
            "requests_per_unit": {name: round(count / len(units), 1) for name, count in methods},
            "requests_per_second": round(len(came) / seconds, 1),
        }
    stages["adapt"] |= _adapt(run, stages["adapt"]["units"])
    stages["generate"] |= _generate(
        [part for part in parts if part.stage == "generate"], stages["generate"], n_workers
    )
    stages["classify"] |= _classify(run, store.written(MARKERS["classify"]))
    whole = requests[-1].time - requests[0].time
    return {
        "seconds": round(whole, 1),
        "seconds_beside_stages": round(whole - sum(part.ended - part.begun for part in parts), 1),
        "requests": len(requests),
        "mib_written": round(store.bytes_written / 2**20),
        "stages": stages,
        "model": {str(count): _model(stages, count) for count in WORKERS},
    }


def _adapt(run: RunStore, n_adapters: int) -> dict[str, float]:
    """By the queue's account: all of a worker's time from its first lease on, but for groups that it finished."""
    usage = WorkerUsage.from_json(run.read_json(ADAPTER_WORKERS))
    size = AdapterGroup.from_json(run.read_json(ADAPTER_GROUP)).adapters_per_step
    lost, groups = usage.seconds - usage.busy_seconds, math.ceil(n_adapters / size)
    return {"lost": round(lost / usage.seconds, 4), "lost_seconds_per_unit": round(lost / groups, 2)}


def _generate(parts: Sequence[Stretch], stage: dict[str, Any], n_workers: int) -> dict[str, float]:
    """By what samplers said of their time between two chunks."""
    own = [part for part in parts if part.stage == "generate"]
    lost = 1 - sum(part.busy_percent / 100 * part.done for part in own) / sum(part.done for part in own)
    per_unit = lost * n_workers * (stage["seconds"] - stage["seconds_to_first"]) / stage["units"]
    return {"lost": round(lost, 4), "lost_seconds_per_unit": round(per_unit, 2)}


def _classify(run: RunStore, ended: dict[str, float]) -> dict[str, float]:
    """All workers share a setting, so that lost is what lies between settings."""
    names = {key: key.removeprefix("run/") for key in ended}
    seconds = {key: ClassifierMarker.from_json(run.read_json(name)).seconds for key, name in names.items()}
    first, last = min(ended, key=ended.__getitem__), max(ended.values())
    return {"lost": round(1 - sum(seconds.values()) / (last - ended[first] + seconds[first]), 4)}


def _model(stages: dict[str, dict[str, Any]], n_workers: int) -> dict[str, dict[str, float]]:
    """ImageNet on so many GPUs: rounds of units, each with what was lost here, after the start measured here.

    A unit's requests come in the time of a unit; those of the driver, which do not grow with the workers, are among
    them.
    """
    found = {}
    for stage, n_units in IMAGENET.items():
        unit = GPU_SECONDS[stage] + stages[stage]["lost_seconds_per_unit"]
        seconds = stages[stage]["seconds_to_first"] + math.ceil(n_units / n_workers) * unit
        found[stage] = {
            "seconds": round(seconds),
            "busy": round(n_units * GPU_SECONDS[stage] / n_workers / seconds, 3),
            "requests_per_second": round(sum(stages[stage]["requests_per_unit"].values()) * n_workers / unit),
        }
    return found


def as_tables(measured: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rule = "|---" * 7 + "|"
    lines = ["| stage | seconds | to the first unit | units | lost | requests per unit | per second |", rule]
    for name, stage in measured["stages"].items():
        lost = f"{stage['lost']:.1%}" if "lost" in stage else ""
        asked = ", ".join(f"{count:g} {method}" for method, count in stage["requests_per_unit"].items())
        cells = (name, stage["seconds"], stage["seconds_to_first"], stage["units"], lost, asked)
        lines.append("| " + " | ".join(map(str, [*cells, stage["requests_per_second"]])) + " |")
    lines += ["", "| GPUs | adapt, s | busy | requests/s | generate, s | busy | requests/s |", rule]
    for count, stages in measured["model"].items():
        cells = [f"{s['seconds']} | {s['busy']:.1%} | {s['requests_per_second']}" for s in stages.values()]
        lines.append("| " + " | ".join([count, *cells]) + " |")
    return "\n".join(lines)
