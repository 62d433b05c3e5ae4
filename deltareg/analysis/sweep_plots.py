"""Pictures of a sweep: curves as figures 6, 9 and 10 of ParamΔ (arXiv 2504.21023) show them, surfaces as heat maps."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

from deltareg.analysis.pictures import drawing, page, picture_of, table, write_picture
from deltareg.analysis.sweep_report import MetricSummary, SweepReport

__all__ = ["plot_sweep"]


def plot_sweep(report: SweepReport, path: str | os.PathLike[str]) -> Path:
    """Draw a panel for each metric into a PNG, SVG or HTML file, as the name of `path` ends; returns the path.

    One weight gives a curve with its best point and its plateau, two give a heat map. The same report gives the same
    bytes with the same matplotlib. Raises what `check_plot` raises; NotAllowed, DiskFull.
    """
    return write_picture(Path(path), partial(_draw, report), partial(_page, report))


def _draw(report: SweepReport, kind: str) -> bytes:
    from matplotlib.figure import Figure

    with drawing():
        columns = min(3, max(1, len(report.metrics)))
        rows = -(-len(report.metrics) // columns) or 1
        figure: Any = Figure(figsize=(5.5 * columns, min(60.0, 3.8 * rows)), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for axes, (name, summary) in zip(panels, report.metrics.items(), strict=False):
            axes.set_title(name[:80], fontsize="medium")
            if report.beta is not None and len(report.beta) > 1 and len(report.alpha) > 1:
                _surface(figure, axes, report, name, summary)
            else:
                _curve(axes, report, name, summary)
        for axes in list(panels):
            axes.set_axis_off()
        return picture_of(figure, kind)


def _curve(axes: Any, report: SweepReport, name: str, summary: MetricSummary) -> None:
    along_beta = report.beta is not None and len(report.alpha) == 1
    curve = summary.beta if along_beta and summary.beta is not None else summary.alpha
    values = [_value(point.metrics.get(name)) for point in report.points]
    weights = [float(point.beta or 0.0) if along_beta else point.alpha for point in report.points]
    axes.plot(weights, values, "-", marker=".", color="C0")
    axes.plot([curve.best_at], [curve.best], "*", markersize=12, color="C3", label=f"best, at {curve.best_at:g}")
    if curve.plateau is not None and curve.plateau.width:
        label = f"plateau, within {100 * summary.tolerance:g} %"
        axes.axvspan(curve.plateau.low, curve.plateau.high, color="C2", alpha=0.15, label=label)
    for weight in (0, 1):
        if weights[0] <= weight <= weights[-1]:
            axes.axvline(weight, color="0.7", linewidth=0.8, linestyle=":")
    axes.set_xlabel(_axis(report, "beta" if along_beta else "alpha"), fontsize="small")
    axes.set_ylabel("lower is better" if summary.lower_is_better else "higher is better", fontsize="small")
    axes.legend(fontsize="small")


def _surface(figure: Any, axes: Any, report: SweepReport, name: str, summary: MetricSummary) -> None:
    beta = report.beta or []
    found = {(point.alpha, point.beta): _value(point.metrics.get(name)) for point in report.points}
    grid = [[found[one, other] for one in report.alpha] for other in beta]
    # The darker the better, whichever way that is.
    colours = "viridis" if summary.lower_is_better else "viridis_r"
    image = axes.pcolormesh(report.alpha, beta, grid, cmap=colours, shading="nearest", rasterized=len(found) > 2500)
    figure.colorbar(image, ax=axes)
    label = f"best, at {summary.best_alpha:g}, {summary.best_beta:g}"
    axes.plot([summary.best_alpha], [summary.best_beta], "*", markersize=12, color="C3", label=label)
    axes.set_xlabel(_axis(report, "alpha"), fontsize="small")
    axes.set_ylabel(_axis(report, "beta"), fontsize="small")
    axes.legend(fontsize="small")


def _axis(report: SweepReport, role: str) -> str:
    name = next((delta.reference for delta in report.deltas if delta.varies == role), "")
    sign = {"alpha": "α", "beta": "β"}[role]
    if report.fused:
        other = next(delta.reference for delta in report.deltas if delta.varies == "beta")
        return f"{sign}: {name}; 1 − {sign}: {other}"
    return f"{sign}: {name}"


def _value(value: float | None) -> float:
    return math.nan if value is None else value


def _page(report: SweepReport, picture: str) -> str:
    names = list(report.metrics)
    heads = ["α", *(["β"] if report.beta is not None else []), *names]
    rows: list[list[str]] = []
    for point in report.points:
        beta = [] if point.beta is None else [f"{point.beta:g}"]
        values = [point.metrics.get(name) for name in names]
        rows.append([f"{point.alpha:g}", *beta, *("–" if one is None else f"{one:.6g}" for one in values)])
    return page(f"Sweep of {report.recipe}", [picture, table(heads, rows)])
