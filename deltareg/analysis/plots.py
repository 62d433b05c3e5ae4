"""Pictures of a comparison: cosines and norms by layer, as figures 2 and 3 of ParamΔ (arXiv 2504.21023) show them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deltareg.analysis.compare import Comparison, ComparisonReport, DeltaNorms, PairReport
from deltareg.analysis.pictures import check_plot, drawing, listing, page, picture_of, table, write_picture

__all__ = ["CLASSES", "check_plot", "draw_norms", "name_layers", "not_compared", "plot", "with_error"]

CLASSES = (("attention", "attention"), ("mlp", "feed-forward"))
"""The classes of modules that are drawn, and what to call them."""

_MOST_TICKS = 40


def plot(report: ComparisonReport, path: str | os.PathLike[str]) -> Path:
    """Draw `report` into a PNG, SVG or HTML file, as the name of `path` ends; returns the path.

    The HTML page needs no other file: the picture is within it, with a table of the numbers. The same report gives
    the same bytes with the same matplotlib. Raises InvalidArgument for another ending, and where matplotlib is not
    installed; NotAllowed, DiskFull.
    """
    return write_picture(Path(path), partial(_draw, report), partial(_page, report))


def _draw(report: ComparisonReport, kind: str) -> bytes:
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(layer for pair in report.pairs for layer in pair.layers))
    layers += [layer for delta in report.deltas for layer in delta.layers if layer not in set(layers)]
    with drawing():
        width = min(60.0, max(9.0, 2.5 + 0.28 * len(layers)))
        height = min(40.0, 3.2 + 2 * (1.2 + 0.35 * len(report.pairs)))
        figure: Any = Figure(figsize=(width, height), layout="constrained")
        heights = [1.2 + 0.35 * len(report.pairs)] * 2 + [3.0]
        maps = figure.subplots(3, 1, height_ratios=heights)
        for axes, (key, title) in zip(maps, CLASSES, strict=False):
            _heat_map(figure, axes, report, layers, key, title)
        draw_norms(maps[2], report.deltas, layers)
        return picture_of(figure, kind)


def _heat_map(figure: Any, axes: Any, report: ComparisonReport, layers: Sequence[str], key: str, title: str) -> None:
    rows: list[list[float]] = []
    for pair in report.pairs:
        found = [pair.layers.get(layer, {}).get(key) for layer in layers]
        rows.append([float("nan") if one is None or one.cosine is None else one.cosine for one in found])
    axes.set_title(f"cosine of the deltas: {title}", fontsize="medium")
    axes.set_yticks(range(len(rows)), [f"{pair.first} · {pair.second}" for pair in report.pairs], fontsize="small")
    name_layers(axes, layers)
    if not layers:
        return
    image = axes.imshow(rows, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes)


def draw_norms(axes: Any, deltas: Sequence[DeltaNorms], layers: Sequence[str]) -> None:
    """Draw the norms of deltas, by class and layer."""
    axes.set_title("norm of the deltas", fontsize="medium")
    name_layers(axes, layers)
    for number, delta in enumerate(deltas):
        for (key, title), style in zip(CLASSES, ("-", "--"), strict=True):
            heights = [delta.layers.get(layer, {}).get(key, float("nan")) for layer in layers]
            axes.plot(
                range(len(layers)), heights, style, color=f"C{number % 10}", marker=".", label=f"{delta.name}: {title}"
            )
    axes.set_ylim(bottom=0)
    if layers:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))


def name_layers(axes: Any, layers: Sequence[str]) -> None:
    """Put the layers' names below axes whose places are their numbers: not more than fit."""
    step = -(-len(layers) // _MOST_TICKS) or 1
    prefixes = {layer.rpartition(".")[0] for layer in layers}
    shown = [layer.rpartition(".")[2] if len(prefixes) == 1 else layer for layer in layers]
    axes.set_xticks(
        range(0, len(layers), step), shown[::step], fontsize="small", rotation=0 if len(prefixes) == 1 else 90
    )


# --- the page -----------------------------------------------------------------------------------------------------


def _page(report: ComparisonReport, picture: str) -> str:
    heads = ("deltas", "class", "cosine", "norm ratio", "opposed signs", "tensors", "parameters", "")
    rows = [
        (f"{pair.first} · {pair.second}" + (f" · {layer}" if layer else ""), key, *_cells(found))
        for pair in report.pairs
        for layer, key, found in pair.rows(layers=True)
    ]
    return page("Interference of deltas", [picture, table(heads, rows), not_compared(report.pairs)])


def not_compared(pairs: Sequence[PairReport]) -> str:
    """The tensors that a comparison left out, as a part of a page."""
    skipped = [f"{one.name}: {one.reason}" for pair in pairs for one in pair.skipped]
    return listing("Not compared", skipped)


def _cells(found: Comparison) -> tuple[str, ...]:
    return (
        with_error(found.cosine, found.cosine_error),
        "–" if found.norm_ratio is None else f"{found.norm_ratio:.4g}",
        with_error(found.sign_conflict, found.sign_conflict_error),
        f"{found.tensors:,}",
        f"{found.parameters:,}",
        "exact" if found.exact else "estimated",
    )


def with_error(value: float | None, error: float | None) -> str:
    """A figure with its standard error, where it has one."""
    if value is None:
        return "–"
    return f"{value:.4f}" + (f" ± {error:.4f}" if error else "")
