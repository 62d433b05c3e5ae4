"""What the program prints: data on stdout as tables or JSON, everything else on stderr.

What comes from an artifact or a file name is not trusted: control characters are shown, not sent to the terminal.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from io import StringIO
from json import dumps
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltareg.cli.units import duration, number, ratio, size
from deltareg.errors import DeltaregError, translate_os_errors

if TYPE_CHECKING:
    from deltareg.manifest import Document

__all__ = [
    "describe",
    "drop_stdout",
    "hint",
    "plain_console",
    "print_error",
    "print_fields",
    "print_json",
    "print_line",
    "print_report",
    "print_table",
    "printable",
    "warn",
]

_UNLIMITED = 1 << 16
_STYLES = {"error": "bold red", "warning": "bold yellow", "hint": "bold cyan", "cause": "bold"}


def print_json(document: Document) -> None:
    """One JSON document on stdout."""
    _print_value(document.model_dump(mode="json"))


def print_report(
    report: Document,
    *,
    json: bool,
    leave_out: Iterable[str] = (),
    more: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> None:
    """A report as JSON, or as a field on each line, followed by `more`; `labels` are those that differ from names."""
    if json:
        print_json(report)
    else:
        print_fields({**describe(report, leave_out=leave_out, labels=labels), **(more or {})})


def print_line(text: str) -> None:
    """One line of text on stdout."""
    _write(printable(text) + "\n")


def print_fields(fields: Mapping[str, str]) -> None:
    """Labels and values, a pair on each line."""
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for label, value in fields.items():
        grid.add_row(Text(printable(label)), Text(printable(value)))
    _render(grid)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Iterable[str] = ()) -> None:
    """A table on stdout; the columns named in `right` hold numbers, those without any value are left out."""
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in (columns[place] for place in kept):
        justify: Literal["left", "right"] = "right" if column in set(right) else "left"
        table.add_column(column, justify=justify)
    for row in rows:
        table.add_row(*(Text(printable(row[place])) for place in kept))
    _render(table)


def describe(
    document: Document, *, leave_out: Iterable[str] = (), labels: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Labels and values of a report, whatever fields it has; those that are None or empty are left out."""
    skipped = set(leave_out)
    values = {name: getattr(document, name) for name in type(document).model_fields if name not in skipped}
    called = labels or {}
    return {
        called.get(name, name.replace("_", " ")): _shown(name, value)
        for name, value in values.items()
        if value not in (None, [], {})
    }


def print_error(error: DeltaregError, *, as_json: bool) -> None:
    """An error for people on stderr, and for programs on stdout too."""
    lines = [
        (f"error[{error.code}]", "error", error.message),
        ("cause", "cause", error.cause),
        ("hint", "hint", error.hint),
    ]
    explanation = error.data.get("explanation")
    for label, kind, text in lines:
        # A cause that the message has told already would only be read twice.
        if text and not (kind == "cause" and text in error.message):
            _note(label, kind, text)
        if kind == "error" and isinstance(explanation, list):
            # A server may have sent it.
            for line in cast("list[object]", explanation):
                _say(Text(f"  {printable(str(line))}"))
    if as_json:
        # What an error carries may be anything: a path, a reference, a weight that is no number.
        _print_value({"error": to_jsonable_python(error.as_dict(), fallback=str, inf_nan_mode="strings")})


def warn(text: str) -> None:
    """Something that the user should know, on stderr."""
    _note("warning", "warning", text)


def hint(text: str) -> None:
    """What the user may want to type next, on stderr."""
    _note("hint", "hint", text)


def printable(text: str) -> str:
    """`text` with control characters, line breaks too, and those that turn the direction of writing as escapes."""
    return "".join(char if _is_harmless(char) else char.encode("unicode_escape").decode("ascii") for char in text)


def drop_stdout() -> None:
    """Let what is still to be written to a closed stdout vanish."""
    # Python would complain when it flushes the stream at its end.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.__stdout__.fileno() if sys.__stdout__ else 1)
    os.close(null)


def plain_console(
    *, stderr: bool = False, file: StringIO | None = None, terminal: bool | None = None, width: int | None = None
) -> Console:
    """A console that highlights nothing of its own accord; with `NO_COLOR` it has no styles either."""
    colours = None if os.environ.get("NO_COLOR") else "auto"
    return Console(
        stderr=stderr, file=file, force_terminal=terminal, width=width, highlight=False, color_system=colours
    )


def _is_harmless(char: str) -> bool:
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _print_value(value: Any) -> None:
    # ASCII: file names that are no text stay representable, whatever the encoding of the terminal.
    _write(dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def _write(text: str) -> None:
    try:
        with translate_os_errors("write the output", "stdout"):
            sys.stdout.write(text)
            sys.stdout.flush()
    except DeltaregError as error:
        # The command has done its work; only the telling of it is not wanted to the end.
        if not isinstance(error.__cause__, BrokenPipeError):
            raise
        drop_stdout()


def _render(table: Table) -> None:
    # Lines as long as they come: a terminal breaks them, a pipe keeps them, and nothing is cut.
    rendered = StringIO()
    plain_console(file=rendered, terminal=sys.stdout.isatty(), width=_UNLIMITED).print(table)
    _write("".join(line.rstrip() + "\n" for line in rendered.getvalue().splitlines()))


def _note(label: str, kind: str, text: str) -> None:
    _say(Text.assemble((f"{label}: ", _STYLES[kind]), printable(text)))


def _say(line: Text) -> None:
    """One line on stderr."""
    # Rendered apart and written by hand: where nobody reads stderr any more, rich would end the program with a status
    # of its own.
    rendered = StringIO()
    plain_console(file=rendered, terminal=sys.stderr.isatty()).print(line, soft_wrap=True)
    with suppress(BrokenPipeError):
        sys.stderr.write(rendered.getvalue())
        sys.stderr.flush()


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return size(value) if _counts_bytes(name) else number(value)
    if isinstance(value, float):
        return duration(value) if name.endswith("seconds") else ratio(value)
    if isinstance(value, Mapping):
        shown = {str(key): _shown(name, item) for key, item in value.items()}  # type: ignore[misc]
        return ", ".join(f"{key} {item}" for key, item in shown.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(name, item) for item in value)  # type: ignore[misc]
    return str(value)


def _counts_bytes(name: str) -> bool:
    return name in ("bytes", "kinds", "size") or name.startswith("bytes_") or name.endswith(("_bytes", "_size"))
