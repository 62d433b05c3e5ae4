"""Versions written straight to the tables, many at once: what is tested is how they are found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, func, insert, select

from deltareg.digest import sha256
from deltareg_registry.database import now
from deltareg_registry.database.tables import TERM_KINDS, namespaces, repositories, searchable, terms, versions
from deltareg_registry.records.fulltext import put_words
from deltareg_registry.records.searchable import term_key

__all__ = ["digest", "put_versions"]

_DEFAULTS: Mapping[str, Any] = {
    "manifest_size": 900,
    "publisher": "owner",
    "yanked": None,
    "deprecated": None,
    "size": 1000,
    "raw_size": 2000,
    "parameters": 1000,
    "base": "hf://acme/base",
    "base_digest": "blake3:" + "0" * 64,
    "tokenizer_core": None,
    "tokenizer_added": None,
    "model_type": "bert",
    "licence": "apache-2.0",
    "description": None,
    "preset": "fast",
    "exactness": "exact",
}


def digest(text: str) -> str:
    """A digest for a word."""
    return str(sha256(text.encode()))


def put_versions(connection: Connection, rows: Iterable[Mapping[str, Any]], *, public: bool = False) -> None:
    """Publish versions; each row has `namespace`, `name` and `version`, and what else differs."""
    first = (connection.execute(select(func.max(versions.c.id))).scalar() or 0) + 1
    whole = [_whole(number, row) for number, row in enumerate(rows, first)]
    known = {(row.namespace, row.name): row.id for row in connection.execute(select(repositories))}
    there = set(connection.execute(select(namespaces.c.name)).scalars())
    fresh = dict.fromkeys(row["namespace"] for row in whole if row["namespace"] not in there)
    made = {"created": now(), "policy": {}, "public": public}
    if fresh:
        connection.execute(insert(namespaces), [{"name": name, **made} for name in fresh])
    wanted = dict.fromkeys(
        (row["namespace"], row["name"]) for row in whole if (row["namespace"], row["name"]) not in known
    )
    for place, (namespace, name) in enumerate(wanted, max(known.values(), default=0) + 1):
        known[namespace, name] = place
    if wanted:
        columns = ("id", "namespace", "name", "created")
        connection.execute(
            insert(repositories), [dict(zip(columns, (known[key], *key, now()), strict=True)) for key in wanted]
        )
    for row in whole:
        row["repository"] = known[row["namespace"], row["name"]]
    connection.execute(insert(versions), whole)
    numbers = _put_terms(connection, whole)
    connection.execute(insert(searchable), [_short(row, numbers) for row in whole])
    put_words(connection, {row["id"]: row for row in whole})


def _whole(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    name = f"{row['namespace']}/{row['name']}:{row['version']}"
    own = {"id": number, "created": now(), "digest": digest(name), "config": digest(f"config of {name}")}
    return {**_DEFAULTS, "fingerprint": digest("structure"), "space": digest("space"), **own, **row}


def _put_terms(connection: Connection, rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    wanted: dict[str, tuple[str, str]] = {}
    for kind, value in ((kind, row[kind]) for row in rows for kind in TERM_KINDS if row[kind] is not None):
        wanted.setdefault(term_key(kind, value), (kind, value))
    known = {row.key: row.id for row in connection.execute(select(terms.c.key, terms.c.id))}
    fresh = [{"key": key, "kind": kind, "value": value} for key, (kind, value) in wanted.items() if key not in known]
    if fresh:
        connection.execute(insert(terms), fresh)
    return {row.key: row.id for row in connection.execute(select(terms.c.key, terms.c.id))}


def _short(row: Mapping[str, Any], numbers: Mapping[str, int]) -> dict[str, Any]:
    found = {kind: None if row[kind] is None else numbers[term_key(kind, row[kind])] for kind in TERM_KINDS}
    place = {"version": row["id"], "namespace": row["namespace"], "name": row["name"], "size": row["size"]}
    return {**place, "yanked": row["yanked"] is not None, **found}
