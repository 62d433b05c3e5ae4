"""The catalog: a table of what a store holds, kept in SQLite so that listing reads no artifact.

It is a cache. It notices by itself when the store's names changed, is rebuilt where it is damaged or of another
schema, and where it cannot be written its rows are computed from the store.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deltareg.catalog.mounts import refuse_network
from deltareg.catalog.rows import CatalogRow, describe
from deltareg.catalog.search import Query, SearchReport, ask
from deltareg.catalog.tables import Tables, memory_tables, open_tables
from deltareg.digest import Digest
from deltareg.errors import Busy, DiskFull, NotAllowed, translate_os_errors
from deltareg.names import parse_reference, version_key
from deltareg.store import Entry, FileLock, Store, channels_by_digest

__all__ = ["DAMAGED", "UNUSABLE", "Catalog", "published"]

DAMAGED: tuple[type[Exception], ...] = (sqlite3.DatabaseError, ValidationError)
"""What reading a damaged database raises."""
UNUSABLE: tuple[type[Exception], ...] = (NotAllowed, Busy, DiskFull, sqlite3.Error)
"""What a database raises that cannot be used now."""


class Catalog:
    """The rows of one store, cached in the database at `path`. Safe for many processes at once.

    Another program that holds the database is waited for `busy_seconds`; then the rows are computed from the store.
    Raises NetworkFilesystem where the database would lie on a network file system.
    """

    def __init__(self, path: Path, *, busy_seconds: float = 10) -> None:
        refuse_network(path)
        self.path = path
        self._busy_seconds = busy_seconds
        self._lock = FileLock(path.with_name(path.name + ".lock"))

    def rows(self, store: Store, repository: str | None = None) -> list[CatalogRow]:
        """The published versions, of one repository or of all, by name and then by version."""
        try:
            found = self._cached(store, repository)
        except UNUSABLE:
            entries = store.entries() if repository is None else store.entries_of(repository)
            found = [describe(store, entry) for entry in entries]
        return published(found)

    def search(self, store: Store, query: Query) -> SearchReport:
        """The published versions that `query` asks for. The seconds are those that the tables took."""
        with (
            suppress(*UNUSABLE, *DAMAGED),
            self._lock.shared(),
            open_tables(self.path, self._busy_seconds, read_only=True) as tables,
        ):
            # A fault may have been mended by a pull since; sound rows never change.
            if tables.source() == _signature(store) and not _mended(tables, store):
                return ask(tables, query)
        try:
            with self._lock.exclusive():
                try:
                    return self._searched_anew(store, query)
                except DAMAGED:
                    self._delete()
                    return self._searched_anew(store, query)
        except UNUSABLE:
            with memory_tables() as tables:
                _synchronise(tables, store)
                return ask(tables, query)

    def _searched_anew(self, store: Store, query: Query) -> SearchReport:
        with self._open() as tables:
            _synchronise(tables, store)
            if mended := _mended(tables, store):
                tables.update([], mended, str(tables.source()))
            return ask(tables, query)

    def reindex(self, store: Store) -> int:
        """Build the database anew from the store; return the number of names."""
        with self._lock.exclusive():
            self._delete()
            with self._open() as tables:
                return _synchronise(tables, store)

    def _cached(self, store: Store, repository: str | None) -> list[CatalogRow]:
        # Damage is mended below, under the exclusive lock.
        with self._lock.shared(), suppress(*DAMAGED), self._open() as tables:
            if tables.source() == _signature(store):
                return _select(tables, store, repository)
        with self._lock.exclusive():
            try:
                return self._refreshed(store, repository)
            except DAMAGED:
                self._delete()
                return self._refreshed(store, repository)

    def _refreshed(self, store: Store, repository: str | None) -> list[CatalogRow]:
        with self._open() as tables:
            _synchronise(tables, store)
            return _select(tables, store, repository)

    def _open(self) -> AbstractContextManager[Tables]:
        return open_tables(self.path, self._busy_seconds)

    def _delete(self) -> None:
        with translate_os_errors("remove the old catalog", self.path):
            for suffix in ("", "-wal", "-shm", "-journal"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def _signature(store: Store) -> str:
    return json.dumps([str(store.root.resolve()), store.signature()])


def _synchronise(tables: Tables, store: Store) -> int:
    """Make the tables say what the store's index says; return the number of names."""
    tables.prepare()
    # Taken before the index is read: should it change in between, the next reader synchronises again.
    signature = _signature(store)
    entries = {str(entry.reference): entry for entry in store.entries()}
    known = tables.marks()
    changed = [
        entry for name, entry in entries.items() if known.get(name) != (entry.digest, entry.yanked, entry.deprecated)
    ]
    # Search gives those first that were put in last.
    changed.sort(key=lambda entry: (entry.created, entry.reference.repository, str(entry.reference)))
    tables.update(known.keys() - entries, (describe(store, entry) for entry in changed), signature)
    return len(entries)


def _select(tables: Tables, store: Store, repository: str | None) -> list[CatalogRow]:
    # A fault may have been mended by a pull since; sound rows never change.
    return [row if row.fault is None else _anew(store, row) for row in tables.rows(repository)]


def _mended(tables: Tables, store: Store) -> list[CatalogRow]:
    """The rows that the tables call faulty, and that can be read now."""
    found = (
        describe(
            store,
            Entry(
                parse_reference(row.reference),
                Digest(row.digest),
                row.manifest_size,
                row.created,
                row.yanked,
                row.deprecated,
            ),
        )
        for row in tables.faulty()
    )
    return [row for row in found if row.fault is None]


def _anew(store: Store, row: CatalogRow) -> CatalogRow:
    entry = store.snapshot().entry(parse_reference(row.reference))
    return row if entry is None else describe(store, entry)


def published(rows: Iterable[CatalogRow]) -> list[CatalogRow]:
    """The versions among the rows of versions and channels, by name and then by version, each with its channels."""
    return sorted(_with_channels(rows), key=_place)


def _with_channels(rows: Iterable[CatalogRow]) -> list[CatalogRow]:
    """Versions only, each with the channels that point to it."""
    named = [(parse_reference(row.reference), row) for row in rows]
    channels = channels_by_digest((reference, row.digest) for reference, row in named)
    return [
        row.model_copy(update={"channels": channels.get((reference.repository, row.digest), [])})
        for reference, row in named
        if reference.version is not None
    ]


def _place(row: CatalogRow) -> Any:
    reference = parse_reference(row.reference)
    return reference.repository, version_key(str(reference.tag))
