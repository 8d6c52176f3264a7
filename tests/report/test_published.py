"""Ours beside the papers': the difference, and how each was measured."""

from __future__ import annotations

import pytest

from datadream.config import ExperimentConfig
from datadream.paper import Published
from datadream.report import summarise, write_report
from datadream.report.published import beside_paper, our_protocol, paper_protocols
from datadream.run.layout import PAGE
from tests.report.fabricate import record
from tests.report.test_page import Page

TABLE = "DataDream, table 1"


def test_the_difference_is_ours_minus_theirs():
    found = [record("synthetic", top1, seed, "datadream-cls", 16, 500) for seed, top1 in enumerate((60.0, 62.0))]
    theirs = {("datadream-cls", "synthetic", 16, 500): {TABLE: Published(68.6, 2.0, "68.6±2.0")}}
    (line,) = beside_paper(summarise(found), theirs)
    assert (line.ours, line.paper, line.difference, line.source) == ("61.0 ± 1.4", "68.6 ± 2.0", "−7.6", TABLE)


def test_as_many_images_stand_beside_as_many():
    found = [record("synthetic", 60.0 + n / 100, 0, "datadream-cls", 16, n) for n in (100, 500, 1000)]
    theirs = {("datadream-cls", "synthetic", 16, 500): {TABLE: Published(68.6)}}
    (line,) = beside_paper(summarise(found), theirs)
    assert line.ours == "65.0"


def test_what_was_not_measured_stands_beside_nothing():
    theirs = {("none", "real", 4, 0): {TABLE: Published(78.3)}}
    assert not beside_paper(summarise([record("real", None)]), theirs)
    assert not beside_paper(summarise([record("zero-shot", 50.0)]), theirs)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Weights chosen on validation photos. No knobs were searched."),
        ({"chosen_by": "test"}, "Weights chosen on the test photos themselves, which flatters."),
        ({"chosen_knobs": {"learning_rate": 1e-4}}, "Searched: learning_rate."),
        ({"dataset": "dtd", "n_test": 1692}, "Test photos: 1,692 (dtd)."),
    ],
)
def test_our_protocol_is_told_by_what_was_done(changes, words):
    found = [record("real+synthetic", 80.0, seed, "datadream-cls", 16, 500) | changes for seed in (0, 1)]
    told = our_protocol(found, [ExperimentConfig()])
    assert "16 photos per class, 500 generated images per class, 2 seeds" in told
    assert words in told


def test_what_is_particular_to_a_data_set_is_said():
    lines = paper_protocols([TABLE, TABLE], ["pets", "flowers102", "own photos"])
    assert len(lines) == 2
    assert lines[0].startswith(f"Paper ({TABLE}): Stable Diffusion 2.1, CLIP ViT-B/16")
    assert lines[1] == "Flowers102: the authors' code tests on the training split."


def test_a_runs_page_has_the_papers_figure_where_there_is_one(make_run):
    store, config = make_run("run", {"real": 80.0})
    theirs = {("none", "real", 4, 0): {TABLE: Published(78.3, 2.8, "78.3±2.8")}}
    write_report(store, [(store, config)], config, published=theirs)
    words = " ".join(Page(store.read_bytes(PAGE).decode()).words)
    assert "Beside the paper" in words
    assert "80.0 78.3 ± 2.8 +1.7 DataDream, table 1" in words
    write_report(store, [(store, config)], config)
    assert "Beside the paper" not in store.read_bytes(PAGE).decode()
