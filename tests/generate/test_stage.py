"""Generating on real Ray: chunks that fail stop no others, and the next start generates them."""

import pytest

from datadream.data.shards import from_parquet
from datadream.generate.stage import chunk_units, generate_chunks
from datadream.hashing import sha256
from datadream.methods import METHODS
from datadream.methods.chunks import split_into_chunks
from datadream.run.layout import FAILED_CHUNKS, adapter_marker, adapter_weights
from datadream.run.store import RunStore
from datadream.runtime.failures import GIVE_UP_AFTER
from datadream.runtime.unit import pending, ready
from datadream.runtime.workers import Workers
from tests.generate.listening import Heard
from tests.models.adapters import random_adapter

ONE = Workers(1, 1, False)


@pytest.fixture(scope="module")
def adapter(pipeline_folder) -> bytes:
    return random_adapter(pipeline_folder, seed=1)


def commit_adapter(store: RunStore, label: int, weights: bytes, marked: bytes | None = None) -> None:
    """An adapter whose marker tells of other weights, if there are others."""
    store.write_bytes(adapter_weights(f"class-{label:05d}"), weights)
    store.write_json(adapter_marker(f"class-{label:05d}"), {"weights_sha256": sha256(marked or weights)})


def chunks_of(store, few_shot, config, n):
    """One chunk of each of the first classes."""
    return split_into_chunks(store.url, METHODS["datadream-cls"](few_shot, config).images, 4)[:n]


def test_chunks_whose_adapters_are_broken_are_named_at_once_and_stop_no_others(
    local_ray, config, few_shot, adapter, tmp_path, caplog
):
    """Of three adapters one is not trained and one is not what was written."""
    store, heard = RunStore(str(tmp_path)), Heard()
    commit_adapter(store, 0, adapter)
    commit_adapter(store, 1, adapter, marked=b"other")
    chunks = chunks_of(store, few_shot, config, 3)
    with pytest.raises(RuntimeError, match="generating 2 of 3 chunks of images failed") as failed:
        generate_chunks(store, chunk_units(chunks), config, ONE, [heard], {"kept": 7})
    assert "chunk 00001-000000: adapter 'class-00001' is not what was written" in str(failed.value)
    assert "chunk 00002-000000: adapter 'class-00002' is not trained" in str(failed.value)
    assert "attempts" not in str(failed.value)
    assert len(store.read_json(FAILED_CHUNKS)) == 2
    assert store.markers("chunks") == {"00000-000000"}
    told = from_parquet(store.read_bytes(chunks[0].file))[0].provenance
    assert told["adapters"] == [{"name": "class-00000", "weight": 1.0, "sha256": sha256(adapter)}]
    assert (told["resolution"], told["precision"], told["scheduler"]) == (32, "fp32", "DPMSolverMultistepScheduler")

    assert "waiting for 1 samplers to start" in heard[0].text
    last = heard[-1]
    assert (last.stage, last.noun, last.done, last.total, last.ended) == ("generate", "image", 4, 12, True)
    assert (last.numbers["failed"], last.numbers["kept"]) == (2, 7)
    assert 0 < last.numbers["busy_percent"] <= 100
    assert ", chunks 3/3, busy percent " in last.text

    for label in (1, 2):
        commit_adapter(store, label, adapter)
    generate_chunks(store, chunk_units(chunks), config, ONE)
    assert len(store.markers("chunks")) == 3
    assert not store.exists(FAILED_CHUNKS)


@pytest.mark.slow
def test_a_file_that_is_not_there_may_be_there_for_others(local_ray, config, few_shot, adapter, tmp_path):
    """A trained adapter without its weights is what a worker sees whose node does not see all of the run."""
    store = RunStore(str(tmp_path))
    commit_adapter(store, 0, adapter)
    commit_adapter(store, 1, adapter)
    store.remove(adapter_weights("class-00001"))
    units = chunk_units(chunks_of(store, few_shot, config, 2))
    with pytest.raises(RuntimeError, match=f"chunk 00001-000000: given up after {GIVE_UP_AFTER} attempts: FileNotFo"):
        generate_chunks(store, units, config, ONE)
    assert [unit.name for unit in pending(units)] == ["chunk 00001-000000"]


def test_a_chunk_can_start_when_its_adapters_are_trained(config, few_shot, tmp_path):
    store = RunStore(str(tmp_path))
    units = chunk_units(chunks_of(store, few_shot, config, 3))
    assert [unit.size for unit in units] == [4, 4, 4]
    commit_adapter(store, 1, b"weights")
    assert [unit.name for unit in ready(units)] == ["chunk 00001-000000"]
