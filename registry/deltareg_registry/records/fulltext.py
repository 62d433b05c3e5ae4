"""Words of versions, for search: FTS5 in SQLite, a GIN index of tsvectors in PostgreSQL.

Both find the same: a word of a query is in reference, base, description or model type, or begins one there; a word with
signs in it, such as `llama-3`, is several in a row.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, bindparam, false, text
from sqlalchemy.sql import column, select, table

from deltareg.catalog.words import split_words, words_in

__all__ = ["matching", "put_words"]

_FIELDS = ("reference", "base", "description", "model_type")
_WORD = re.compile(r"[^\W_]+")
# What PostgreSQL keeps of positions, and of a word.
_MOST_WORDS = 4000
_LONGEST = 500
_GAP = 50
_MOST_CHARACTERS = 20_000


def put_words(connection: Connection, rows: Mapping[int, Mapping[str, Any]]) -> None:
    """Index the words of versions, whose rows in `versions` are given by their ids."""
    if connection.dialect.name == "sqlite":
        places = ", ".join(f":{field}" for field in _FIELDS)
        statement = f"insert into words (rowid, {', '.join(_FIELDS)}) values (:version, {places})"
        found = [{"version": number, **_texts(row)} for number, row in rows.items()]
    else:
        statement = "insert into words (version, vector) values (:version, cast(:vector as tsvector))"
        found = [{"version": number, "vector": _vector(_texts(row).values())} for number, row in rows.items()]
    connection.execute(text(statement), found)


def matching(connection: Connection, version: ColumnElement[int], asked: str) -> ColumnElement[bool] | None:
    """Whether a version has all words of a text; None for an empty text. Raises InvalidArgument for too many words."""
    words = split_words(asked)
    words_in(asked)  # refuses too many of them
    if not words:
        return None
    phrases = {word: tokens for word in words if (tokens := _tokens(word))}
    if not phrases:
        # Signs alone are in no index.
        return false()
    if connection.dialect.name == "sqlite":
        expression = words_in(" ".join(phrases))
        found = select(column("rowid", BigInteger)).select_from(table("words"))
        return version.in_(found.where(text("words match :words").bindparams(bindparam("words", expression))))
    query = " & ".join(
        " <-> ".join([*(f"'{token}'" for token in most), f"'{last}':*"]) for *most, last in phrases.values()
    )
    found = select(column("version", BigInteger)).select_from(table("words"))
    return version.in_(found.where(text("vector @@ cast(:words as tsquery)").bindparams(bindparam("words", query))))


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    found = {
        "reference": f"{row['namespace']}/{row['name']}:{row['version']}",
        "base": row["base"],
        "description": row["description"] or "",
        "model_type": row["model_type"] or "",
    }
    return {field: str(value)[:_MOST_CHARACTERS] for field, value in found.items()}


def _vector(texts: Iterable[str]) -> str:
    """A tsvector of the words of several texts, so far from one another that no two are in a row."""
    places: dict[str, list[int]] = {}
    place = 1
    for one in texts:
        for token in _tokens(one)[:_MOST_WORDS]:
            places.setdefault(token, []).append(place)
            place += 1
        place += _GAP
    # PostgreSQL keeps 255 places of a word.
    return " ".join(f"'{token}':{','.join(map(str, found[:255]))}" for token, found in places.items())


def _tokens(given: str) -> list[str]:
    """The words of a text as FTS5 reads them: letters and digits, without case and accents."""
    plain = unicodedata.normalize("NFKD", given.casefold())
    return [token[:_LONGEST] for token in _WORD.findall("".join(filter(_stays, plain)))]


def _stays(char: str) -> bool:
    return not unicodedata.combining(char)
