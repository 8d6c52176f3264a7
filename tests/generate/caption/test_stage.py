"""Captions are written once for all runs of a table, and plans are made with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datadream import recipes
from datadream.config import ExperimentConfig
from datadream.data.datasets import open_source
from datadream.generate.caption.stage import caption_shots
from datadream.models.captioner import Captioner
from datadream.run.cell import Cell, cells_of
from datadream.run.store import RunStore
from datadream.runtime.workers import Workers
from tests.tiny_captioners import save_blip

WORKERS = Workers(count=1, threads=1, use_gpu=False)


def generating(config: ExperimentConfig, store: RunStore) -> list[Cell]:
    """The table's runs but for the baselines', which need no captions."""
    return [cell for cell in cells_of(config, store) if cell.awaits_captions]


@pytest.mark.usefixtures("local_ray")
def test_shots_are_captioned_once_for_all_runs_of_a_table(tmp_path):
    folder = save_blip(tmp_path / "blip")
    knobs = {"data.captioner": str(folder), "data.n_shots": 1, "generate.images_per_class": 2}
    config = recipes.digits(**knobs, method="disef", grid={"n_shots": [1, 2]})
    store = RunStore(str(tmp_path / "run"))
    one, two = generating(config, store)
    before = one.plan_hash
    counts = len(one.chunks), len(two.chunks)
    caption_shots(store, [one, two], config, WORKERS)
    records = {path: path.stat().st_mtime_ns for path in Path(store.path("captions")).iterdir()}
    assert len(records) == 20
    captioner, source = Captioner(str(folder), torch.device("cpu")), open_source("digits")
    for cell in (one, two):
        assert not cell.awaits_captions
        assert cell.few_shot.captions.keys() == {photo.key for photo in cell.few_shot.photos}
    key = one.few_shot.shots[3][0]
    expected = captioner.caption(source.read(key), "digit three")
    assert one.few_shot.captions[key] == two.few_shot.captions[key] == expected
    assert {request.prompt for request in one.plan.images[3]} == {expected}
    assert one.plan_hash != before
    assert (len(one.chunks), len(two.chunks)) == counts
    # What is there is not written again: a start that was killed goes on.
    caption_shots(store, generating(config, store), config, WORKERS)
    assert {path: path.stat().st_mtime_ns for path in records} == records
