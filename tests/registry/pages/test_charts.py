"""Where the lines, cells and labels of the pictures go."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltareg_registry.pages.charts import MOST_LAYERS, heat_map, line_chart

LAYERS = [f"model.layers.{number}" for number in range(4)]


def test_line_lies_as_high_as_its_values_say() -> None:
    chart = line_chart(LAYERS, {"mlp": ("feed-forward", [0.0, 1.0, 2.0, 4.0])})
    assert chart is not None
    (line,) = chart.series
    heights = [(chart.bottom - dot.y) / (chart.bottom - chart.top) for dot in line.dots]
    assert heights == pytest.approx([0, 0.25, 0.5, 1.0], abs=1e-3)
    assert [tick.label for tick in chart.layers] == ["0", "1", "2", "3"]
    assert [tick.label for tick in chart.values] == ["0", "1", "2", "3", "4"]
    assert line.dots[3].title == "model.layers.3, feed-forward: 4"


def test_line_is_broken_where_a_value_is_missing_and_between_lists_of_layers() -> None:
    chart = line_chart(["a.0", "a.1", "a.2", "a.3", "b.0", "b.1"], {"mlp": ("m", [1, 1, None, math.inf, 1, 1])})
    assert chart is not None
    (line,) = chart.series
    assert len(line.pieces) == 2 and len(line.dots) == 4


def test_nothing_is_drawn_of_nothing() -> None:
    assert line_chart([], {"mlp": ("m", [])}) is None
    assert line_chart(LAYERS, {}) is None
    assert line_chart(LAYERS, {"mlp": ("m", [None, math.nan, None, None])}) is None
    assert heat_map([], ["all"], {}) is None
    assert heat_map(LAYERS, [], {}) is None


def test_pictures_have_an_end() -> None:
    layers = [f"layers.{number}" for number in range(10 * MOST_LAYERS)]
    chart = line_chart(layers, {"mlp": ("m", [1.0] * len(layers))})
    assert chart is not None and len(chart.series[0].dots) == MOST_LAYERS and len(chart.layers) <= 32
    cells = heat_map(layers, ["all"], {})
    assert cells is not None and len(cells.cells) == MOST_LAYERS
    named = line_chart([f"{'long' * 60}{number}.x" for number in range(100)], {"mlp": ("m", [1.0] * 100)})
    assert named is not None and len(named.layers) <= 2


def test_cells_are_as_strong_as_their_cosines() -> None:
    cosines = {("a.0", "all"): 0.5, ("a.1", "all"): -0.25, ("a.0", "mlp"): None, ("a.1", "mlp"): -3.0}
    found = heat_map(["a.0", "a.1"], ["all", "mlp"], cosines)
    assert found is not None
    told = [(cell.kind, cell.strength) for cell in found.cells]
    assert told == [("warm", "0.500"), ("cool", "0.250"), ("none", "0"), ("cool", "1.000")]
    assert found.cells[2].title == "a.0, mlp: not compared"
    assert [cell.y for cell in found.cells[:2]] == [found.cells[0].y] * 2 and found.cells[2].y > found.cells[0].y


@given(st.lists(st.none() | st.just(math.nan) | st.floats(0), min_size=1, max_size=20))
@example([5e-324])
@example([1.7976931348623157e308, 0.0])
@example([0.0])
def test_every_norm_finds_a_place_within_the_picture(values: list[float | None]) -> None:
    chart = line_chart([f"a.{number}" for number in range(len(values))], {"mlp": ("m", values)})
    known = [value for value in values if value is not None and math.isfinite(value)]
    assert (chart is not None) == bool(known)
    if chart is not None:
        for dot in chart.series[0].dots:
            assert chart.left <= dot.x <= chart.right and chart.top - 0.01 <= dot.y <= chart.bottom + 0.01
