"""Chunks share class, adapter and prompt, and cover the plan once."""

from datadream import recipes
from datadream.data.datasets import open_source
from datadream.data.few_shot import draw
from datadream.generate.chunks import split_into_chunks
from datadream.methods import METHODS


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
