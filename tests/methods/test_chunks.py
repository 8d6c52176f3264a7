"""Chunks share class, adapter and prompt, cover the plan once, and are not taken for those of another plan."""

import pytest

from datadream import recipes
from datadream.data.datasets import open_source
from datadream.data.few_shot import draw
from datadream.methods import METHODS
from datadream.methods.chunks import claim_run, plan_hash, split_into_chunks
from datadream.run.layout import DATASET
from datadream.run.store import RunStore


def test_chunks_cover_the_plan_in_order():
    config = recipes.digits(**{"generate.images_per_class": 7})
    few_shot = draw(open_source("digits").dataset(), 2, 0, config.data.prompt)
    images = METHODS["datadream-cls"](few_shot, config).images
    chunks = split_into_chunks("run", images, 3)
    assert tuple(request for chunk in chunks for request in chunk.requests) == images
    assert len({chunk.chunk_id for chunk in chunks}) == len(chunks) == 30
    for chunk in chunks:
        assert len(chunk.requests) <= 3
        assert len({(request.label, request.adapters, request.prompt) for request in chunk.requests}) == 1


def planned(url: str, seed: int = 0, **changes):
    config = recipes.digits(seed=seed, **{"generate.images_per_class": 2} | changes)
    few_shot = draw(open_source("digits").dataset(), 2, seed, config.data.prompt)
    return split_into_chunks(url, METHODS["is-synth"](few_shot, config).images, config.generate.chunk_size), config


def test_a_folder_of_other_images_is_refused_before_anything_is_drawn(tmp_path):
    store = RunStore(str(tmp_path))
    chunks, config = planned(store.url)
    claim_run(store, chunks, config)
    claim_run(store, *planned(store.url, **{"generate.batch_size": 7}))
    for other in (planned(store.url, seed=1), planned(store.url, **{"generate.steps": 7})):
        there, now = plan_hash(chunks, config)[:8], plan_hash(*other)[:8]
        message = f"chunks folder of other images .plan {there} there, {now} now"
        with pytest.raises(ValueError, match=message):
            claim_run(store, *other)
    published = RunStore(str(tmp_path / "other"))
    published.write_json(DATASET, {"plan": plan_hash(chunks, config)})
    with pytest.raises(ValueError, match="holds a dataset folder of other images"):
        claim_run(published, *planned(published.url, seed=1))
    assert len(published.fs.find(published.root)) == 1
