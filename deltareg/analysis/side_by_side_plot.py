"""Picture of estimates beside exact figures: cosines by module class and layer, and norms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deltareg.analysis.pictures import drawing, page, picture_of, table, write_picture
from deltareg.analysis.plots import CLASSES, draw_norms, name_layers, not_compared
from deltareg.analysis.side_by_side import Agreement, Difference, PairSideBySide, SideBySideReport

__all__ = ["FIGURES", "agreed", "plot_side_by_side", "told"]

FIGURES = ("cosine", "exact cosine", "within", "opposed signs", "exact share", "within it")
"""The columns of two figures as `told` has them."""


def plot_side_by_side(report: SideBySideReport, path: str | os.PathLike[str]) -> Path:
    """Draw `report` into a PNG, SVG or HTML file, as the name of `path` ends; returns the path.

    The same report gives the same bytes with the same matplotlib. Raises InvalidArgument for another ending, and where
    matplotlib is not installed; NotAllowed, DiskFull.
    """
    return write_picture(Path(path), partial(_draw, report), partial(_page, report))


def _draw(report: SideBySideReport, kind: str) -> bytes:
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(layer for pair in report.pairs for layer in pair.exact.layers))
    layers += [layer for delta in report.deltas for layer in delta.layers if layer not in set(layers)]
    with drawing():
        width = min(60.0, max(9.0, 4.5 + 0.28 * len(layers)))
        figure: Any = Figure(figsize=(width, 10.0), layout="constrained")
        panels = figure.subplots(3, 1)
        for axes, (key, title) in zip(panels, CLASSES, strict=False):
            axes.set_title(f"cosine of the deltas: {title}", fontsize="medium")
            name_layers(axes, layers)
            for number, pair in enumerate(report.pairs):
                _cosines(axes, pair, layers, key, f"C{number % 10}")
            if layers:
                axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
        draw_norms(panels[2], report.deltas, layers)
        return picture_of(figure, kind)


def _cosines(axes: Any, pair: PairSideBySide, layers: Sequence[str], key: str, colour: str) -> None:
    """The exact cosines as a line, the estimates as points with their standard errors."""
    found = {row.layer: row.cosine for row in pair.differences if row.module_class == key and row.cosine is not None}
    nothing = float("nan")
    known = [found.get(layer) for layer in layers]
    places, name = range(len(layers)), f"{pair.first} · {pair.second}"
    axes.plot(places, [nothing if one is None else one.exact for one in known], color=colour, label=f"{name}: exact")
    axes.errorbar(
        places,
        [nothing if one is None else one.estimated for one in known],
        yerr=[nothing if one is None else one.error for one in known],
        fmt="o",
        markersize=3,
        capsize=2,
        color=colour,
        label=f"{name}: estimated",
    )


def _page(report: SideBySideReport, picture: str) -> str:
    heads = ("deltas", "class", *FIGURES, "tensors", "parameters")
    rows = [
        (
            f"{pair.first} · {pair.second}" + (f" · {row.layer}" if row.layer else ""),
            row.module_class,
            *told(row.cosine),
            *told(row.sign_conflict),
            f"{row.tensors:,}",
            f"{row.parameters:,}",
        )
        for pair in report.pairs
        for row in pair.differences
    ]
    kept = [
        (f"{pair.first} · {pair.second}", name, *agreed(found))
        for pair in report.pairs
        for name, found in (("cosine", pair.cosine), ("opposed signs", pair.sign_conflict))
    ]
    return page(
        "Estimates beside exact figures",
        [
            picture,
            table(("deltas", "figure", "estimates", "within one error", "within two", "largest difference"), kept),
            table(heads, rows),
            not_compared([pair.estimated for pair in report.pairs]),
        ],
    )


def told(found: Difference | None) -> tuple[str, str, str]:
    """A figure for people: the estimate with its standard error, what is exact, and whether the one holds the other."""
    if found is None:
        return "–", "–", ""
    error = f" ± {found.error:.4f}" if found.error else ""
    return f"{found.estimated:.4f}{error}", f"{found.exact:.4f}", "yes" if found.within else "no"


def agreed(found: Agreement) -> tuple[str, str, str, str]:
    """How estimates kept to their errors, for people."""
    one, two = (
        f"{count} ({100 * count / found.compared:.0f} %)" if found.compared else "–"
        for count in (found.within_one, found.within_two)
    )
    return f"{found.compared}", one, two, f"{found.largest:.4f}"
