"""What an adapter leaves behind, and that damage to it is found."""

import io

import pyarrow.parquet as pq
import pytest

from datadream import recipes
from datadream.adapt.artifacts import are_committed, commit_adapter, write_index
from datadream.adapt.lora_trainer import TrainedAdapter
from datadream.adapt.stage import AdapterUnit, adapter_units
from datadream.config import ExperimentConfig
from datadream.methods.base import AdapterSpec, TrainingPhoto
from datadream.run.layout import AdapterMarker, adapter_weights
from datadream.run.store import RunStore

LOSSES = [0.5 / (1 + step) for step in range(25)]


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path) -> RunStore:
    return RunStore(str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}")


@pytest.fixture
def units(store) -> list[AdapterUnit]:
    photos = (TrainingPhoto("0.png", "a photo of a cat"), TrainingPhoto("1.png", "a photo of a cat"))
    config = recipes.digits()
    specs = [AdapterSpec(name, photos, 1, 0) for name in ("a", "b")]
    for spec in specs:
        trained = TrainedAdapter(spec.adapter_id.encode(), LOSSES, 2, 1.5, {"kohya.safetensors": b"k"})
        commit_adapter(store, spec, trained, config)
    return adapter_units(store.url, specs, config.adapt)


def test_the_loss_of_every_step_is_a_parquet_row(store, units):
    table = pq.read_table(io.BytesIO(store.read_bytes("adapters/a/losses.parquet"))).to_pydict()
    assert table["step"] == list(range(1, 26))
    assert table["loss"] == pytest.approx(LOSSES)
    assert set(table["adapter_id"]) == {"a"}
    means = [sum(LOSSES[:10]) / 10, sum(LOSSES[10:20]) / 10, sum(LOSSES[20:]) / 5]
    curve = [[step, pytest.approx(mean)] for step, mean in zip((10, 20, 25), means, strict=True)]
    assert store.read_json(units[0].marker)["losses"] == curve
    assert store.read_bytes("adapters/a/kohya.safetensors") == b"k"


def test_an_adapter_of_an_earlier_version_keeps_its_hash(store, units):
    """Of what made it: `c8a566...` of the digits' 150 steps is from before there was a step law to choose."""
    spec, photos = units[0].payload, len(units[0].payload.photos)
    assert AdapterMarker.from_json(store.read_json(units[0].marker)).spec_sha256.startswith("c8a5664062df0badc559")
    hashes = {}
    for law in ("crops", "batches"):
        config = ExperimentConfig().updated({"adapt.step_law": law})
        commit_adapter(store, spec, TrainedAdapter(b"a", LOSSES, photos, 1.5, {}), config)
        hashes[law] = AdapterMarker.from_json(store.read_json(units[0].marker)).spec_sha256
    assert hashes["crops"].startswith("ab1029b2e99751a36235")
    assert hashes["batches"] != hashes["crops"]


def test_the_index_lists_every_adapter(store, units):
    write_index(units)
    first, second = store.read_json("adapters/index.json")
    assert (first["adapter_id"], second["adapter_id"]) == ("a", "b")
    assert store.read_bytes(first["file"]) == b"a"
    assert first["prompts"] == ["a photo of a cat"]
    assert (first["n_photos"], first["steps"]) == (2, 25)


def test_weights_that_changed_are_set_aside(store, units, caplog):
    assert are_committed(units) == [True, True]
    store.write_bytes(adapter_weights("a"), b"damaged")
    assert are_committed(units) == [False, True]
    assert "'a' are not what was written: set aside" in caplog.text
    assert not store.exists(units[0].marker)
    assert not store.exists(adapter_weights("a"))
    names = {path.rsplit("/", 1)[1] for path in store.fs.ls(store.path("adapters/a"), detail=False)}
    assert any(name.startswith("corrupt-") for name in names)


def test_weights_that_are_gone_count_as_missing(store, units, caplog):
    store.remove(adapter_weights("b"))
    assert are_committed(units) == [True, False]
    assert "'b' are gone" in caplog.text
