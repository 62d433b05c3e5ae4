"""The catalog's tables in SQLite, through sqlite-utils."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator, Iterable
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from deltareg.catalog.rows import CatalogRow
from deltareg.errors import Busy, DeltaregError, DiskFull, NotAllowed
from deltareg.names import parse_reference

__all__ = ["SCHEMA_VERSION", "Tables", "open_tables"]

SCHEMA_VERSION = 1
"""Raised with each change of the tables; tables of another version are made anew."""

_COLUMNS: dict[str, type] = {
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
    "model_type": str,
    "licence": str,
    "description": str,
    "preset": str,
    "exactness": str,
    "fault": str,
}
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
    """`names`: a row for each version and channel. `source`: the signature of the index that they were read from."""

    def __init__(self, database: Any) -> None:
        # Any: the annotations of sqlite-utils leave too much open to check against.
        self._database = database

    def source(self) -> str | None:
        """What the rows were read from; None where the tables are absent or of another version."""
        if self._version() != SCHEMA_VERSION:
            return None
        return next((row["signature"] for row in self._database.query("select signature from source")), None)

    def prepare(self) -> None:
        """Make the tables, unless they are there in this version."""
        if self._version() == SCHEMA_VERSION:
            return
        for table in self._database.table_names():
            self._database[table].drop()
        self._database["names"].create(_COLUMNS, pk="reference")
        self._database["names"].create_index(["repository"])
        self._database["source"].create({"id": int, "signature": str}, pk="id")
        self._database.execute(f"pragma user_version = {SCHEMA_VERSION}")

    def digests(self) -> dict[str, str]:
        """The digest of each name."""
        return {row["reference"]: row["digest"] for row in self._database.query("select reference, digest from names")}

    def update(self, gone: Iterable[str], rows: Iterable[CatalogRow], source: str) -> None:
        """Drop names and put rows in; only then say what the rows were read from."""
        names = json.dumps(list(gone))
        self._database["names"].delete_where("reference in (select value from json_each(?))", [names])
        self._database["names"].insert_all(map(_record, rows), pk="reference", replace=True)
        self._database["source"].insert({"id": 1, "signature": source}, pk="id", replace=True)

    def rows(self, repository: str | None) -> list[CatalogRow]:
        """The rows of one repository or of all, without their channels."""
        where, arguments = ("where repository = ?", [repository]) if repository is not None else ("", [])
        columns = ", ".join(column for column in _COLUMNS if column != "repository")
        found = self._database.query(f"select {columns} from names {where}", arguments)
        return [CatalogRow.model_validate(record, by_name=True) for record in found]

    def _version(self) -> int:
        return self._database.execute("pragma user_version").fetchone()[0]


@contextmanager
def open_tables(path: Path, busy_seconds: float = _BUSY_SECONDS) -> Generator[Tables]:
    """Open the database at `path`, making it where it is absent.

    Waits `busy_seconds` for others that hold it. Raises Busy, DiskFull, NotAllowed; sqlite3.Error for a damaged one.
    """
    from sqlite_utils import Database  # 0.15 s, which commands that list nothing need not wait for

    with _translated(path), closing(sqlite3.connect(path, timeout=busy_seconds)) as connection:
        database = Database(connection)
        database.enable_wal()
        yield Tables(database)


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


def _record(row: CatalogRow) -> dict[str, Any]:
    known = row.model_dump(by_alias=False, exclude={"channels"})
    return {**known, "repository": parse_reference(row.reference).repository}
