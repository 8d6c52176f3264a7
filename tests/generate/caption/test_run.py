"""A whole run whose captions are written by a model, and the same run again."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from datadream import recipes
from datadream.experiment.experiment import Experiment
from tests.tiny_captioners import save_blip


@pytest.mark.soak
@pytest.mark.usefixtures("local_ray")
def test_images_are_generated_from_captions_of_other_shots(tmp_path):
    changes = {
        "data.captioner": str(save_blip(tmp_path / "blip")),
        "data.n_shots": 2,
        "generate.images_per_class": 2,
        "generate.steps": 2,
        "cluster.workers": 1,
    }
    config, run = recipes.digits(method="disef", **changes), tmp_path / "run"
    Experiment(config, str(run)).run(until="generate")
    captions = json.loads((run / "few_shot.json").read_text())["captions"]
    assert len(captions) == 20
    made = [
        json.loads(text)
        for shard in Path(run, "dataset").rglob("*.parquet")
        for text in pq.read_table(shard)["provenance"].to_pylist()
    ]
    shots = [entry["photos"] for entry in json.loads((run / "few_shot.json").read_text())["classes"]]
    expected = {(one, captions[other]) for one, other in shots} | {(other, captions[one]) for one, other in shots}
    assert {(image["source_key"], image["prompt"]) for image in made} == expected
    # The second start plans with what is recorded, and finds nothing to do.
    before = {path: path.stat().st_mtime_ns for path in (run / "dataset").rglob("*") if path.is_file()}
    again = Experiment(config, str(run))
    again.run(until="generate")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not again.cells[0].awaits_captions
