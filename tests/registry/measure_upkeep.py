"""What a registry's size costs its operator: `python -m tests.registry.measure_upkeep [DELTAS] [--postgresql]`.

Deltas are written straight to the tables, with their manifests, and their blobs straight to files: BLOBS small ones of
each, and one that nothing names. Printed are bytes of the tables for each delta, and what collecting, checking, a
backup and the index take. The files are small, so that all but the reading of bytes is measured.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

from sqlalchemy import Connection, insert, select, text

from deltareg.digest import canonical_json, sha256
from deltareg.manifest import CONFIG_TYPE, INVENTORY_TYPE, MANIFEST_TYPE, PACK_TYPE
from deltareg_registry.access.principal import Principal
from deltareg_registry.api.index import lines_of
from deltareg_registry.database import Database, at, now
from deltareg_registry.database.tables import (
    blobs,
    manifest_blobs,
    manifests,
    repository_blobs,
    versions,
)
from deltareg_registry.records.index import index_revision, index_rows
from deltareg_registry.storage import Storage, open_storage
from deltareg_registry.upkeep.backup import backup
from deltareg_registry.upkeep.collect import collect
from deltareg_registry.upkeep.inspect import inspect_registry
from tests.registry.measure_search import fill
from tests.servers.postgresql import serve_postgresql

DELTAS = 10_000
BLOBS = 4
_BATCH = 2_000
_GRACE = 3600
_OWNER = Principal("owner", admin=True)
_TYPES = (CONFIG_TYPE, INVENTORY_TYPE, *[PACK_TYPE] * (BLOBS - 2))


def put_content(connection: Connection, storage: Storage, rows: list[Mapping[str, Any]]) -> None:
    """Give versions a manifest and blobs, and leave one blob for each that no manifest names."""
    # So old that a collection takes what is not named.
    old = at(datetime.now(UTC) - timedelta(days=2))
    tables: dict[Any, list[dict[str, Any]]] = {blobs: [], repository_blobs: [], manifests: [], manifest_blobs: []}
    for row in rows:
        data = [f"blob {number} of {row['id']}".encode() for number in range(BLOBS + 1)]
        digests = [sha256(one) for one in data]
        for digest, one in zip(digests, data, strict=True):
            path = storage.path(digest)
            assert path is not None
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(one)
        repository = row["repository"]
        tables[blobs] += [
            {"digest": digest, "size": len(one), "created": old, "touched": old}
            for digest, one in zip(digests, data, strict=True)
        ]
        tables[repository_blobs] += [{"repository": repository, "digest": digest} for digest in digests]
        layers = [
            {"mediaType": kind, "digest": digest, "size": len(one)}
            for kind, digest, one in zip(_TYPES, digests, data, strict=False)
        ]
        content = canonical_json(
            {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": layers[0], "layers": layers[1:]}
        )
        digest = sha256(content)
        connection.execute(versions.update().where(versions.c.id == row["id"]).values(digest=digest))
        tables[manifests].append(
            {
                "repository": repository,
                "digest": digest,
                "media_type": MANIFEST_TYPE,
                "size": len(content),
                "annotations": {},
                "content": content,
                "created": old,
                "touched": old,
            }
        )
        tables[manifest_blobs] += [
            {"repository": repository, "manifest": digest, "digest": one} for one in digests[:BLOBS]
        ]
    for table, values in tables.items():
        connection.execute(insert(table), values)


def fill_all(database: Database, storage: Storage, count: int) -> None:
    """Versions with all that belongs to them."""
    fill(database, count)
    with database.reading() as connection:
        found = connection.execute(select(versions.c.id, versions.c.repository)).mappings().all()
    for start in range(0, len(found), _BATCH):
        with database.writing() as connection:
            put_content(connection, storage, [dict(row) for row in found[start : start + _BATCH]])


def sizes(database: Database) -> dict[str, int]:
    """Bytes by table, its indexes with it."""
    if database.is_sqlite:
        wanted = (
            "select coalesce(m.tbl_name, s.name), sum(s.pgsize) from dbstat s "
            "left join sqlite_master m on m.name = s.name group by 1"
        )
    else:
        wanted = "select relname, pg_total_relation_size(relid) from pg_stat_user_tables"
    with database.reading() as connection:
        return {name: int(size) for name, size in connection.execute(text(wanted)).all()}


def measure(database: Database, storage: Storage, count: int, scratch: Path) -> Iterator[tuple[str, str]]:
    """What is measured, and the figure."""
    with database.writing() as connection:
        connection.execute(text("analyze"))
    told = sizes(database)
    yield "tables with indexes, bytes of each delta", f"{sum(told.values()) / count:,.0f}"
    for name, size in sorted(told.items(), key=lambda one: -one[1])[:9]:
        yield f"  of these {name}", f"{size / count:,.0f}"
    named = BLOBS * count
    yield (
        "gc where nothing is to go (--dry-run with a long grace)",
        _each(lambda: collect(database, storage, 10 * 86400, dry_run=True), named + count, "blob"),
    )
    yield "gc of blobs that nothing names", _each(lambda: collect(database, storage, _GRACE), count, "blob that went")
    yield "gc, looking again", _each(lambda: collect(database, storage, _GRACE), named, "blob")
    yield "fsck --quick", _each(lambda: inspect_registry(database, storage, read=False), named, "blob")
    yield "fsck of small blobs", _each(lambda: inspect_registry(database, storage), named, "blob")
    yield "backup, the first", _each(lambda: backup(database, storage, scratch / "copy"), named, "blob")
    yield "backup again", _each(lambda: backup(database, storage, scratch / "copy"), named, "blob")
    rows = (scratch / "copy").glob("*.*")
    yield "the rows of the backup, bytes of each delta", f"{max(path.stat().st_size for path in rows) / count:,.0f}"
    with database.reading() as connection:
        yield "the index's ETag", f"{_seconds(lambda: index_revision(connection, _OWNER)) * 1000:.1f} ms"
        lines: list[bytes] = []
        seconds = _seconds(lambda: lines.extend(lines_of(index_rows(connection, _OWNER))))
    whole = b"".join(lines)
    packed = len(gzip.compress(whole, 6))
    yield "the index, made anew", f"{1e6 * seconds / count:.0f} µs a delta"
    yield "the index, bytes of each delta", f"{len(whole) / count:,.0f}, compressed {packed / count:,.0f}"


def _each(work: Callable[[], object], count: int, what: str) -> str:
    seconds = _seconds(work)
    return f"{seconds:.1f} s, {1e6 * seconds / count:.0f} µs a {what}"


def _seconds(work: Callable[[], object]) -> float:
    begun = perf_counter()
    work()
    return perf_counter() - begun


def main() -> None:
    """Measure one database and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.registry.measure_upkeep")
    parser.add_argument("deltas", type=int, nargs="?", default=DELTAS)
    parser.add_argument("--postgresql", action="store_true")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = f"sqlite:///{folder / 'registry.db'}"
        if chosen.postgresql:
            server = stack.enter_context(serve_postgresql())
            url = stack.enter_context(server.database()).replace("postgresql://", "postgresql+psycopg://")
        database = Database(url)
        stack.callback(database.close)
        database.upgrade()
        storage = open_storage(None, folder)
        fill_all(database, storage, chosen.deltas)
        print(f"{chosen.deltas:,} deltas of {BLOBS} blobs, {now()[:10]}, {database.engine.dialect.name}\n")
        print("| what | measured |\n|---|---|")
        for what, figure in measure(database, storage, chosen.deltas, folder):
            print(f"| {what} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
