"""The published dataset through Ray Data: decoded, complete, and split the same way each time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest
from ray.data import DataContext, DataIterator

from datadream.classify.ingest.reader import check_labels, check_published, find_published
from datadream.classify.stage import open_rows
from datadream.run.layout import DATASET, SELECTION
from datadream.run.store import RunStore
from datadream.runtime.map_units import quiet_data
from tests.classify.colors import COLORS, publish

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_rows_are_decoded_squares(tmp_path, form):
    store = RunStore(str(tmp_path))
    publish(store, form)
    with quiet_data(in_order=True):
        published = find_published(store, size=8, order=0)
        rows = open_rows(published).take_all()
        part = find_published(store, size=8, order=0, images_per_class=7)
        first = open_rows(part).take_all()
    assert (published.n, published.n_bytes) == (60, 60 * 3 * 8 * 8)
    assert len({row["key"] for row in rows}) == 60
    assert {row["image"].shape for row in rows} == {(3, 8, 8)}
    assert {row["image"].dtype for row in rows} == {np.dtype(np.uint8)}
    assert {row["key"] for row in first} == {row["key"] for row in rows if int(row["key"].partition(".")[0][-3:]) < 7}
    assert part.n == len(first) == 21
    # A method of the user's may have planned fewer of a class than a run asks for.
    store.write_json(DATASET, store.read_json(DATASET) | {"counts": [20, 20, 5]})
    assert find_published(store, size=8, order=0, images_per_class=7).n == 19
    # Of images that were selected, those of lowest index, in whatever order they were judged; a class may have fewer.
    store.write_json(SELECTION, {"classes": [{"images": images} for images in ([9, 1, 4], [0, 2, 5], [19])]})
    with quiet_data(in_order=True):
        selected = open_rows(find_published(store, size=8, order=0, images_per_class=1)).take_all()
    indices = {(row["label"], int(row["key"].partition(".")[0][-3:])) for row in selected}
    assert indices >= {(0, 1), (1, 0), (2, 19)}
    assert {(label, index) for label, index in indices if label < 2} == {(0, 0), (0, 1), (1, 0)}
    # The classes are blue, green and red.
    assert all(row["image"].mean((1, 2)).argmax() == 2 - row["label"] for row in rows)


def test_two_readers_get_equal_splits_and_the_same_ones_again(tmp_path):
    store = RunStore(str(tmp_path))
    publish(store, shards=3)
    with quiet_data(in_order=True):
        first, again, later = (split_keys(store, order) for order in (0, 0, 1))
    assert first == again
    assert first != later, "what goes on begins elsewhere"
    assert [len(epoch) for reader in first for epoch in reader] == [30] * 4
    assert not set(first[0][0]) & set(first[1][0])


def split_keys(store: RunStore, order: int) -> list[list[list[str]]]:
    """Keys by reader and epoch, read side by side as training workers do."""
    readers = open_rows(find_published(store, size=8, order=order)).streaming_split(2, equal=True)
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda reader: list(islice(epochs(reader), 2)), readers))


def epochs(reader: DataIterator):
    while True:
        yield [key for batch in reader.iter_batches(batch_size=10, batch_format="numpy") for key in batch["key"]]


def test_what_was_set_in_ray_data_is_set_again():
    context = DataContext.get_current()
    before = context.copy()
    with quiet_data(in_order=True):
        assert context.execution_options.preserve_order
        assert not context.enable_progress_bars
    assert context.enable_progress_bars == before.enable_progress_bars
    assert context.use_datasource_v2 == before.use_datasource_v2
    assert context.execution_options.preserve_order == before.execution_options.preserve_order


def test_without_a_marker_there_is_no_dataset(tmp_path):
    with pytest.raises(ValueError, match="Run generate first"):
        check_published(RunStore(str(tmp_path)), tuple(COLORS))


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_what_is_published_is_checked_before_any_work(tmp_path, form):
    store = RunStore(str(tmp_path))
    publish(store, form, shards=3)
    check_published(store, tuple(COLORS))
    with pytest.raises(ValueError, match="class 1 is 'green' in the dataset, 'red' in the run.*run generate again"):
        check_published(store, ("blue", "red", "green"))
    marker = store.read_json("dataset/dataset.json")
    shard, size = marker["shards"][1], marker["n_bytes"][1]
    # Half of a tar begins as the whole does.
    half = store.read_bytes(f"dataset/{shard}")[: size // 2]
    store.write_bytes(f"dataset/{shard}", half)
    with pytest.raises(ValueError, match=f"shard 'dataset/{shard}' has {size // 2} bytes, but {size} were published"):
        check_published(store, tuple(COLORS))
    store.remove(f"dataset/{shard}")
    with pytest.raises(ValueError, match=f"shard 'dataset/{shard}' is missing"):
        check_published(store, tuple(COLORS))
    # As older versions published.
    del marker["n_bytes"]
    store.write_json("dataset/dataset.json", marker)
    with pytest.raises(ValueError, match=f"shard 'dataset/{shard}' cannot be read"):
        check_published(store, tuple(COLORS))
    store.write_bytes(f"dataset/{shard}", b"what a full disk left")
    with pytest.raises(ValueError, match=f"shard 'dataset/{shard}' cannot be read"):
        check_published(store, tuple(COLORS))


def test_shards_are_listed_once_whatever_their_number(monkeypatch):
    """On an object store, whose paths have a bucket."""
    store = RunStore("memory://listed/run")
    publish(store, "webdataset", shards=3)
    lists, real = [], store.fs.ls
    monkeypatch.setattr(store.fs, "ls", lambda path, **more: lists.append(path) or real(path, **more))
    check_published(store, tuple(COLORS))
    assert lists.count(store.path("dataset/data")) == 1


def test_labels_must_be_those_of_the_classes(tmp_path):
    names = tuple(COLORS)
    check_labels(np.array([0, 1, 2, 1]), names)
    with pytest.raises(ValueError, match="the dataset has label 3, but the run's classes are 0 to 2"):
        check_labels(np.array([0, 3, 1, 2]), names)
    with pytest.raises(ValueError, match=r"class 'green' has no image in the dataset \(1 such classes\)"):
        check_labels(np.array([0, 2]), names)
    store = RunStore(str(tmp_path))
    publish(store)
    marker = store.read_json("dataset/dataset.json")
    store.write_json("dataset/dataset.json", marker | {"class_names": [*names, "white"]})
    with pytest.raises(ValueError, match="class 'white' has no image"):
        check_published(store, (*names, "white"))
