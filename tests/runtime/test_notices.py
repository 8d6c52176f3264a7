"""Warnings of workers are kept until they are taken, and said once."""

import logging

import pytest

from datadream.runtime.notices import SOURCES, Notices, Said, listen


@pytest.fixture
def notices():
    """Those of this process alone, in which tests of workers may have listened before."""
    _remove()
    yield listen()
    _remove()


def _remove() -> None:
    for name in SOURCES:
        for handler in [each for each in logging.getLogger(name).handlers if isinstance(each, Notices)]:
            logging.getLogger(name).removeHandler(handler)


def test_warnings_of_ours_and_of_the_compiler_are_taken_once(notices):
    assert listen() is notices
    ours, compiler = logging.getLogger("datadream.generate.sampler"), logging.getLogger("torch._dynamo.convert_frame")
    ours.warning("out of memory: going on with %d images at once", 25)
    ours.warning("out of memory: going on with %d images at once", 25)
    compiler.warning("hit config.recompile_limit (8)\n   function: x")
    ours.error("a unit failed, which is told elsewhere")
    logging.getLogger("another.library").warning("deprecated")
    assert notices.take() == ["out of memory: going on with 25 images at once", "hit config.recompile_limit (8)"]
    assert notices.take() == []


def test_the_driver_says_what_several_workers_tell_once(caplog):
    said = Said()
    for texts in (["a", "b"], ["b"], []):
        said.say(texts)
    assert [record.getMessage() for record in caplog.records] == ["a worker: a", "a worker: b"]
