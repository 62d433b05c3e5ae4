"""The catalog's tables in SQLite, through sqlite-utils."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator, Iterable
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from deltareg.catalog.rows import CatalogRow
from deltareg.catalog.words import WORDS, keys_of
from deltareg.errors import Busy, DeltaregError, DiskFull, NotAllowed
from deltareg.names import parse_reference

__all__ = ["SCHEMA_VERSION", "Tables", "memory_tables", "open_tables"]

SCHEMA_VERSION = 4
"""Raised with each change of the tables; tables of another version are made anew."""

_COLUMNS: dict[str, type] = {
    "number": int,
    "reference": str,
    "repository": str,
    "digest": str,
    "created": str,
    "manifest_size": int,
    "size": int,
    "raw_size": int,
    "parameters": int,
    "base": str,
    "fingerprint": str,
    "space": str,
    "tokenizer_core": str,
    "tokenizer_added": str,
    "namespace": str,
    "model_type": str,
    "licence": str,
    "description": str,
    "preset": str,
    "exactness": str,
    "yanked": str,
    "deprecated": str,
    "fault": str,
    "keys": str,
}
_INTERNAL = frozenset({"number", "repository", "keys"})
_BUSY_SECONDS = 10.0
_PRIMARY = 0xFF  # of an extended result code
_PASSING: dict[int, type[DeltaregError]] = {
    sqlite3.SQLITE_BUSY: Busy,
    sqlite3.SQLITE_LOCKED: Busy,
    sqlite3.SQLITE_PROTOCOL: Busy,
    sqlite3.SQLITE_FULL: DiskFull,
    sqlite3.SQLITE_READONLY: NotAllowed,
    sqlite3.SQLITE_PERM: NotAllowed,
    sqlite3.SQLITE_CANTOPEN: NotAllowed,
}
"""What SQLite reports of a database that is sound, and cannot be used now."""


class Tables:
    """`names`: a row for each version and channel. `words`: its full-text index. `source`: the signature of the index.

    Signature of what the rows were read from: the store's `index.json`.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @cached_property
    def _database(self) -> Any:
        # Any: the annotations of sqlite-utils leave too much open to check against.
        from sqlite_utils import Database  # 0.15 s, which what only reads need not wait for

        return Database(self._connection)

    def source(self) -> str | None:
        """What the rows were read from; None where the tables are absent or of another version."""
        if self._version() != SCHEMA_VERSION:
            return None
        return next((row[0] for row in self._connection.execute("select signature from source")), None)

    def prepare(self) -> None:
        """Make the tables, unless they are there in this version."""
        if self._version() == SCHEMA_VERSION:
            return
        self._connection.execute("drop table if exists words")
        for table in self._database.table_names():
            self._database[table].drop()
        self._database["names"].create(_COLUMNS, pk="number")
        self._database["names"].create_index(["reference"], unique=True)
        self._database["names"].create_index(["repository"])
        self._connection.executescript(WORDS)
        self._database["source"].create({"id": int, "signature": str}, pk="id")
        self._connection.execute(f"pragma user_version = {SCHEMA_VERSION}")

    def marks(self) -> dict[str, tuple[str, str | None, str | None]]:
        """What the index said of each name: its digest, why it was yanked, and why it was deprecated."""
        found = self._connection.execute("select reference, digest, yanked, deprecated from names").fetchall()
        return {reference: (digest, yanked, deprecated) for reference, digest, yanked, deprecated in found}

    def update(self, gone: Iterable[str], rows: Iterable[CatalogRow], source: str) -> None:
        """Drop names and put rows in; only then say what the rows were read from."""
        names = json.dumps(list(gone))
        # Immediate: the full-text index is read first, and SQLite waits for no lock once it has read.
        self._connection.execute("begin immediate")
        self._database["names"].delete_where("reference in (select value from json_each(?))", [names])
        known = dict(self._connection.execute("select reference, number from names").fetchall())
        # A name keeps its number, which is its age to a search, whatever is said of it anew.
        records = (_record(row, known.get(row.reference)) for row in rows)
        self._database["names"].insert_all(records, replace=True)
        self._database["source"].insert({"id": 1, "signature": source}, pk="id", replace=True)
        self._connection.commit()

    def rows(self, repository: str | None) -> list[CatalogRow]:
        """The rows of one repository or of all, without their channels."""
        where, arguments = ("where repository = ?", [repository]) if repository is not None else ("", [])
        return self._rows(where, arguments)

    def faulty(self) -> list[CatalogRow]:
        """The rows that could not be read, without their channels."""
        return self._rows("where fault is not null", [])

    def search(self, classes: Iterable[str], limit: int) -> tuple[list[list[CatalogRow]], int]:
        """For each class, a full-text expression, its rows, newest first; `limit` in all, and how many there are."""
        found: list[list[CatalogRow]] = []
        total = 0
        for expression in classes:
            counted = self._connection.execute("select count(*) from words where words match ?", [expression])
            count: int = counted.fetchone()[0]
            chosen = "select rowid from words where words match ? order by rowid desc limit ?"
            rest = f"where number in ({chosen}) order by number desc"
            rows = self._rows(rest, [expression, limit]) if count and limit else []
            total += count
            limit -= len(rows)
            found.append(rows)
        return found, total

    def _rows(self, rest: str, arguments: list[Any]) -> list[CatalogRow]:
        columns = [column for column in _COLUMNS if column not in _INTERNAL]
        found = self._connection.execute(f"select {', '.join(columns)} from names {rest}", arguments)
        return [CatalogRow.model_validate(dict(zip(columns, row, strict=True)), by_name=True) for row in found]

    def _version(self) -> int:
        return self._connection.execute("pragma user_version").fetchone()[0]


@contextmanager
def open_tables(path: Path, busy_seconds: float = _BUSY_SECONDS, *, read_only: bool = False) -> Generator[Tables]:
    """Open the database at `path`, making it where it is absent, unless it is only read.

    Waits `busy_seconds` for others that hold it. Raises Busy, DiskFull, NotAllowed; sqlite3.Error for a damaged one.
    """
    name = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    with _translated(path), closing(sqlite3.connect(name, timeout=busy_seconds, uri=True)) as connection:
        if not read_only:
            connection.execute("pragma journal_mode = wal")
            # So that a row that is replaced leaves the full-text index too.
            connection.execute("pragma recursive_triggers = on")
        yield Tables(connection)


@contextmanager
def memory_tables() -> Generator[Tables]:
    """Tables in memory, for where the database cannot be used."""
    with closing(sqlite3.connect(":memory:")) as connection:
        tables = Tables(connection)
        tables.prepare()
        yield tables


@contextmanager
def _translated(path: Path) -> Generator[None]:
    try:
        yield
    except sqlite3.Error as error:
        # Errors of the Python module itself have no code.
        kind = _PASSING.get(getattr(error, "sqlite_errorcode", 0) & _PRIMARY)
        if kind is None:
            raise
        raise kind(f"the catalog cannot be used now: {path}: {error}", cause=str(error), path=path) from error


def _record(row: CatalogRow, number: int | None) -> dict[str, Any]:
    known = row.model_dump(by_alias=False, exclude={"channels"})
    reference = parse_reference(row.reference)
    # What search leaves out, channels and what cannot be read, has no keys.
    keys = None if reference.version is None or row.fault is not None else keys_of(row)
    return {**known, "number": number, "repository": reference.repository, "keys": keys}
