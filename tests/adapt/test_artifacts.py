"""What an adapter leaves behind, and that damage to it is found."""

import io

import pyarrow.parquet as pq
import pytest

from datadream import recipes
from datadream.adapt.artifacts import are_committed, commit_adapter, write_index
from datadream.adapt.lora_trainer import TrainedAdapter
from datadream.methods.base import AdapterSpec, TrainingPhoto
from datadream.run.layout import adapter_weights
from datadream.run.store import RunStore
from datadream.runtime.work_queue import AdapterJob

LOSSES = [0.5 / (1 + step) for step in range(25)]


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path) -> RunStore:
    return RunStore(str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}")


@pytest.fixture
def jobs(store) -> list[AdapterJob]:
    photos = (TrainingPhoto("0.png", "a photo of a cat"), TrainingPhoto("1.png", "a photo of a cat"))
    made = [AdapterJob(store.url, AdapterSpec(name, photos, 1, 0), len(LOSSES)) for name in ("a", "b")]
    for job in made:
        trained = TrainedAdapter(job.spec.adapter_id.encode(), LOSSES, 2, 1.5, {"kohya.safetensors": b"k"})
        commit_adapter(job, trained, recipes.digits())
    return made


def test_the_loss_of_every_step_is_a_parquet_row(store, jobs):
    table = pq.read_table(io.BytesIO(store.read_bytes("adapters/a/losses.parquet"))).to_pydict()
    assert table["step"] == list(range(1, 26))
    assert table["loss"] == pytest.approx(LOSSES)
    assert set(table["adapter_id"]) == {"a"}
    assert [step for step, _ in store.read_json(jobs[0].marker)["losses"]] == [10, 20, 25]
    assert store.read_bytes("adapters/a/kohya.safetensors") == b"k"


def test_the_index_lists_every_adapter(store, jobs):
    write_index(jobs)
    first, second = store.read_json("adapters/index.json")
    assert (first["adapter_id"], second["adapter_id"]) == ("a", "b")
    assert store.read_bytes(first["file"]) == b"a"
    assert first["prompts"] == ["a photo of a cat"]
    assert (first["n_photos"], first["steps"]) == (2, 25)


def test_weights_that_changed_are_set_aside(store, jobs, caplog):
    assert are_committed(jobs) == [True, True]
    store.write_bytes(adapter_weights("a"), b"damaged")
    assert are_committed(jobs) == [False, True]
    assert "'a' are not what was written: set aside" in caplog.text
    assert not store.exists(jobs[0].marker)
    assert not store.exists(adapter_weights("a"))
    names = {path.rsplit("/", 1)[1] for path in store.fs.ls(store.path("adapters/a"), detail=False)}
    assert any(name.startswith("corrupt-") for name in names)


def test_weights_that_are_gone_count_as_missing(store, jobs, caplog):
    store.remove(adapter_weights("b"))
    assert are_committed(jobs) == [True, False]
    assert "'b' are gone" in caplog.text
