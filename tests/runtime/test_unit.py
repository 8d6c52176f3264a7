"""Which units are done, found by one listing of each folder, however many units there are."""

from collections import Counter

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from datadream.run.store import RunStore
from datadream.runtime.unit import Unit, checkpoint_state, pending, ready, titles


@pytest.fixture
def asked(monkeypatch) -> Counter[str]:
    """How often the file system was asked what."""
    calls: Counter[str] = Counter()

    def counted(name: str):
        original = getattr(MemoryFileSystem, name)

        def call(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        return call

    for name in ("find", "exists", "cat_file", "glob"):
        monkeypatch.setattr(MemoryFileSystem, name, counted(name))
    return calls


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(f"memory://{tmp_path.name}/run")


def unit(store: RunStore, name: str, **changes) -> Unit[None]:
    return Unit(run_url=store.url, name=name, marker=f"adapters/{name}/adapter.json", payload=None, **changes)


def test_a_thousand_units_in_two_folders_take_two_listings(store, asked):
    adapters = [unit(store, f"class-{label:05d}") for label in range(1000)]
    chunks = [
        Unit(run_url=store.url, name=str(label), marker=f"chunks/{label}.json", payload=None, needs=(each.marker,))
        for label, each in enumerate(adapters)
    ]
    for done in (adapters[3], adapters[7], chunks[7]):
        store.write_json(done.marker, {})
    asked.clear()
    assert len(pending([*adapters, *chunks])) == 1997
    assert asked == {"find": 2}
    asked.clear()
    assert ready(chunks) == [chunks[3]]
    assert asked == {"find": 2}


def test_units_of_equal_names_in_two_runs_are_two_units(store):
    """Every run of a table may have an adapter called `dataset`."""
    one, two = (unit(store.child(name), "dataset") for name in ("one", "two"))
    store.child("one").write_json(one.marker, {})
    assert pending([one, two]) == [two]
    assert one.key != two.key
    assert list(titles([one, two]).values()) == ["one/dataset", "two/dataset"]
    assert list(titles([one]).values()) == ["dataset"]


def test_a_unit_is_ready_when_all_that_it_needs_is_there(store):
    needy = unit(store, "c", needs=("adapters/a/adapter.json", "stages/b.json"))
    free = unit(store, "d")
    assert ready([needy, free]) == [free]
    store.write_json("stages/b.json", {})
    assert ready([needy, free]) == [free]
    store.write_json("adapters/a/adapter.json", {})
    assert ready([needy, free]) == [needy, free]
    store.write_json(needy.marker, {})
    assert ready([needy, free]) == [free]


def test_nothing_is_asked_where_there_are_no_units(asked):
    assert pending([]) == ready([]) == []
    assert not asked


def test_the_checkpoint_state_changes_with_the_checkpoint_alone(tmp_path):
    store = RunStore(str(tmp_path))
    trained = unit(store, "a", checkpoints="adapters/a/checkpoint*.pt")
    assert checkpoint_state(trained) == checkpoint_state(unit(store, "a")) == []
    store.write_bytes("adapters/a/checkpoint.pt", b"1")
    first = checkpoint_state(trained)
    store.write_bytes("adapters/a/losses.parquet", b"1")
    assert checkpoint_state(trained) == first
    store.write_bytes("adapters/a/checkpoint.pt", b"22")
    assert checkpoint_state(trained) != first
