"""Workers and a node die and a node joins: every adapter is there once, and as if nothing had happened."""

import json
import subprocess
import sys

import pytest
import torch

from datadream.adapt.lora_trainer import AdapterTrainer
from datadream.data.datasets import open_source
from datadream.models.diffusion.pipeline import load_pipeline
from datadream.run.layout import adapter_weights
from datadream.run.store import RunStore
from tests.adapt import chaos

WATCHDOG_SECONDS = 200


@pytest.mark.soak
@pytest.mark.timeout(WATCHDOG_SECONDS + 60)
def test_whatever_dies_the_adapters_are_those_of_an_undisturbed_run(pipeline_folder, tmp_path):
    store = RunStore(str(tmp_path))
    command = [sys.executable, "-m", "tests.adapt.chaos", str(pipeline_folder), store.root, "0"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG_SECONDS, check=True)
    # Ray may print after it.
    told = json.loads(next(line for line in process.stdout.splitlines() if line.startswith('{"failed"')))
    settings = chaos.config(str(pipeline_folder))
    specs = [job.spec for job in chaos.jobs(store, settings)]
    assert told["failed"] == []
    assert told["undisturbed"]
    assert told["nodes"] == 5
    assert told["committed"] == [spec.adapter_id for spec in specs]
    pipeline = load_pipeline(str(pipeline_folder), None, torch.device("cpu"), torch.float32)
    alone = AdapterTrainer(pipeline, settings.adapt, settings.diffusion.resolution)
    source = open_source("digits")
    for spec in specs:
        (trained,) = alone.train([spec], [[source.read(photo.key) for photo in spec.photos]])
        assert store.read_bytes(adapter_weights(spec.adapter_id)) == trained.weights
