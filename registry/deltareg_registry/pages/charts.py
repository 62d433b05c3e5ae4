"""Pictures as numbers: where the lines, cells and labels of an SVG go. The templates draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["MOST_LAYERS", "Cell", "Dot", "HeatMap", "LineChart", "Series", "Tick", "heat_map", "line_chart"]

MOST_LAYERS = 512
"""Layers that a picture shows: more of them could not be told apart, and a delta may name as many as it likes."""

_WIDTH = 900.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 96.0, 16.0, 34.0, 44.0
_MOST_TICKS = 32
_CELL_HEIGHT = 34.0


@dataclass(frozen=True)
class Tick:
    """A label of an axis, at `place` of its direction."""

    place: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A value of a line."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Series:
    """A line: its pieces, as SVG's `points`, and its dots.

    It is broken where a layer has no value, and where another list of layers begins.
    """

    kind: str
    label: str
    pieces: list[str]
    dots: list[Dot]


@dataclass(frozen=True)
class LineChart:
    """Lines over layers."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    layers: list[Tick]
    values: list[Tick]
    series: list[Series]


@dataclass(frozen=True)
class Cell:
    """A cosine: `kind` is warm above 0, cool below, none where there is no value; `strength` is its size."""

    x: float
    y: float
    kind: str
    strength: str
    title: str


@dataclass(frozen=True)
class HeatMap:
    """Cosines by class, from above, and layer."""

    width: float
    height: float
    left: float
    cell_width: float
    cell_height: float
    layers: list[Tick]
    classes: list[Tick]
    cells: list[Cell]


def line_chart(
    layers: Sequence[str], lines: Mapping[str, tuple[str, Sequence[float | None]]], *, height: float = 320.0
) -> LineChart | None:
    """A chart of lines, given as label and values by kind; None where there is nothing to draw."""
    layers = layers[:MOST_LAYERS]
    known = [value for _, values in lines.values() for value in values if value is not None and math.isfinite(value)]
    if not layers or not known:
        return None
    bottom, right = height - _BOTTOM, _WIDTH - _RIGHT
    step = (right - _LEFT) / len(layers)
    marks = _marks(max(known))
    scale = (bottom - _TOP) / marks[-1]
    shown = short_names(layers)
    series: list[Series] = []
    for kind, (label, values) in lines.items():
        dots: list[Dot] = []
        pieces: list[list[str]] = [[]]
        for place, (layer, value) in enumerate(zip(layers, values, strict=False)):
            if place and _list_of(layer) != _list_of(layers[place - 1]):
                pieces.append([])
            if value is None or not math.isfinite(value):
                pieces.append([])
                continue
            x, y = round(_LEFT + (place + 0.5) * step, 2), round(bottom - value * scale, 2)
            dots.append(Dot(x, y, f"{layer}, {label}: {value:.4g}"))
            pieces[-1].append(f"{x},{y}")
        if dots:
            series.append(Series(kind, label, [" ".join(piece) for piece in pieces if len(piece) > 1], dots))
    return LineChart(
        width=_WIDTH,
        height=height,
        left=_LEFT,
        right=right,
        top=_TOP,
        bottom=bottom,
        layers=_ticks([(_LEFT + (place + 0.5) * step, name) for place, name in enumerate(shown)]),
        values=[Tick(round(bottom - mark * scale, 2), f"{mark:.4g}") for mark in marks],
        series=series,
    )


def heat_map(
    layers: Sequence[str], classes: Sequence[str], cosines: Mapping[tuple[str, str], float | None]
) -> HeatMap | None:
    """A heat map of cosines, given by layer and class; None where there is nothing to draw."""
    layers = layers[:MOST_LAYERS]
    if not layers or not classes:
        return None
    width = (_WIDTH - _LEFT - _RIGHT) / len(layers)
    cells: list[Cell] = []
    for row, key in enumerate(classes):
        for place, layer in enumerate(layers):
            x, y = round(_LEFT + place * width, 2), _TOP + row * _CELL_HEIGHT
            value = cosines.get((layer, key))
            if value is None or not math.isfinite(value):
                cells.append(Cell(x, y, "none", "0", f"{layer}, {key}: not compared"))
                continue
            kind, strength = "warm" if value >= 0 else "cool", f"{min(abs(value), 1.0):.3f}"
            cells.append(Cell(x, y, kind, strength, f"{layer}, {key}: {value:.4f}"))
    rows = [Tick(_TOP + (row + 0.5) * _CELL_HEIGHT + 4, key) for row, key in enumerate(classes)]
    columns = [(_LEFT + (place + 0.5) * width, name) for place, name in enumerate(short_names(layers))]
    return HeatMap(
        width=_WIDTH,
        height=_TOP + len(classes) * _CELL_HEIGHT + _BOTTOM,
        left=_LEFT,
        cell_width=round(width, 2),
        cell_height=_CELL_HEIGHT,
        layers=_ticks(columns),
        classes=rows,
        cells=cells,
    )


def short_names(layers: Sequence[str]) -> list[str]:
    """The layers' numbers, where they all lie in one list; else their whole names."""
    if len({_list_of(layer) for layer in layers}) == 1:
        return [layer.rpartition(".")[2] for layer in layers]
    return list(layers)


def _list_of(layer: str) -> str:
    """What a layer is one of: `model.layers` for `model.layers.0`."""
    return layer.rpartition(".")[0]


def _ticks(places: Sequence[tuple[float, str]]) -> list[Tick]:
    # Long names lie on one another sooner than numbers do.
    longest = max(len(name) for _, name in places)
    most = max(2, min(_MOST_TICKS, int((_WIDTH - _LEFT) / (8 * longest + 8))))
    step = -(-len(places) // most)
    return [Tick(round(place, 2), name) for place, name in places[::step]]


def _marks(highest: float) -> list[float]:
    """Round numbers from 0 to a bit above `highest`."""
    if not 1e-300 < highest < 1e300:  # beyond, the steps would be 0 or infinite
        return [0.0, max(1.0, highest)]
    step = 10.0 ** math.floor(math.log10(highest / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if factor * step * 4 >= highest * (1 - 1e-9))
    return [number * step for number in range(5)]
