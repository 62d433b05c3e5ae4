"""The index: every name of every delta that one may read, in lines that need nothing else to be searched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, select

from deltareg.names import LATEST, is_channel
from deltareg_registry.access.principal import Principal
from deltareg_registry.database.tables import namespaces, repositories, tags, versions
from deltareg_registry.records.readable import readable

__all__ = ["index_revision", "index_rows"]

_BATCH = 2000
_COLUMNS = (
    "digest",
    "manifest_size",
    "created",
    "yanked",
    "deprecated",
    "size",
    "raw_size",
    "parameters",
    "base",
    "fingerprint",
    "space",
    "tokenizer_core",
    "tokenizer_added",
    "namespace",
    "model_type",
    "licence",
    "description",
    "preset",
    "exactness",
)


def index_revision(connection: Connection, principal: Principal) -> str:
    """What changes whenever a name does that `principal` may read: 64 hexadecimal digits."""
    columns = namespaces.c
    wanted = select(columns.name, columns.created, columns.revision).where(readable(principal, columns.name))
    hashed = hashlib.sha256()
    for row in connection.execute(wanted.order_by(columns.name)):
        hashed.update(f"{row.name} {row.created} {row.revision}\n".encode())
    return hashed.hexdigest()


def index_rows(connection: Connection, principal: Principal) -> Iterator[dict[str, Any]]:
    """The versions and channels, by repository and then as texts; the columns of `versions` that search needs."""
    named = select(repositories.c.id, repositories.c.namespace, repositories.c.name).where(
        readable(principal, repositories.c.namespace)
    )
    found = connection.execute(named.order_by(repositories.c.namespace, repositories.c.name)).all()
    for start in range(0, len(found), _BATCH):
        batch = found[start : start + _BATCH]
        numbers = [row.id for row in batch]
        names: dict[int, dict[str, dict[str, Any]]] = {row.id: {} for row in batch}
        columns = [versions.c[name] for name in _COLUMNS]
        rows = connection.execute(
            select(versions.c.repository, versions.c.version, *columns).where(versions.c.repository.in_(numbers))
        )
        digests: dict[tuple[int, str], dict[str, Any]] = {}
        for row in rows.mappings():
            told = {name: row[name] for name in _COLUMNS}
            names[row["repository"]][row["version"]] = told
            digests[row["repository"], row["digest"]] = told
        moving = connection.execute(select(tags).where(tags.c.repository.in_(numbers)))
        for row in moving:
            led = digests.get((row.repository, row.digest))
            if led is not None and is_channel(row.tag) and row.tag != LATEST:
                channel = {"digest": row.digest, "manifest_size": led["manifest_size"], "created": row.updated}
                names[row.repository][row.tag] = channel
        for row in batch:
            for tag, told in sorted(names[row.id].items()):
                yield {"reference": f"{row.namespace}/{row.name}:{tag}", **told}
