"""The published bytes depend on the plan alone, and other people's readers read them."""

import io
import os
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray.data
from PIL import Image

from datadream.generate import publish as publishing
from datadream.generate import stage
from datadream.generate.stage import chunk_units, generate_chunks, publish_dataset
from datadream.methods import METHODS
from datadream.methods.chunks import split_into_chunks
from datadream.run.cell import Cell
from datadream.run.layout import DATASET, WINDOWS, DatasetMarker
from datadream.run.store import RunStore
from datadream.runtime.map_units import Mapped
from datadream.runtime.workers import Workers

datasets = pytest.importorskip("datasets")
webdataset = pytest.importorskip("webdataset")
ONE, TWO = Workers(1, 1, False), Workers(2, 1, False)


def cell_in(folder, config) -> Cell:
    return Cell(config, RunStore(str(folder)))


def publish(cell, workers):
    generate_chunks(cell.store, chunk_units(cell.chunks), cell.config, workers)
    publish_dataset(cell)
    return {name: cell.store.read_bytes(f"dataset/{name}") for name in cell.store.read_json(DATASET)["shards"]}


@pytest.fixture(scope="module")
def published(local_ray, config, tmp_path_factory):
    cell = cell_in(tmp_path_factory.mktemp("run"), config)
    return cell.store, publish(cell, ONE)


def test_shards_are_even_and_hold_every_image_once(published):
    store, files = published
    assert store.read_json(DATASET)["n_bytes"] == [len(files[name]) for name in store.read_json(DATASET)["shards"]]
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
    windows = publishing.plan_windows(chunks, config)
    assert windows == publishing.plan_windows(chunks, config)
    shards = [shard for window in windows for shard in window.shards]
    members = [member for shard in shards for member in shard.members]
    assert sorted(members) == sorted((chunk.file, row) for chunk in chunks for row in range(len(chunk.requests)))
    assert {len(shard.members) for shard in shards} == {14, 15}
    reads = Counter(file for window in windows for file in window.images_of_files)
    assert max(reads.values()) <= 2
    assert sum(reads.values()) < 1.1 * len(chunks)
    classes = [len({file.split("/")[1][:5] for file in window.images_of_files}) for window in windows]
    assert min(classes[:-1]) >= 7


def copy_chunks(source: RunStore, store: RunStore, chunks) -> None:
    for chunk in chunks:
        for name in (chunk.file, chunk.marker):
            store.write_bytes(name, source.read_bytes(name))


@pytest.mark.slow
def test_two_workers_and_an_interrupted_start_give_the_same_bytes(published, config, tmp_path):
    source, expected = published
    cell = cell_in(tmp_path, config)
    store = cell.store
    copy_chunks(source, store, cell.chunks[::3])
    before = {name: os.stat(store.path(f"chunks/{name}.json")).st_mtime_ns for name in store.markers("chunks")}
    assert publish(cell, TWO) == expected
    assert all(os.stat(store.path(f"chunks/{name}.json")).st_mtime_ns == time for name, time in before.items())


@pytest.fixture
def in_windows(published, config, tmp_path, monkeypatch):
    """The images published in three windows of one shard each, which makes other shards of them."""
    monkeypatch.setattr(publishing, "WINDOW_IMAGES", 15)
    cell = cell_in(tmp_path / "undisturbed", config)
    copy_chunks(published[0], cell.store, cell.chunks)
    return cell.store, publish(cell, ONE)


class Killed:
    """A listener that ends the driver when the last window is written: KeyboardInterrupt is not muted."""

    def hear(self, progress):
        if progress.done == progress.total:
            raise KeyboardInterrupt


def write_windows_alone(source, cell) -> list[str]:
    """What a start leaves that is killed before dataset.json is committed; returns the markers of its windows."""
    copy_chunks(source, cell.store, cell.chunks)
    with pytest.raises(KeyboardInterrupt):
        publish_dataset(cell, [Killed()])
    assert not cell.store.exists(DATASET)
    return sorted(cell.store.files(WINDOWS))


def test_a_killed_start_goes_on_with_the_windows_that_are_missing(in_windows, config, tmp_path):
    source, expected = in_windows
    cell = cell_in(tmp_path / "killed", config)
    store = cell.store
    markers = write_windows_alone(source, cell)
    assert len(markers) == 3
    (lost,) = (record["name"] for record in store.read_json(markers[1]))
    store.remove(markers[1])

    def written() -> dict[str, int]:
        return {name: os.stat(store.path(f"dataset/{name}")).st_mtime_ns for name in expected}

    before = written()
    assert publish(cell, ONE) == expected
    assert [name for name, time in written().items() if time != before[name]] == [lost]
    assert store.files("dataset") == source.files("dataset")
    assert store.read_bytes("dataset/README.md") == source.read_bytes("dataset/README.md")
    marker = store.read_json(DATASET)
    assert marker == source.read_json(DATASET)
    assert list(DatasetMarker.from_json(marker).to_json().items()) == list(marker.items())
    assert not store.files(WINDOWS)


def test_shards_that_were_removed_are_written_again(in_windows, config, tmp_path):
    """Whoever removes dataset/ of a killed start removes no markers of windows."""
    source, expected = in_windows
    cell = cell_in(tmp_path / "killed", config)
    write_windows_alone(source, cell)
    cell.store.fs.rm(cell.store.path("dataset"), recursive=True)
    assert publish(cell, ONE) == expected


