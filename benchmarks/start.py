"""From a job's submission to a warm, idle cluster until its first adapter step and its first image: which seconds are
Ray's, which the model's, and which ours?

    python -m benchmarks.start --rounds 3

Beside each job of ours runs a bare one in turn: Ray, Ray Train and Ray Data on the same nodes, whose workers import
and load the same model and then do nothing. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient

from benchmarks.compare import machine
from benchmarks.object_store import ObjectStore, object_store
from benchmarks.rehearsal import cluster, config, submit, write_photos
from datadream.run.layout import CONFIG, EVENTS, LOCK
from datadream.run.store import RunStore

CLASSES = 4
"""As many adapters and chunks as workers, of one step or image each."""
BARE = """
import json, time
moments = {"driver": time.time()}
import ray, ray.data, ray.train
from ray.train import ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
ray.init(log_to_driver=False, logging_level="ERROR")
moments["joined"] = time.time()

def load():
    import torch
    from datadream.models.diffusion.pipeline import load_pipeline
    torch.set_num_threads(1)
    load_pipeline("package://datadream.models.tiny/diffusion", None, torch.device("cpu"), torch.float32)

@ray.remote(num_cpus=0)
class First:
    def __init__(self):
        self.times = {}
    def tell(self, what):
        self.times.setdefault(what, time.time())
    def told(self):
        return self.times

first = First.remote()

def train(loop):
    ray.get(first.tell.remote("worker"))
    load()
    ray.get(first.tell.remote("worker loaded"))

class Sampler:
    def __init__(self):
        ray.get(first.tell.remote("sampler"))
        load()
        ray.get(first.tell.remote("sampler loaded"))
    def __call__(self, row):
        return row

DataParallelTrainer(train, train_loop_config={}, scaling_config=ScalingConfig(num_workers=WORKERS)).fit()
moments["generate"] = time.time()
rows = ray.data.from_items([{"x": x} for x in range(WORKERS)], override_num_blocks=WORKERS)
list(rows.map(Sampler, compute=ray.data.ActorPoolStrategy(size=WORKERS), num_cpus=1).iter_rows())
print("MOMENTS", json.dumps(moments | ray.get(first.told.remote())))
"""
"""Its `generate` is the end of Ray Train's run."""


def bare_job(jobs: JobSubmissionClient, folder: Path) -> dict[str, float]:
    """Seconds from the submission to each moment of the bare job."""
    script = folder / "bare.py"
    script.write_text(BARE.replace("WORKERS", str(CLASSES)))
    began = time.time()
    log = _done(jobs, submit(jobs, f"{sys.executable} {script}"))
    (line,) = [line for line in log.splitlines() if line.startswith("MOMENTS ")]
    moments = json.loads(line.removeprefix("MOMENTS "))
    return {name: moment - began for name, moment in moments.items()}


def our_job(jobs: JobSubmissionClient, store: ObjectStore, file: Path, number: int) -> dict[str, float]:
    """Seconds from the submission to each moment of a job of ours, by what came to the store."""
    run, began = f"run-{number}", time.time()
    command = f"{sys.executable} jobs/run.py --config {file} --run {store.url}/{run} --until generate"
    _done(jobs, submit(jobs, command))
    asked = [request for request in store.requests if request.time >= began]
    lines = RunStore(f"{store.url}/{run}").read_bytes(EVENTS).decode().splitlines()
    begun = {event["stage"]: event["time"] for event in map(json.loads, lines) if event["state"] == "begun"}
    moments = {
        "driver": next(request.time for request in asked if request.key.startswith(run)),
        "checked": min(store.written(f"{run}/{LOCK}").values()),
        "joined": min(store.written(f"{run}/{CONFIG}").values()),
        "adapt": begun["adapt"],
        "worker loaded": next(
            request.time for request in asked if request.key.startswith("photos/") and request.time > begun["adapt"]
        ),
        "first adapter": min(store.written(f"{run}/adapters/*/adapter.json").values()),
        "generate": begun["generate"],
        "first image": min(store.written(f"{run}/chunks/*.json").values()),
    }
    return {name: moment - began for name, moment in moments.items()}


def _done(jobs: JobSubmissionClient, job: str) -> str:
    """The log of a job that ends well."""
    while not jobs.get_job_status(job).is_terminal():
        time.sleep(0.5)
    log = jobs.get_job_logs(job)
    if jobs.get_job_status(job) != JobStatus.SUCCEEDED:
        raise RuntimeError(log)
    return log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[dict[str, float]]] = {"bare": [], "ours": []}
    with tempfile.TemporaryDirectory() as name, object_store() as store, cluster() as (_, jobs):
        folder = Path(name)
        write_photos(f"{store.url}/photos", CLASSES)
        knobs = config(f"{store.url}/photos")
        knobs["generate"] |= {"images_per_class": 1, "steps": 1}
        (folder / "config.yaml").write_text(json.dumps(knobs))  # JSON is YAML
        for number in range(1 + rounds):  # the first warms the cluster, and does not count
            taken["bare"].append(bare_job(jobs, folder))
            taken["ours"].append(our_job(jobs, store, folder / "config.yaml", number))
            print(json.dumps({arm: values[-1] for arm, values in taken.items()}), flush=True)
    medians: dict[str, Any] = {
        arm: {name: round(statistics.median(each[name] for each in values[1:]), 1) for name in values[0]}
        for arm, values in taken.items()
    }
    print(json.dumps({"benchmark": "start", "date": time.strftime("%Y-%m-%d"), "machine": machine()} | medians))


if __name__ == "__main__":
    main()
