"""Generation on real Ray: what is committed is never drawn again, and the published bytes depend on the plan alone."""

import io
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from datadream import recipes
from datadream.cluster import Workers
from datadream.data.datasets import open_source
from datadream.data.few_shot import draw
from datadream.generate import publish as publishing
from datadream.generate.chunks import split_into_chunks
from datadream.generate.gate import open_gate
from datadream.generate.publish import publish_dataset
from datadream.generate.stream import FAILED_CHUNKS, draw_chunks
from datadream.methods import METHODS
from datadream.run_store import DATASET, RunStore, adapter_marker, adapter_weights, progress_file, sha256
from tests.models.adapters import random_adapter

ONE, TWO = Workers(1, 1, False), Workers(2, 1, False)


@pytest.fixture(scope="module")
def config(pipeline_folder):
    changes = {"diffusion.model": str(pipeline_folder), "generate.images_per_class": 4, "generate.steps": 2}
    return recipes.digits(method="is-synth", **changes | {"generate.chunk_size": 3, "generate.images_per_shard": 15})


@pytest.fixture(scope="module")
def few_shot(config):
    return draw(open_source("digits").dataset(), 2, 0, config.data.prompt)


def plan_chunks(store, few_shot, config):
    return split_into_chunks(store.url, METHODS[config.method](few_shot, config).images, config.generate.chunk_size)


def publish(store, few_shot, config, workers):
    chunks = plan_chunks(store, few_shot, config)
    draw_chunks(store, chunks, config, workers)
    publish_dataset(store, chunks, few_shot, config)
    return {name: store.read_bytes(f"dataset/{name}") for name in store.read_json(DATASET)["shards"]}


@pytest.fixture(scope="module")
def published(local_ray, config, few_shot, tmp_path_factory):
    store = RunStore(str(tmp_path_factory.mktemp("run")))
    return store, publish(store, few_shot, config, ONE)


def test_shards_are_even_and_hold_every_image_once(published):
    import pyarrow.parquet as pq

    _, files = published
    tables = [pq.read_table(io.BytesIO(data)).to_pylist() for data in files.values()]
    assert [len(rows) for rows in tables] == [14, 13, 13]
    rows = [row for rows in tables for row in rows]
    assert Counter(row["label"] for row in rows) == dict.fromkeys(range(10), 4)
    assert len({row["image"]["path"] for row in rows}) == 40
    assert len({row["label"] for row in tables[0]}) > 5


def test_many_images_are_published_without_reading_every_chunk_for_every_shard(config, few_shot, monkeypatch):
    """400 images in 140 chunks and 27 shards; windows of 60 images, so of 4 shards."""
    monkeypatch.setattr(publishing, "WINDOW_IMAGES", 60)
    config = config.updated({"generate.images_per_class": 40})
    chunks = split_into_chunks("run", METHODS[config.method](few_shot, config).images, 3)
    windows = publishing._plan_windows(chunks, config)
    assert windows == publishing._plan_windows(chunks, config)
    shards = [shard for window in windows for shard in window.shards]
    members = [member for shard in shards for member in shard.members]
    assert sorted(members) == sorted((chunk.file, row) for chunk in chunks for row in range(len(chunk.requests)))
    assert {len(shard.members) for shard in shards} == {14, 15}
    reads = Counter(file for window in windows for file in window.files)
    assert max(reads.values()) <= 2
    assert sum(reads.values()) < 1.1 * len(chunks)
    classes = [len({file.split("/")[1][:5] for file in window.files}) for window in windows]
    assert min(classes[:-1]) >= 7


def copy_chunks(source: RunStore, store: RunStore, chunks) -> None:
    for chunk in chunks:
        for name in (chunk.file, chunk.marker):
            store.write_bytes(name, source.read_bytes(name))


def test_two_workers_and_an_interrupted_start_give_the_same_bytes(published, config, few_shot, tmp_path):
    source, expected = published
    store = RunStore(str(tmp_path))
    copy_chunks(source, store, plan_chunks(store, few_shot, config)[::3])
    before = {name: os.stat(store.path(f"chunks/{name}.json")).st_mtime_ns for name in store.markers("chunks")}
    assert publish(store, few_shot, config, TWO) == expected
    assert all(os.stat(store.path(f"chunks/{name}.json")).st_mtime_ns == time for name, time in before.items())


def test_the_dataset_folder_loads_with_datasets(published, tmp_path):
    datasets = pytest.importorskip("datasets")
    store, _ = published
    loaded = datasets.load_dataset(store.path("dataset"), split="train", cache_dir=str(tmp_path))
    assert len(loaded) == 40
    assert loaded.features["label"].names[7] == "digit seven"
    assert loaded[0]["image"].size == (32, 32)


def test_webdataset_shards(published, config, few_shot, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    store = RunStore(str(tmp_path))
    copy_chunks(published[0], store, plan_chunks(store, few_shot, config))
    files = publish(store, few_shot, config.updated({"generate.dataset_format": "webdataset"}), TWO)
    paths = [store.path(f"dataset/{name}") for name in files]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode("pil"))
    assert Counter(sample["cls"] for sample in samples) == dict.fromkeys(range(10), 4)
    assert samples[0]["webp"].size == (32, 32)
    assert samples[0]["json"]["strength"] == 0.75


def test_chunks_that_fail_stop_no_others_and_are_drawn_by_the_next_start(
    local_ray, config, few_shot, pipeline_folder, tmp_path
):
    """Of three adapters one is missing and one is not what was written."""
    store = RunStore(str(tmp_path))
    weights = random_adapter(pipeline_folder, seed=1)
    for adapter_id, marked in (("class-00000", weights), ("class-00001", b"other")):
        store.write_bytes(adapter_weights(adapter_id), weights)
        store.write_json(adapter_marker(adapter_id), {"weights_sha256": sha256(marked)})
    chunks = split_into_chunks(store.url, METHODS["datadream-cls"](few_shot, config).images[:12], 4)
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
    for adapter_id in ("class-00001", "class-00002"):
        store.write_bytes(adapter_weights(adapter_id), weights)
        store.write_json(adapter_marker(adapter_id), {"weights_sha256": sha256(weights)})
    draw_chunks(store, chunks, config, ONE)
    assert len(store.markers("chunks")) == 3
    assert not store.exists(FAILED_CHUNKS)


def test_chunks_are_drawn_as_their_adapters_come_and_fail_when_none_come_any_more(
    local_ray, config, few_shot, pipeline_folder, tmp_path
):
    store = RunStore(str(tmp_path))
    chunks = split_into_chunks(store.url, METHODS["datadream-cls"](few_shot, config).images[:8], 4)
    gate = open_gate()
    with ThreadPoolExecutor(1) as threads:
        drawing = threads.submit(draw_chunks, store, chunks, config, ONE, gate)
        weights = random_adapter(pipeline_folder, seed=1)
        store.write_bytes(adapter_weights("class-00000"), weights)
        store.write_json(adapter_marker("class-00000"), {"weights_sha256": sha256(weights)})
        while not store.markers("chunks"):
            assert not drawing.done()
            time.sleep(0.1)
        assert store.markers("chunks") == {"00000-000000"}
        gate.close.remote()
        with pytest.raises(RuntimeError, match="chunk 00001-000000: ValueError: adapter 'class-00001' is not trained"):
            drawing.result()
