"""Nothing is looked for while libraries are imported, and all is as before afterwards."""

import gc

import pytest

from datadream.runtime.garbage import without_collection


def test_no_search_within_the_block_and_as_before_after_it():
    with without_collection():
        runs = [generation["collections"] for generation in gc.get_stats()]
        kept = [[] for _ in range(100_000)]
        assert [generation["collections"] for generation in gc.get_stats()] == runs
    del kept
    assert gc.isenabled()


def test_who_does_without_goes_on_without():
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError), without_collection():
            1 / 0  # noqa: B018
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(ZeroDivisionError), without_collection():
        1 / 0  # noqa: B018
    assert gc.isenabled()
