"""Pictures of a comparison: cosines and norms by layer, as figures 2 and 3 of ParamΔ (arXiv 2504.21023) show them."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deltareg.analysis.compare import Comparison, ComparisonReport
from deltareg.errors import InvalidArgument
from deltareg.store.files import write_atomically

__all__ = ["check_plot", "plot", "with_error"]

_FORMATS = ("png", "svg", "html")
_CLASSES = (("attention", "attention"), ("mlp", "feed-forward"))
_MOST_TICKS = 40


def plot(report: ComparisonReport, path: str | os.PathLike[str]) -> Path:
    """Draw `report` into a PNG, SVG or HTML file, as the name of `path` ends; returns the path.

    The HTML page needs no other file: the picture is within it, with a table of the numbers. The same report gives
    the same bytes with the same matplotlib. Raises InvalidArgument for another ending, and where matplotlib is not
    installed; NotAllowed, DiskFull.
    """
    goal = Path(path)
    kind = check_plot(goal)
    picture = _draw(report, "svg" if kind == "html" else kind)
    if kind == "html":
        picture = _page(report, picture.decode()).encode(errors="backslashreplace")
    write_atomically(goal, picture, temporary=goal.with_name(f".{goal.name[:200]}.{os.getpid()}"))
    return goal


def check_plot(path: Path) -> str:
    """What `plot` would draw into the file: png, svg or html.

    Raises what `plot` raises, before anything is computed.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in _FORMATS:
        raise InvalidArgument(f"{path.name or path} does not tell what to draw", hint="name it .png, .svg or .html")
    if not path.parent.is_dir():
        raise InvalidArgument(f"there is no directory {path.parent} for the picture", hint=f"mkdir -p {path.parent}")
    if path.is_dir():
        raise InvalidArgument(f"{path} is a directory", hint="name a file for the picture")
    if find_spec("matplotlib") is None:
        raise InvalidArgument("plots need matplotlib, which is not installed", hint="pip install 'deltareg[plot]'")
    return kind


def _draw(report: ComparisonReport, kind: str) -> bytes:
    from matplotlib import rc_context  # pyright: ignore[reportUnknownVariableType]
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(layer for pair in report.pairs for layer in pair.layers))
    layers += [layer for delta in report.deltas for layer in delta.layers if layer not in set(layers)]
    # parse_math: a name may hold a $. hashsalt and no date: the same report gives the same bytes.
    settings: Any = {"svg.hashsalt": "deltareg", "svg.fonttype": "none", "text.parse_math": False}
    with rc_context(settings):
        width = min(60.0, max(9.0, 2.5 + 0.28 * len(layers)))
        height = min(40.0, 3.2 + 2 * (1.2 + 0.35 * len(report.pairs)))
        figure: Any = Figure(figsize=(width, height), layout="constrained")
        heights = [1.2 + 0.35 * len(report.pairs)] * 2 + [3.0]
        maps = figure.subplots(3, 1, height_ratios=heights)
        for axes, (key, title) in zip(maps, _CLASSES, strict=False):
            _heat_map(figure, axes, report, layers, key, title)
        _norms(maps[2], report, layers)
        out = io.BytesIO()
        figure.savefig(out, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def _heat_map(figure: Any, axes: Any, report: ComparisonReport, layers: Sequence[str], key: str, title: str) -> None:
    rows: list[list[float]] = []
    for pair in report.pairs:
        found = [pair.layers.get(layer, {}).get(key) for layer in layers]
        rows.append([float("nan") if one is None or one.cosine is None else one.cosine for one in found])
    axes.set_title(f"cosine of the deltas: {title}", fontsize="medium")
    axes.set_yticks(range(len(rows)), [f"{pair.first} · {pair.second}" for pair in report.pairs], fontsize="small")
    _name_layers(axes, layers)
    if not layers:
        return
    image = axes.imshow(rows, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes)


def _norms(axes: Any, report: ComparisonReport, layers: Sequence[str]) -> None:
    axes.set_title("norm of the deltas", fontsize="medium")
    _name_layers(axes, layers)
    for number, delta in enumerate(report.deltas):
        for (key, title), style in zip(_CLASSES, ("-", "--"), strict=True):
            heights = [delta.layers.get(layer, {}).get(key, float("nan")) for layer in layers]
            axes.plot(
                range(len(layers)), heights, style, color=f"C{number % 10}", marker=".", label=f"{delta.name}: {title}"
            )
    axes.set_ylim(bottom=0)
    if layers:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))


def _name_layers(axes: Any, layers: Sequence[str]) -> None:
    step = -(-len(layers) // _MOST_TICKS) or 1
    prefixes = {layer.rpartition(".")[0] for layer in layers}
    shown = [layer.rpartition(".")[2] if len(prefixes) == 1 else layer for layer in layers]
    axes.set_xticks(
        range(0, len(layers), step), shown[::step], fontsize="small", rotation=0 if len(prefixes) == 1 else 90
    )


# --- the page -----------------------------------------------------------------------------------------------------

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#222;background:#fff}
svg{max-width:100%;height:auto}
table{border-collapse:collapse}th,td{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}"""


def _page(report: ComparisonReport, picture: str) -> str:
    heads = ("deltas", "class", "cosine", "norm ratio", "opposed signs", "tensors", "parameters", "")
    rows = [
        (f"{pair.first} · {pair.second}" + (f" · {layer}" if layer else ""), key, *_cells(found))
        for pair in report.pairs
        for layer, key, found in pair.rows(layers=True)
    ]
    skipped = [f"{one.name}: {one.reason}" for pair in report.pairs for one in pair.skipped]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><title>Interference of deltas</title>',
        f"<style>{_STYLE}</style></head><body><h1>Interference of deltas</h1>",
        picture[picture.index("<svg") :],
        "<table><thead>",
        _row(heads, "th"),
        "</thead><tbody>",
        *(_row(row, "td") for row in rows),
        "</tbody></table>",
    ]
    if skipped:
        parts += ["<h2>Not compared</h2><ul>", *(f"<li>{html.escape(line)}</li>" for line in skipped), "</ul>"]
    return "\n".join([*parts, "</body></html>", ""])


def _row(cells: Sequence[str], kind: str) -> str:
    return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"


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
