"""What search looks at: a short row for each version, with numbers in the place of values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select, update

from deltareg_registry.database.tables import TERM_KINDS, searchable, terms
from deltareg_registry.records.fulltext import put_words
from deltareg_registry.records.namespaces import insert_if_absent

__all__ = ["make_searchable", "note_yank", "term_key", "term_numbers"]


def make_searchable(connection: Connection, version: int, row: Mapping[str, Any]) -> None:
    """Let search find a version, whose row in `versions` is given."""
    values = {kind: row[kind] for kind in TERM_KINDS if row[kind] is not None}
    for kind, value in values.items():
        insert_if_absent(connection, terms, {"kind": kind, "key": term_key(kind, value), "value": value})
    numbers = term_numbers(connection, values)
    connection.execute(
        insert(searchable).values(
            version=version,
            namespace=row["namespace"],
            name=row["name"],
            size=row["size"],
            yanked=row.get("yanked") is not None,
            **numbers,
        )
    )
    put_words(connection, {version: row})


def note_yank(connection: Connection, version: int, *, yanked: bool) -> None:
    """Let search know whether a version is yanked."""
    connection.execute(update(searchable).where(searchable.c.version == version).values(yanked=yanked))


def term_numbers(connection: Connection, values: Mapping[str, str]) -> dict[str, int]:
    """The numbers of terms by kind; those of values that no version has are absent."""
    kinds = {term_key(kind, value): kind for kind, value in values.items()}
    rows = connection.execute(select(terms.c.id, terms.c.key).where(terms.c.key.in_(sorted(kinds))))
    return {kinds[row.key]: row.id for row in rows}


def term_key(kind: str, value: str) -> str:
    """What finds a term, whatever the case of its letters."""
    return hashlib.sha256(f"{kind}={value.casefold()}".encode("utf-8", "surrogatepass")).hexdigest()
