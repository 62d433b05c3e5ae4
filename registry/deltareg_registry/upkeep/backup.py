"""A copy of a whole registry while it runs, and a registry from a copy, on the same or on another kind of database.

A copy is a directory: `database.ndjson.zst`, one row a line, read in one transaction, so that it is one state of the
registry; and the blobs that it names, in files by digest. Blobs never change, so a later copy into the same directory
brings what is new.
"""

from __future__ import annotations

import base64
import io
import json
import os
import secrets
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import zstandard
from pydantic import Field
from sqlalchemy import Connection, RowMapping, Table, func, insert, select, text, update

from deltareg.digest import Digest, parse_digest
from deltareg.errors import BadManifest, NotFound, OutputExists, UnsupportedFormat, translate_os_errors
from deltareg.manifest import Document
from deltareg.progress import SILENT, Progress
from deltareg_registry.database import Database, now
from deltareg_registry.database.tables import (
    CONDEMNED,
    blobs,
    manifests,
    metadata,
    namespaces,
    repository_blobs,
    users,
    versions,
)
from deltareg_registry.records.searchable import make_searchable
from deltareg_registry.storage import Storage, open_storage
from deltareg_registry.upkeep.batches import BATCH, BATCH_BYTES, Place, manifests_after

__all__ = ["CopyReport", "backup", "check_copy", "restore"]

_ROWS = "database.ndjson.zst"
_FORMAT = 1
_END = "end"
_STEP = 8 << 20
_THREADS = 4
_REVISIONS = 1 << 62
# What belongs to one server's work at the moment, and what search makes of the versions anew.
_LEFT_OUT = {"upkeep", "uploads", "searchable", "terms"}


class CopyReport(Document):
    """What was copied."""

    rows: int
    blobs: int = Field(description="blobs of the registry")
    copied: int = Field(description="those that were copied now")
    bytes: int = Field(description="bytes that were copied now")


def backup(database: Database, storage: Storage, output: Path, *, progress: Progress = SILENT) -> CopyReport:
    """Copy a registry into a directory, which may hold an older copy; that one stays whole until the end.

    Every blob is verified on the way. Raises NotFound, DigestMismatch where the registry itself is damaged; DiskFull,
    NotAllowed.
    """
    goal = open_storage(None, output)
    rows = output / _ROWS
    temporary = rows.with_name(f".{_ROWS}.{os.getpid()}")
    wanted: dict[Digest, int] = {}
    count = 0
    try:
        with translate_os_errors("write the copy", temporary), _packed(temporary) as file:
            for line in _lines(database, wanted):
                file.write(line)
                count += 1
        copied, size = _copy(storage, goal, wanted, progress)
        with translate_os_errors("write the copy", rows):
            temporary.replace(rows)
    finally:
        temporary.unlink(missing_ok=True)
    # The first line and the last are no rows.
    return CopyReport(rows=count - 2, blobs=len(wanted), copied=copied, bytes=size)


def check_copy(source: Path) -> None:
    """Raise NotFound, BadManifest or UnsupportedFormat where a directory holds no copy whose rows can be begun with."""
    next(_read(source), None)


def restore(source: Path, database: Database, storage: Storage, *, progress: Progress = SILENT) -> CopyReport:
    """Fill an empty registry from a copy: first the blobs, each verified, then all rows in one transaction.

    Raises OutputExists where the registry holds something already; NotFound, BadManifest, UnsupportedFormat for what is
    no copy; DigestMismatch where it is damaged.
    """
    _check_empty(database)
    kept = Storage(open_storage(None, source).store, root=source / "storage")
    wanted = {Digest(row["digest"]): int(row["size"]) for name, row, _ in _read(source) if name == blobs.name}
    copied, size = _copy(kept, storage, wanted, progress)
    count = 0
    with database.writing() as connection:
        for table, rows in _batches(source):
            connection.execute(insert(table), rows)
            count += len(rows)
        for row in connection.execute(select(versions)).mappings().all():
            make_searchable(connection, row["id"], {str(key): value for key, value in row.items()})
        if not database.is_sqlite:
            _count_on(connection)
        # What comes after the copy counts on from it, and so did what the copied registry had done since: to whoever
        # has an index of that, this one must not look the same.
        connection.execute(update(namespaces).values(revision=secrets.randbelow(_REVISIONS)))
    return CopyReport(rows=count, blobs=len(wanted), copied=copied, bytes=size)


def _lines(database: Database, wanted: dict[Digest, int]) -> Iterator[bytes]:
    """The rows of every table, those first that others point to, from one state of the database."""
    count = 0
    with database.reading() as connection:
        yield json.dumps({"format": _FORMAT, "created": now()}).encode() + b"\n"
        for table in metadata.sorted_tables:
            if table.name in _LEFT_OUT:
                continue
            for row in _rows(connection, table):
                if table is blobs:
                    wanted[Digest(row["digest"])] = row["size"]
                packed = {key: _packed_value(value) for key, value in row.items()}
                yield json.dumps([table.name, packed]).encode() + b"\n"
                count += 1
    yield json.dumps([_END, {"rows": count}]).encode() + b"\n"


