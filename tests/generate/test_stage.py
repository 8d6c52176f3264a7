"""Drawing on real Ray: chunks that fail stop no others, and the next start draws them."""

import pytest

from datadream.data.shards import from_parquet
from datadream.generate.stage import FAILED_CHUNKS, draw_chunks
from datadream.hashing import sha256
from datadream.methods import METHODS
from datadream.methods.chunks import split_into_chunks
from datadream.run.layout import adapter_marker, adapter_weights, progress_file
from datadream.run.store import RunStore
from datadream.runtime.session import Workers
from tests.models.adapters import random_adapter

ONE = Workers(1, 1, False)


def test_chunks_that_fail_stop_no_others_and_are_drawn_by_the_next_start(
    local_ray, config, few_shot, pipeline_folder, tmp_path
):
    """Of three adapters one is missing and one is not what was written."""
    store = RunStore(str(tmp_path))
    weights = random_adapter(pipeline_folder, seed=1)
    for adapter_id, marked in (("class-00000", weights), ("class-00001", b"other")):
        store.write_bytes(adapter_weights(adapter_id), weights)
        store.write_json(adapter_marker(adapter_id), {"weights_sha256": sha256(marked)})
    chunks = split_into_chunks(store.url, METHODS["datadream-cls"](few_shot, config).images[:3], 4)
    with pytest.raises(RuntimeError, match="drawing 2 of 3 chunks of images failed") as failed:
        draw_chunks(store, chunks, config, ONE)
    assert "chunk 00001-000000: ValueError: adapter 'class-00001' is not what was written" in str(failed.value)
    assert "chunk 00002-000000: ValueError: adapter 'class-00002' is not trained" in str(failed.value)
    assert len(store.read_json(FAILED_CHUNKS)) == 2
    said = store.read_json(progress_file("generate"))
    assert (said["done"], said["numbers"]["failed"], said["numbers"]["retried"]) == (4, 2, 4)
    assert 0 < said["numbers"]["busy_percent"] <= 100
    assert ", chunks 3/3, busy percent " in said["text"]
    assert store.markers("chunks") == {"00000-000000"}
    told = from_parquet(store.read_bytes(chunks[0].file))[0].provenance
    assert told["adapters"] == [{"name": "class-00000", "weight": 1.0, "sha256": sha256(weights)}]
    for adapter_id in ("class-00001", "class-00002"):
        store.write_bytes(adapter_weights(adapter_id), weights)
        store.write_json(adapter_marker(adapter_id), {"weights_sha256": sha256(weights)})
    draw_chunks(store, chunks, config, ONE)
    assert len(store.markers("chunks")) == 3
    assert not store.exists(FAILED_CHUNKS)
