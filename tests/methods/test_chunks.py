"""Chunks share class, adapter and prompt, cover the plan once, cost next to nothing, and are known again by a hash."""

import pickle
import tracemalloc

import pytest

from datadream import recipes
from datadream.data.datasets import open_source
from datadream.data.few_shot import FewShotSet, sample_shots
from datadream.methods import METHODS, base
from datadream.methods.chunks import first_chunks, n_images, plan_hash, split_into_chunks

# Of version 0.1, which listed every request in the plan: runs made with it must be known again.
RECORDED = [
    ("datadream-cls", {}, "6afaf3e7ad000e1cc3f614e2bf5088a1ff464bc0d56c3c75eee6ca8e3e9bbc1c"),
    ("datadream-dset", {"seed": 3}, "0dac92fca85a9dd07f79ece0fef347d14b2a2e4e9b86432a4f493e684ba4e901"),
    (
        "is-synth",
        {"data.n_shots": 16, "generate.strength": 0.5},
        "020f217bd8bf6d841faa49ed4ff8138a089b564183d0c8e714d038142c937ae1",
    ),
    (
        "zero-shot",
        {"generate.chunk_size": 7, "generate.images_per_class": 23},
        "73fb798bfc2891f6ca90c58e8fbb998fb604b272210fc635997539a515085c17",
    ),
    (
        "is-synth",
        {"generate.select.label_top_k": 1, "generate.select.coverage": 1.5, "generate.images_per_class": 30},
        "f49e8f2bf13e2b0f1a1eb10ed4a59ca47892c6a95cbec54c2aa55ee6a85d49a0",
    ),
]


def planned(method: str, **changes):
    config = recipes.digits(method=method, **changes)
    few_shot = sample_shots(open_source("digits").dataset(), config.data.n_shots, config.seed, config.data.prompt)
    return split_into_chunks("run", METHODS[method](few_shot, config).images, config.generate.chunk_size), config


@pytest.mark.parametrize(("method", "changes", "recorded"), RECORDED)
def test_plans_keep_the_hashes_that_runs_have_recorded(method, changes, recorded):
    """The hash covers chunk ids, where chunks begin and end, and every value of every request, its seed too."""
    assert plan_hash(*planned(method, **changes)) == recorded


def test_what_changes_images_changes_the_hash():
    ours = plan_hash(*planned("is-synth"))
    assert plan_hash(*planned("is-synth", **{"generate.batch_size": 7})) == ours
    others = [{"seed": 1}, {"generate.steps": 7}, {"generate.chunk_size": 49}, {"data.n_shots": 3}]
    assert len({ours, *(plan_hash(*planned("is-synth", **changes)) for changes in others)}) == 5


def test_chunks_cover_the_plan_in_order():
    config = recipes.digits(**{"generate.images_per_class": 7})
    few_shot = sample_shots(open_source("digits").dataset(), 2, 0, config.data.prompt)
    images = METHODS["datadream-cls"](few_shot, config).images
    chunks = split_into_chunks("run", images, 3)
    requests = [request for chunk in chunks for request in chunk.requests]
    assert requests == [request for series in images for request in series]
    assert n_images(chunks) == len(requests) == 70
    assert len({chunk.chunk_id for chunk in chunks}) == len(chunks) == 30
    assert [chunk.chunk_id for chunk in chunks[3:6]] == ["00001-000000", "00001-000003", "00001-000006"]
    for chunk in chunks:
        assert len(chunk.requests) <= 3
        assert {request.label for request in chunk.requests} == {chunk.label}
        assert {request.adapters for request in chunk.requests} == {((chunk.adapter_ids[0], 1.0),)}


def test_first_chunks_hold_what_is_wanted_of_each_class():
    chunks, _ = planned("zero-shot", **{"generate.images_per_class": 7, "generate.chunk_size": 3})
    found = first_chunks(chunks, [0, 3, 4, 99, *[0] * 6])
    assert [chunk.chunk_id for chunk in found] == [
        "00001-000000",
        *("00002-000000", "00002-000003"),
        *("00003-000000", "00003-000003", "00003-000006"),
    ]


@pytest.mark.parametrize("method", ["datadream-cls", "is-synth"])
def test_half_a_million_images_are_planned_without_a_seed(method, monkeypatch):
    """1,000 classes of 500 images: an image costs nothing before its chunk is drawn, and a chunk travels light."""
    names = tuple(f"class {label}" for label in range(1000))
    shots = tuple(tuple(f"train/{name}/{number}.jpg" for number in range(16)) for name in names)
    few_shot = FewShotSet(names, names, shots, (), (), flippable=True)
    config = recipes.paper(method=method, **{"generate.images_per_class": 500, "generate.chunk_size": 50})
    derived = []
    derive_seed = base.derive_seed
    monkeypatch.setattr(base, "derive_seed", lambda *path: derived.append(path) or derive_seed(*path))
    tracemalloc.start()
    chunks = split_into_chunks("run", METHODS[method](few_shot, config).images, config.generate.chunk_size)
    first = first_chunks(chunks, [100] * 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(chunks), n_images(chunks), len(first), derived) == (10_000, 500_000, 2_000, [])
    assert peak < 16 * 2**20
    assert len(pickle.dumps(chunks[-1])) < 1024
    assert [request.index for request in pickle.loads(pickle.dumps(chunks[-1])).requests] == list(range(450, 500))
    assert len(derived) == 50
