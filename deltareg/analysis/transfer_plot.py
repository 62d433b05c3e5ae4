"""Picture of an analysis of transfer: measured against predicted, as figure 5 of ParamΔ (arXiv 2504.21023) shows it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from deltareg.analysis.pictures import drawing, listing, page, picture_of, table, write_picture
from deltareg.analysis.transfer import Interval, Line, TransferAnalysis

__all__ = ["line_rows", "plot_transfer", "ranged"]

_MOST_LABELS = 40


def plot_transfer(analysis: TransferAnalysis, path: str | os.PathLike[str]) -> Path:
    """Draw `analysis` into a PNG, SVG or HTML file, as the name of `path` ends; returns the path.

    The same analysis gives the same bytes with the same matplotlib. Raises InvalidArgument for another ending, and
    where matplotlib is not installed; NotAllowed, DiskFull.
    """
    return write_picture(Path(path), partial(_draw, analysis), partial(_page, analysis))


def _draw(analysis: TransferAnalysis, kind: str) -> bytes:
    from matplotlib.figure import Figure

    with drawing():
        figure: Any = Figure(figsize=(8.0, 7.0), layout="constrained")
        axes = figure.subplots()
        _scatter(axes, analysis)
        _lines(axes, analysis)
        axes.margins(0.12, 0.08)
        axes.set_xlabel("predicted: new base + post − base")
        axes.set_ylabel("measured")
        axes.legend(fontsize="small", loc="upper left")
        return picture_of(figure, kind)


def _scatter(axes: Any, analysis: TransferAnalysis) -> None:
    groups = list(dict.fromkeys(point.group for point in analysis.points))
    for number, group in enumerate(groups):
        points = [point for point in analysis.points if point.group == group]
        x, y = [point.hypothetical for point in points], [point.real for point in points]
        colour = f"C{number % 10}"
        axes.errorbar(
            x,
            y,
            xerr=[point.hypothetical_error or 0.0 for point in points],
            yerr=[point.real_error or 0.0 for point in points],
            fmt="o",
            color=colour,
            elinewidth=0.8,
            label=group or "tasks",
        )
        for point in points if len(analysis.points) <= _MOST_LABELS else []:
            axes.annotate(
                point.task,
                (point.hypothetical, point.real),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize="x-small",
                color=colour,
            )


def _lines(axes: Any, analysis: TransferAnalysis) -> None:
    x = [point.hypothetical for point in analysis.points]
    ends = [min(0.0, *x), max(0.0, *x)]
    axes.plot(ends, ends, ":", color="gray", label="measured = predicted")
    lines = [("-", "through the origin", analysis.through_origin), ("--", "with intercept", analysis.with_intercept)]
    for style, name, line in lines:
        if line is not None:
            told = "" if line.r_squared is None else f", R² = {line.r_squared:.3f}"
            heights = [line.intercept + line.gamma * end for end in ends]
            axes.plot(ends, heights, style, color="black", linewidth=1, label=f"{name}: γ = {line.gamma:.3f}{told}")


def _page(analysis: TransferAnalysis, picture: str) -> str:
    heads = ("task", "group", "metric", "base", "post", "new base", "predicted", "measured", "difference", "residual")
    rows = [
        (
            point.task,
            point.group,
            point.metric,
            *(f"{value:.4g}" for value in (point.base, point.post, point.new_base, point.hypothetical, point.real)),
            f"{point.difference:+.3g}",
            f"{point.residual:+.3g}",
        )
        for point in analysis.points
    ]
    left_out = [f"{one.task}{f' ({one.group})' if one.group else ''}: {one.reason}" for one in analysis.left_out]
    return page(
        "Transfer of a delta",
        [
            picture,
            table(LINE_HEADS, line_rows(analysis)),
            table(heads, rows),
            listing("Left out", left_out),
            listing("Warnings", analysis.warnings),
        ],
    )


LINE_HEADS = ("line", "γ", "Student's t", "bootstrap", "intercept", "R²", "R², bootstrap")
"""The columns of `line_rows`."""


def line_rows(analysis: TransferAnalysis) -> list[list[str]]:
    """The lines of an analysis for people, one in each row."""
    lines = [
        ("through the origin", analysis.through_origin),
        ("with intercept", analysis.with_intercept),
        ("gains, through the origin", analysis.gains),
    ]
    return [[name, *_told(line)] for name, line in lines if line is not None]


def _told(line: Line) -> list[str]:
    intercept = "" if line.intercept_interval is None else f"{line.intercept:.4g} ({ranged(line.intercept_interval)})"
    return [
        f"{line.gamma:.4f}",
        ranged(line.gamma_interval),
        ranged(line.gamma_bootstrap),
        intercept,
        "–" if line.r_squared is None else f"{line.r_squared:.4f}",
        ranged(line.r_squared_bootstrap),
    ]


def ranged(interval: Interval | None) -> str:
    """An interval for people: `0.93 to 1.02`."""
    return "–" if interval is None else f"{interval.low:.4g} to {interval.high:.4g}"
