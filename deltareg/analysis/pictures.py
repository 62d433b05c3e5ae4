"""Pictures of an analysis as files: PNG, SVG, or a page in HTML that holds picture and numbers."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deltareg.errors import InvalidArgument
from deltareg.store.files import write_atomically

__all__ = ["check_plot", "drawing", "listing", "page", "picture_of", "table", "write_picture"]

_FORMATS = ("png", "svg", "html")
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#222;background:#fff}
svg{max-width:100%;height:auto}
table{border-collapse:collapse}th,td{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}"""


def check_plot(path: Path) -> str:
    """What would be drawn into the file: png, svg or html.

    Raises InvalidArgument for another ending, a directory that is not there, and where matplotlib is not installed:
    before anything is computed.
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


def write_picture(goal: Path, draw: Callable[[str], bytes], describe: Callable[[str], str]) -> Path:
    """Write what `draw` makes of a kind (png, svg), or the page that `describe` makes of an SVG picture.

    Returns `goal`, where the old file stays until the new one is whole. Raises what `check_plot` raises; NotAllowed,
    DiskFull.
    """
    kind = check_plot(goal)
    picture = draw("svg" if kind == "html" else kind)
    if kind == "html":
        drawn = picture.decode()
        picture = describe(drawn[drawn.index("<svg") :]).encode(errors="backslashreplace")
    write_atomically(goal, picture, temporary=goal.with_name(f".{goal.name[:200]}.{os.getpid()}"))
    return goal


@contextmanager
def drawing() -> Generator[None]:
    """Settings under which the same numbers give the same bytes, with the same matplotlib."""
    from matplotlib import rc_context  # pyright: ignore[reportUnknownVariableType]

    # parse_math: a name may hold a $.
    settings: Any = {"svg.hashsalt": "deltareg", "svg.fonttype": "none", "text.parse_math": False}
    with rc_context(settings):
        yield


def picture_of(figure: Any, kind: str) -> bytes:
    """The bytes of a matplotlib figure, without a date."""
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def page(title: str, parts: Iterable[str]) -> str:
    """A page in HTML that needs no other file."""
    head = f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    body = f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
    return "\n".join(["<!doctype html>", head, body, *filter(None, parts), "</body></html>", ""])


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of a page."""
    return "\n".join(
        ["<table><thead>", _row(heads, "th"), "</thead><tbody>", *(_row(row, "td") for row in rows), "</tbody></table>"]
    )


def listing(title: str, lines: Sequence[str]) -> str:
    """A list of a page with its title; nothing where there are no lines."""
    if not lines:
        return ""
    items = [f"<li>{html.escape(line)}</li>" for line in lines]
    return "\n".join([f"<h2>{html.escape(title)}</h2><ul>", *items, "</ul>"])


def _row(cells: Sequence[str], kind: str) -> str:
    return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"
