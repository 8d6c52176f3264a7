"""A rehearsal of few classes goes through all stages, and its figures are about what happened."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from benchmarks.object_store import object_store
from benchmarks.rehearsal_figures import Stretch, as_tables, figures, stretches
from datadream.run.layout import (
    ADAPTER_GROUP,
    ADAPTER_WORKERS,
    EVENTS,
    AdapterGroup,
    ClassifierMarker,
    EventRecord,
    WorkerUsage,
    classifier_marker,
)
from datadream.run.store import RunStore

N_CLASSES = 20
WATCHDOG_SECONDS = 900


def event(time: float, stage: str, state: str, done: int, **facts: float) -> EventRecord:
    return EventRecord(time=time, stage=stage, state=state, done=done, total=100, unit="image", facts=facts)


def test_a_stage_that_was_killed_ends_with_the_last_that_it_said():
    said = [
        event(0, "adapt", "begun", 0),
        event(60, "adapt", "done", 50),
        event(70, "generate", "begun", 0),
        event(130, "generate", "running", 30, busy_percent=90.0),
        event(200, "generate", "begun", 40),
        event(250, "generate", "done", 100, busy_percent=80.0),
    ]
    assert stretches(said) == [
        Stretch("adapt", 0, 60, 50, 0.0),
        Stretch("generate", 70, 130, 30, 90.0),
        Stretch("generate", 200, 250, 60, 80.0),
    ]


def test_figures_are_of_what_came_to_the_server():
    with object_store() as store:
        run, began = RunStore(f"{store.url}/run"), time.time()
        for number in range(4):
            run.write_json(f"adapters/{number}/adapter.json", {})
        run.write_json("chunks/0.json", {})
        run.write_json("stages/publish/0.json", {})
        marker = ClassifierMarker(setting="real", top1=1.0, seconds=5.0)
        run.write_json(classifier_marker("real"), marker.to_json())
        run.write_json(ADAPTER_GROUP, AdapterGroup(adapters_per_step=2).to_json())
        run.write_json(ADAPTER_WORKERS, WorkerUsage(workers=2, seconds=20, busy_seconds=18).to_json())
        ended = time.time()
        said = []
        for stage in ("adapt", "generate", "publish", "classify"):
            said += [event(began, stage, "begun", 0), event(ended, stage, "done", 1, busy_percent=75.0)]
        run.write_bytes(EVENTS, "".join(f"{json.dumps(each.to_json())}\n" for each in said).encode())
        measured = figures(store, 2)
    adapt, generate, classify = (measured["stages"][stage] for stage in ("adapt", "generate", "classify"))
    assert (adapt["units"], generate["units"], classify["units"]) == (4, 1, 1)
    assert adapt["requests_per_unit"] == {"PUT": 2.2}  # 9 among 4
    assert (adapt["lost"], adapt["lost_seconds_per_unit"]) == (0.1, 1.0)
    assert (generate["lost"], classify["lost"]) == (0.25, 0.0)
    # 1,000 adapters on 8 workers are 125 rounds of 16.5 s and of the second that was lost here.
    assert measured["model"]["8"]["adapt"]["seconds"] == pytest.approx(125 * 17.5, rel=0.02)
    assert len(as_tables(measured).splitlines()) == 6 + 1 + 5


@pytest.mark.soak
@pytest.mark.timeout(WATCHDOG_SECONDS + 60)
def test_a_small_rehearsal_loses_a_node_and_its_job_and_does_every_unit():
    command = [sys.executable, "-m", "benchmarks.rehearsal", "--classes", str(N_CLASSES)]
    rehearsed = subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG_SECONDS)
    assert rehearsed.returncode == 0, rehearsed.stderr
    measured = json.loads(rehearsed.stdout.splitlines()[-1])
    stages = measured["stages"]
    assert [stages[name]["units"] for name in ("adapt", "generate", "classify")] == [N_CLASSES, N_CLASSES, 2]
    assert all(0 <= stages[name]["lost"] < 1 for name in ("adapt", "generate", "classify"))
    happened = [what for _, what in measured["happened"]]
    assert happened == [
        *("a job was submitted", "a node was killed", "a node joined", "the job was stopped"),
        *("a job was submitted", "the job was done"),
    ]