def test_a_chunk_that_is_gone_is_named_and_stops_no_other_windows(in_windows, config, tmp_path):
    source, expected = in_windows
    cell = cell_in(tmp_path / "other", config)
    store = cell.store
    copy_chunks(source, store, cell.chunks)
    windows = publishing.plan_windows(cell.chunks, config)
    gone = next(f for f in windows[0].images_of_files if not any(f in w.images_of_files for w in windows[1:]))
    store.remove(gone)
    with pytest.raises(RuntimeError, match=r"publishing 1 of 3 windows of shards failed:\s+window 0: .*parquet"):
        publish_dataset(cell)
    assert len(store.files(WINDOWS)) == 2
    store.write_bytes(gone, source.read_bytes(gone))
    assert publish(cell, ONE) == expected


def test_ray_is_asked_for_the_memory_of_a_window(published, config, tmp_path, monkeypatch):
    """What run_mapped does with it is tests/runtime/test_map_units.py's."""
    asked: list[Mapped] = []
    run_mapped = stage.run_mapped

    def listening(store, units, how, *others):
        asked.append(how)
        return run_mapped(store, units, how, *others)

    cell = cell_in(tmp_path, config)
    copy_chunks(published[0], cell.store, cell.chunks)
    monkeypatch.setattr(stage, "run_mapped", listening)
    publish_dataset(cell)
    images = sum(len(cell.store.read_bytes(chunk.file)) for chunk in cell.chunks)
    assert 2 * images < asked[0].bytes_each - publishing.POOLS < 5 * images


def test_a_window_of_few_images_of_many_chunks_needs_little_memory():
    """Filters left one image of ten in every chunk."""
    members = tuple((f"chunks/{number}.parquet", 3) for number in range(100))
    shards = tuple(publishing.Shard(f"{n}.parquet", members[n * 20 : n * 20 + 20], ()) for n in range(5))
    sizes = {file: 10_000_000 for file, _ in members}
    needed = publishing.window_memory(publishing.Window(shards), sizes, dict.fromkeys(sizes, 10))
    assert needed == publishing.POOLS + 100 * 1_000_000 + publishing.COPIES_WHILE_WRITING * 20 * 1_000_000


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture(scope="module")
def images(published):
    """Pixels and label of every image, by its name, as pyarrow reads them."""
    rows = [row for data in published[1].values() for row in pq.read_table(io.BytesIO(data)).to_pylist()]
    return {row["image"]["path"]: (decoded(row["image"]["bytes"]), row["label"]) for row in rows}


def check_same(found, images) -> None:
    """`found`: name, pixels and label of every image, in any order."""
    found = list(found)
    assert len(found) == len(images) == 40
    for name, pixels, label in found:
        np.testing.assert_array_equal(pixels, images[name][0])
        assert label == images[name][1] == int(name[:5])


def test_others_read_the_parquet_folder(published, images, tmp_path):
    store, _ = published
    folder = store.path("dataset")
    for source in ({"path": folder}, {"path": "parquet", "data_dir": folder}):
        loaded = datasets.load_dataset(**source, split="train", cache_dir=str(tmp_path))
        assert loaded.features["label"].names[7] == "digit seven"
        encoded = loaded.cast_column("image", datasets.Image(decode=False))
        names = [row["image"]["path"] for row in encoded]
        check_same(zip(names, (np.asarray(row["image"]) for row in loaded), loaded["label"], strict=True), images)
    rows = ray.data.read_parquet(folder + "/data").take_all()
    check_same(((r["image"]["path"], decoded(r["image"]["bytes"]), r["label"]) for r in rows), images)


def test_others_read_the_webdataset_folder(published, images, config, few_shot, tmp_path):
    cell = cell_in(tmp_path / "run", config.updated({"generate.dataset_format": "webdataset"}))
    copy_chunks(published[0], cell.store, cell.chunks)
    files = publish(cell, TWO)
    assert list(files) == ["data/000000.tar", "data/000001.tar", "data/000002.tar"]
    folder = cell.store.path("dataset")
    paths = [f"{folder}/{name}" for name in files]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode("rgb8"))
    check_same(((f"{s['__key__']}.webp", s["webp"], s["cls"]) for s in samples), images)
    for source in ({"path": folder}, {"path": "webdataset", "data_files": paths}):
        loaded = datasets.load_dataset(**source, split="train", cache_dir=str(tmp_path / "cache"))
        check_same(((f"{r['__key__']}.webp", np.asarray(r["webp"]), r["cls"]) for r in loaded), images)
    rows = ray.data.read_webdataset(paths).take_all()  # its decoder knows no WebP
    check_same(((f"{r['__key__']}.webp", decoded(r["webp"]), r["cls"]) for r in rows), images)
    told = samples[0]["json"]
    label = samples[0]["cls"]
    # The folder's name alone: where a model lies on somebody's disk is not to be published.
    assert (told["model"], told["steps"]) == (os.path.basename(config.diffusion.model), config.generate.steps)
    assert told["scheduler"] == config.generate.scheduler
    assert (told["class_name"], told["prompt"]) == (few_shot.class_names[label], few_shot.prompts[label])
    assert told["source_key"] in few_shot.shots[label]
