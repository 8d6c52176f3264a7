"""Charts stay small, deterministic and in the page's colours."""

from __future__ import annotations

from datadream.report.plots import MAX_LINES, STAND_INS, Line, adapters_chart, line_chart


def losses(n_adapters: int) -> list[list[tuple[int, float]]]:
    return [[(step, 1.0 / step + i) for step in (1, 2, 3)] for i in range(n_adapters)]


def test_a_thousand_adapters_are_one_band():
    few, many = adapters_chart(losses(MAX_LINES)), adapters_chart(losses(1000))
    assert few.count("stroke-opacity: 0.35") == MAX_LINES
    assert "stroke-opacity: 0.35" not in many
    assert "fill-opacity: 0.18" in many
    assert len(many) < 20_000


def test_adapters_of_different_lengths_share_a_chart():
    assert "<svg" in adapters_chart([[(1, 0.5), (2, 0.4)], [(1, 0.6)]])


def test_charts_are_bare_svg_in_the_colours_of_the_page():
    svg = line_chart([Line([(0, 1.0), (10, 0.5)], "series-1", mark=(10, 0.5))])
    assert svg.startswith("<svg")
    assert "http" not in svg
    assert "var(--series-1)" in svg
    assert not any(color in svg for color in STAND_INS.values())


def test_equal_curves_give_equal_bytes():
    lines = [Line([(1, 50.0), (4, 60.0), (16, 70.0)], "series-0", errors=[1.0, 0.5, 0.2])]
    assert line_chart(lines, "shots", [1, 4, 16]) == line_chart(lines, "shots", [1, 4, 16])
