"""Changing a recipe that people have written: comments, order, blank lines and line ends stay.

The file is cut at its headers, and only the piece that is meant is written anew. What comes out is read again, and is
written only if it says what was meant and nothing else.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self, cast

from deltareg.editing import replace_text
from deltareg.errors import BadRecipe, InvalidArgument, NotFound, OutputExists, translate_os_errors
from deltareg.recipe import SETTINGS_KEYS, Recipe, RecipeDelta, parse_recipe, read_recipe
from deltareg.spelling import did_you_mean

__all__ = ["SCENARIOS", "RecipeFile", "template"]

SCENARIOS: Mapping[int, str] = {
    1: "a general-purpose delta on a newly released base",
    2: "a task delta, such as medical, on a newly released base",
    3: "a general-purpose delta on a base that was pre-trained further",
    4: "several deltas, weighted, on one base",
}
"""The four scenarios of the paper (ParamΔ, arXiv 2504.21023), each with a template."""


_LINE = re.compile(r".*\n|.+")
_GAP = re.compile(r"(\r?\n){1,2}\Z")


@dataclass(frozen=True)
class _Piece:
    """Lines of a file: one table with the comments directly above it. `path` is empty in front of the first table."""

    path: tuple[str, ...]
    is_array: bool
    text: str


class RecipeFile:
    """The recipe in a `deltareg.toml`, as text that is to be changed."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._text = text
        self.recipe: Recipe = parse_recipe(text.encode(), path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The recipe in a file. Raises BadRecipe, which names every fault, NotAllowed."""
        read_recipe(path)
        with translate_os_errors("read the recipe", path):
            return cls(path, path.read_bytes().decode("utf-8"))

    @classmethod
    def new(cls, path: Path, text: str) -> Self:
        """A recipe that is to be written to `path`; a file that holds settings alone keeps them in front of it.

        Raises OutputExists where there is a recipe, BadRecipe where the file is no TOML.
        """
        if not path.exists():
            return cls(path, text)
        with translate_os_errors("read the settings", path):
            data = path.read_bytes()
        try:
            before = data.decode("utf-8")
            keys = tomllib.loads(before)
        except (ValueError, RecursionError) as error:
            raise BadRecipe(f"{path} is not valid TOML: {error}", cause=str(error), path=path) from error
        if not keys.keys() <= set(SETTINGS_KEYS):
            raise OutputExists(
                f"{path} holds a recipe already", hint="deltareg add changes it; -o FILE writes another", path=path
            )
        end = "\r\n" if "\r\n" in before else "\n"
        kept = before.rstrip()
        return cls(path, (kept + end * 2 if kept else "") + text.replace("\n", end))

    @property
    def text(self) -> str:
        """The text of the file."""
        return self._text

    def delta(self, ref: str) -> RecipeDelta | None:
        """The delta of that namespace/name, where the recipe has it."""
        return next((one for one in self.recipe.delta if one.ref == ref), None)

    def add(self, delta: RecipeDelta) -> RecipeDelta | None:
        """Put a delta behind the others; one that is there already is changed, and what it was is returned."""
        before = self.delta(delta.ref)
        if before is not None:
            self.replace(delta.ref, delta)
        else:
            pieces = self._pieces()
            place = _last(pieces, "delta") or _last(pieces, "build") or len(pieces)
            # It takes over the blank lines that end what is above: taking it out gives the same bytes again.
            above, blank = _without_blank_end("".join(piece.text for piece in pieces[:place]))
            gap = "\n\n" if above else ""
            lines = f"{gap}[[delta]]\n{_lines(delta)}".rstrip("\n")
            pieces[:place] = [_Piece(("delta",), True, above + _with_ends(lines, self._text) + blank)]
            self._take(pieces, [*self.recipe.delta, delta])
        return before

    def replace(self, ref: str, delta: RecipeDelta) -> None:
        """Put `delta` in the place of the one that is called `ref`. Raises NotFound."""
        before = self._named(ref)
        pieces = self._pieces()
        start, end = self._span(pieces, self.recipe.delta.index(before))
        whole = "".join(piece.text for piece in pieces[start:end])
        pieces[start:end] = [_Piece(("delta",), True, _changed(whole, delta))]
        self._take(pieces, [delta if one is before else one for one in self.recipe.delta])

    def remove(self, ref: str) -> RecipeDelta:
        """Take a delta out, with the comments directly above it. Raises NotFound."""
        before = self._named(ref)
        pieces = self._pieces()
        start, end = self._span(pieces, self.recipe.delta.index(before))
        above = _GAP.sub("", "".join(piece.text for piece in pieces[:start]))
        _, behind = _apart("".join(piece.text for piece in pieces[start:end]))
        pieces[:end] = [_Piece(("delta",), True, above + behind if above else behind.lstrip("\r\n"))]
        self._take(pieces, [one for one in self.recipe.delta if one is not before])
        return before

    def set_build(self, **values: str) -> None:
        """Give keys of `[build]` other values."""
        pieces = self._pieces()
        place = next((place for place, piece in enumerate(pieces) if piece.path == ("build",)), None)
        if place is None:
            raise self._by_hand()
        body, behind = _apart(pieces[place].text)
        document = _parse(_with_ends(body) + "\n")
        document["build"].update(values)
        changed = _with_ends(document.as_string().rstrip("\n"), body)
        pieces[place] = _Piece(("build",), False, changed + behind)
        self._take(pieces, self.recipe.delta, build={**self._tables()["build"], **values})

    def write(self) -> None:
        """Replace the file as a whole. Raises DiskFull, NotAllowed."""
        replace_text(self.path, self._text)

    def _named(self, ref: str) -> RecipeDelta:
        before = self.delta(ref)
        if before is None:
            names = [one.ref for one in self.recipe.delta]
            raise NotFound(
                f"{self.path} has no delta {ref}{did_you_mean(ref, names)}",
                cause=f"it has {', '.join(names) or 'none'}",
                path=self.path,
            )
        return before

    def _tables(self) -> dict[str, Any]:
        return tomllib.loads(self._text)

    def _pieces(self) -> list[_Piece]:
        return _cut(self._text)

    def _span(self, pieces: Sequence[_Piece], number: int) -> tuple[int, int]:
        """Where the pieces of a delta are: its table and the tables in it."""
        starts = [place for place, piece in enumerate(pieces) if piece.is_array and piece.path == ("delta",)]
        if len(starts) != len(self.recipe.delta):
            raise self._by_hand()
        start = starts[number]
        end = start + 1
        while end < len(pieces) and pieces[end].path[0] == "delta" and len(pieces[end].path) > 1:
            end += 1
        return start, end

    def _take(
        self, pieces: Sequence[_Piece], deltas: Sequence[RecipeDelta], build: Mapping[str, Any] | None = None
    ) -> None:
        """Take the changed text, if it says what was meant."""
        text = "".join(piece.text for piece in pieces)
        try:
            after = tomllib.loads(text)
        except ValueError as error:
            raise self._by_hand() from error
        wanted = {key: value for key, value in self._tables().items() if key != "delta"}
        wanted |= {} if build is None else {"build": build}
        recipe = parse_recipe(text.encode(), self.path)
        if {key: value for key, value in after.items() if key != "delta"} != wanted or recipe.delta != list(deltas):
            raise self._by_hand()
        self._text = text
        self.recipe = recipe

    def _by_hand(self) -> BadRecipe:
        return BadRecipe(
            f"{self.path} is written in a way that cannot be changed safely",
            cause="deltas are changed where each is a table [[delta]]",
            hint="edit it by hand",
            path=self.path,
        )


def template(scenario: int) -> str:
    """The template of a scenario. Raises InvalidArgument for an unknown one."""
    if scenario not in SCENARIOS:
        raise InvalidArgument(
            f"there is no scenario {scenario}", hint=f"scenarios are {', '.join(map(str, SCENARIOS))}"
        )
    return resources.files("deltareg").joinpath("templates", f"scenario-{scenario}.toml").read_text(encoding="utf-8")


def _cut(text: str) -> list[_Piece]:
    """The pieces of a text, one for each header."""
    # Not splitlines: it takes characters for line ends that TOML allows in comments and texts.
    lines = _LINE.findall(text)
    starts: list[tuple[int, tuple[str, ...], bool]] = []
    header = 0
    for number, line in enumerate(lines):
        # Inside a text or an array of several lines, what is between it and the last header does not parse by itself.
        if line.lstrip().startswith("[") and _parses("".join(lines[header:number])):
            header = number
            path, is_array = _header(line)
            above = number
            while above and lines[above - 1].lstrip().startswith("#"):
                above -= 1
            starts.append((above, path, is_array))
    ends = [*(start for start, _, _ in starts[1:]), len(lines)]
    first = starts[0][0] if starts else len(lines)
    pieces = [_Piece(("",), False, "".join(lines[:first]))]
    for (start, path, is_array), end in zip(starts, ends, strict=True):
        pieces.append(_Piece(path, is_array, "".join(lines[start:end])))
    return pieces


def _without_blank_end(text: str) -> tuple[str, str]:
    """A text, and the line ends at its end."""
    body = text.rstrip("\r\n")
    return body, text[len(body) :]


def _apart(text: str) -> tuple[str, str]:
    """The tables of a text, and what stands behind them: blank lines, and comments below these."""
    lines = _LINE.findall(text)
    end = max(number for number, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#"))
    while end < len(lines) and lines[end].lstrip().startswith("#"):
        end += 1
    body, _ = _without_blank_end("".join(lines[:end]))
    return body, text[len(body) :]


def _with_ends(text: str, like: str = "") -> str:
    """A text with line ends such as most of those in `like`."""
    plain = text.replace("\r\n", "\n")
    return plain.replace("\n", "\r\n") if like.count("\r\n") * 2 > like.count("\n") else plain


def _parses(text: str) -> bool:
    try:
        tomllib.loads(text)
    except ValueError:
        return False
    return True


def _header(line: str) -> tuple[tuple[str, ...], bool]:
    """The keys of a header, and whether its table is one of an array."""
    found: Any = tomllib.loads(line)
    path: list[str] = []
    while isinstance(found, dict) and found:
        key, found = next(iter(cast("dict[str, Any]", found).items()))
        path.append(key)
    return tuple(path), isinstance(found, list)


def _last(pieces: Sequence[_Piece], table: str) -> int | None:
    """The place behind the last piece of a table."""
    return next((place + 1 for place in reversed(range(len(pieces))) if pieces[place].path[0] == table), None)


def _lines(delta: RecipeDelta) -> str:
    import tomlkit

    table = tomlkit.document()
    for key, value in _values(delta).items():
        table[key] = _item(value)
    return table.as_string()


def _values(delta: RecipeDelta) -> dict[str, Any]:
    values = delta.model_dump(by_alias=True, exclude_none=True)
    return {key: value for key, value in values.items() if value != {}}


def _changed(text: str, delta: RecipeDelta) -> str:
    """The text of a delta's tables, with other values."""
    body, behind = _apart(text)
    document = _parse(_with_ends(body) + "\n")
    table = document["delta"][0]
    values = _values(delta)
    if values["weight"] == 1 and "weight" not in table:
        del values["weight"]
    _update(table, values)
    return _with_ends(document.as_string().rstrip("\n"), body) + behind


def _update(table: Any, values: Mapping[str, Any]) -> None:
    """Give a table these values; where one has them already, and its comments, nothing changes."""
    for key in [key for key in table if key not in values]:
        del table[key]
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            _update(table[key], cast("dict[str, Any]", value))
        elif key not in table or table[key] != value:
            table[key] = _item(value)


def _item(value: Any) -> Any:
    import tomlkit

    if not isinstance(value, dict):
        return value
    table = tomlkit.inline_table()
    for key, one in cast("dict[str, Any]", value).items():
        table[key] = _item(one)
    return table


def _parse(text: str) -> Any:
    import tomlkit

    return tomlkit.parse(text)