def _rows(connection: Connection, table: Table) -> Iterator[RowMapping]:
    if table is manifests:
        last: Place | None = None
        while True:
            rows, last = manifests_after(connection, last, *table.columns)
            if last is None:
                return
            yield from rows
    wanted = select(table)
    # What the collector has condemned may have no bytes any more.
    if table is blobs:
        wanted = wanted.where(blobs.c.touched != CONDEMNED)
    elif table is repository_blobs:
        condemned = select(blobs.c.digest).where(blobs.c.touched == CONDEMNED)
        wanted = wanted.where(repository_blobs.c.digest.not_in(condemned))
    yield from connection.execution_options(yield_per=BATCH).execute(wanted).mappings()


def _packed_value(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _batches(source: Path) -> Iterator[tuple[Table, list[dict[str, Any]]]]:
    """The rows of a copy, some of one table at a time. Raises UnsupportedFormat, and what `_read` raises."""
    batch: list[dict[str, Any]] = []
    current: Table | None = None
    held = 0
    for name, row, length in _read(source):
        table = metadata.tables.get(name)
        if table is None:
            raise UnsupportedFormat(f"the copy has a table {name!r:.80}", hint="install a newer deltareg-registry")
        if current is not None and (table is not current or len(batch) >= BATCH or held + length > BATCH_BYTES):
            yield current, batch
            batch, held = [], 0
        current = table
        batch.append(_unpacked(table, row))
        held += length
    if current is not None:
        yield current, batch


def _unpacked(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    unknown = row.keys() - {column.name for column in table.columns}
    if unknown:
        raise UnsupportedFormat(
            f"the copy has columns that are not known here: {', '.join(sorted(unknown))}",
            hint="install a newer deltareg-registry",
        )
    return {key: _unpacked_value(value, table.columns[key].type.python_type is bytes) for key, value in row.items()}


def _unpacked_value(value: Any, binary: bool) -> Any:
    return base64.b64decode(value["base64"]) if binary and isinstance(value, dict) else value  # type: ignore[arg-type]


def _read(source: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Each row of a copy: its table, its values, and the characters of its line."""
    path = source / _ROWS
    if not path.is_file():
        raise NotFound(f"there is no copy of a registry in {source}", hint="name the directory that backup wrote")
    try:
        with translate_os_errors("read the copy", path), _unpacked_lines(path) as file:
            head = json.loads(next(file, ""))
            if head.get("format") != _FORMAT:
                raise UnsupportedFormat(f"{path} is of another format", hint="install a newer deltareg-registry")
            count, end = 0, None
            for line in file:
                name, row = json.loads(line)
                if name == _END:
                    end = row["rows"]
                    continue
                count += 1
                yield name, row, len(line)
            # A frame that was cut short ends like a whole one.
            if count != end:
                raise ValueError("its end is missing")
    except (zstandard.ZstdError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise BadManifest(f"{path} is damaged", cause=str(error), hint="take another copy") from error


def _check_empty(database: Database) -> None:
    with database.reading() as connection:
        if any(connection.execute(select(func.count()).select_from(one)).scalar_one() for one in (namespaces, users)):
            raise OutputExists(
                "the registry is not empty", hint="restore into a new --data directory or a new database"
            )


def _copy(source: Storage, goal: Storage, wanted: dict[Digest, int], progress: Progress) -> tuple[int, int]:
    """Copy the blobs that `goal` lacks; how many, and their bytes."""
    with progress.step("copy", sum(wanted.values())), ThreadPoolExecutor(_THREADS) as pool:
        moved = list(pool.map(partial(_copy_one, source, goal, progress), wanted.items()))
    return sum(size is not None for size in moved), sum(size or 0 for size in moved)


def _copy_one(source: Storage, goal: Storage, progress: Progress, blob: tuple[Digest, int]) -> int | None:
    digest, size = parse_digest(blob[0]), blob[1]
    try:
        if goal.size(digest) == size:
            progress.advance(size)
            return None
    except NotFound:
        pass
    goal.put_stream(digest, size, _pieces(source, digest, size, progress))
    return size


def _pieces(source: Storage, digest: Digest, size: int, progress: Progress) -> Iterator[bytes]:
    for start in range(0, size, _STEP):
        data = source.read_range(digest, start, min(_STEP, size - start))
        progress.advance(len(data))
        yield data


@contextmanager
def _unpacked_lines(path: Path) -> Generator[IO[str]]:
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as unpacked:
        yield io.TextIOWrapper(unpacked, encoding="utf-8")


@contextmanager
def _packed(path: Path) -> Generator[IO[bytes]]:
    with path.open("wb") as raw:
        os.fchmod(raw.fileno(), 0o600)  # hashes of tokens and secrets of webhooks are in it
        with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as file:
            yield file  # type: ignore[misc]
        raw.flush()
        os.fsync(raw.fileno())


def _count_on(connection: Any) -> None:
    """Let PostgreSQL number rows on from the highest that was restored."""
    for table in metadata.sorted_tables:
        for column in table.primary_key.columns:
            if column.autoincrement and len(table.primary_key.columns) == 1 and column.type.python_type is int:
                highest = f"select coalesce(max({column.name}), 0) + 1 from {table.name}"
                sequence = f"pg_get_serial_sequence('{table.name}', '{column.name}')"
                connection.execute(text(f"select setval({sequence}, ({highest}), false)"))
