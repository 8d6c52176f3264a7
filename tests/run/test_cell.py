"""One run: its shots are sampled once and then read; a part of a curve plans no images of its own."""

from dataclasses import replace

import pytest

from datadream import recipes
from datadream.config import DataConfig
from datadream.data import datasets
from datadream.run import cell as cell_module
from datadream.run.cell import Cell, cells_of
from datadream.run.layout import FEW_SHOT
from datadream.run.store import RunStore


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(str(tmp_path / "run"))


def test_making_cells_and_asking_for_shots_writes_nothing(store):
    (cell,) = cells_of(recipes.digits(), store)
    assert cell.few_shot.n_shots == 4
    assert cell.images is cell.store
    assert not store.exists("")


def test_shots_that_were_recorded_are_taken_whatever_the_source_holds_now(store, monkeypatch):
    """Somebody may add a photo between two starts."""
    recorded = replace(Cell(recipes.digits(), store).few_shot, class_names=("a",), shots=(("x",),), prompts=("p",))
    store.write_json(FEW_SHOT, recorded.to_json())

    def fail(config: DataConfig) -> datasets.Dataset:
        raise AssertionError(f"{config.source} was opened")

    monkeypatch.setattr(cell_module, "open_dataset", fail)
    assert Cell(recipes.digits(), store).few_shot == recorded


def test_a_plan_is_made_and_hashed_once(store, monkeypatch):
    calls = []

    def count(chunks, config) -> str:
        calls.append(len(chunks))
        return "hash"

    monkeypatch.setattr(cell_module, "plan_hash", count)
    cell = Cell(recipes.digits(), store)
    assert [cell.plan_hash, cell.plan_hash] == ["hash"] * 2
    assert calls == [40]
    assert cell.chunks is cell.chunks
    assert cell.plan is cell.plan


def test_the_cells_of_a_curve_share_the_images_of_the_largest(store):
    changes = {"grid.images_per_class": [2, 3], "grid.methods": ["zero-shot"], "generate.chunk_size": 1}
    settings = {"classify.settings": ["real", "synthetic"]}
    none, whole, part = cells_of(recipes.digits(**changes | settings), store)
    assert [cell.store.name for cell in (none, whole, part)] == [
        "none-k4-seed0",
        "zero-shot-k4-seed0",
        "zero-shot-k4-seed0-images2",
    ]
    assert whole.store.url == store.child("cells/zero-shot-k4-seed0").url
    assert part.images is whole.images is whole.store
    assert (len(whole.chunks), len(part.chunks), len(none.chunks)) == (30, 0, 0)
    assert part.few_shot == whole.few_shot
