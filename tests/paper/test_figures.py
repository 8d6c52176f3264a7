"""The papers' tables are copied whole and right, as far as they say so themselves."""

from __future__ import annotations

import pytest

from datadream.paper import Published, load_sets, load_tables

PRINTED_OTHERWISE = {("paper/table1", "baselines", "zero-shot")}
"""The paper prints 64.1 for zero-shot CLIP, whose ten figures have the mean 64.91."""


def test_the_papers_own_averages_are_those_of_its_figures():
    checked = 0
    for name, table in load_tables().items():
        for row, content in table.rows.items():
            for setting, average in content.average.items():
                means = [figure.mean for figure in content.figures[setting].values()]
                agrees = abs(sum(means) / len(means) - average.mean) < 0.06
                assert agrees != ((name, row, setting) in PRINTED_OTHERWISE), (name, row, setting)
                checked += 1
    assert checked == 15


@pytest.mark.parametrize("name", load_tables())
def test_a_line_has_a_figure_for_every_data_set_or_none(name):
    table = load_tables()[name]
    assert set(table.sets) <= set(load_sets())
    for row in table.rows.values():
        assert all(set(by_set) in (set(), set(table.sets)) for by_set in row.figures.values())
        assert row.runs_of is None or row.method is None


def test_a_figure_is_told_as_it_is_printed():
    table1, table_b = load_tables()["paper/table1"], load_tables()["paper/tableB/rn50"]
    assert table1.rows["datadream-dset"].figures["synthetic"]["eurosat"] == Published(80.3, 4.1, "80.3±4.1")
    assert str(load_tables()["paper/table4"].rows["unet"].figures["synthetic"]["aircraft"]) == "59.80"
    assert str(table1.rows["is-synth"].figures["synthetic"]["cars"]) == "65.9 ± 0.0"
    assert str(table_b.rows["datadream-cls"].figures["real+synthetic"]["aircraft"]) == "79.21"


def test_a_row_that_both_tables_print_is_the_same():
    one, two = load_tables()["paper/table1"].rows, load_tables()["paper/table2"].rows
    for row in ("is-synth", "disef", "datadream-dset"):
        assert two[row].figures["real+synthetic"] == one[row].figures["real+synthetic"]
