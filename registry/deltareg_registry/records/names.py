"""Versions and channels by name: lists of them, and what a name leads to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, and_, exists, select, tuple_

from deltareg.digest import Digest
from deltareg.errors import NotFound
from deltareg.names import LATEST, Reference, is_channel, latest_of
from deltareg.store import REFERRER_LIMIT, Entry, latest_tag
from deltareg_registry.access.principal import Principal
from deltareg_registry.database.tables import manifests, repositories, tags, versions
from deltareg_registry.records.cursors import read_cursor, write_cursor
from deltareg_registry.records.readable import readable

__all__ = ["Delta", "Page", "entries_of", "entry_of", "list_deltas", "referrers_of", "version_row"]

_MOST_REFERRERS = 100
_REFERRERS_SIZE = 2 << 20


@dataclass(frozen=True)
class Delta:
    """A repository that has versions. `latest` skips what is yanked; `updated` is when the last one was published."""

    namespace: str
    name: str
    latest: str
    versions: int
    updated: str


@dataclass(frozen=True)
class Page:
    """Some of the deltas, and the cursor of the next page; None after the last."""

    deltas: list[Delta]
    next_cursor: str | None


def list_deltas(
    connection: Connection, principal: Principal, *, namespace: str | None, cursor: str | None, limit: int
) -> Page:
    """The deltas that `principal` may read, by name. Raises InvalidArgument for a cursor that is none."""
    table = repositories.c
    wanted = select(table.id, table.namespace, table.name).where(
        exists().where(versions.c.repository == table.id), readable(principal, table.namespace)
    )
    if namespace is not None:
        wanted = wanted.where(table.namespace == namespace)
    if cursor is not None:
        after = read_cursor(cursor, ("", ""))
        wanted = wanted.where(tuple_(table.namespace, table.name) > tuple_(*after))
    rows = connection.execute(wanted.order_by(table.namespace, table.name).limit(limit + 1)).all()
    shown = rows[:limit]
    following = write_cursor((shown[-1].namespace, shown[-1].name)) if len(rows) > limit else None
    return Page(_described(connection, [row.id for row in shown]), following)


def entries_of(connection: Connection, repository: int, reference: Reference) -> list[Entry]:
    """The versions of a repository, which `reference` names, and the channels that lead to one, by name."""
    columns = versions.c
    found = connection.execute(
        select(
            columns.version, columns.digest, columns.manifest_size, columns.created, columns.yanked, columns.deprecated
        ).where(columns.repository == repository)
    ).all()
    named = Reference(reference.namespace, reference.name)
    entries = [
        Entry(
            named.with_tag(row.version), Digest(row.digest), row.manifest_size, row.created, row.yanked, row.deprecated
        )
        for row in found
    ]
    sizes = {row.digest: row.manifest_size for row in found}
    moving = connection.execute(
        select(tags.c.tag, tags.c.digest, tags.c.updated).where(tags.c.repository == repository)
    )
    # Other programs push whatever tags they like; of these, a channel is what is written as one and leads to a version.
    entries += [
        Entry(named.with_tag(row.tag), Digest(row.digest), sizes[row.digest], row.updated)
        for row in moving
        if is_channel(row.tag) and row.tag != LATEST and row.digest in sizes
    ]
    return sorted(entries)


def entry_of(entries: Iterable[Entry], wanted: Reference) -> Entry:
    """The entry that a version, a channel, `latest` (also: no tag) or a digest leads to. Raises NotFound."""
    known = list(entries)
    if wanted.digest is not None:
        found = next((entry for entry in known if entry.digest == wanted.digest), None)
    else:
        tag = wanted.tag or LATEST
        if tag == LATEST:
            tag = latest_tag(known) or tag
        found = next((entry for entry in known if entry.reference.tag == tag), None)
    if found is None:
        there = ", ".join(str(entry.reference.tag) for entry in known[-20:])
        raise NotFound(
            f"{wanted} is not in the registry",
            cause=f"{wanted.repository} has {there}" if there else f"{wanted.repository} has no version",
            hint=f"deltareg list {wanted.repository} --remote URL",
            reference=str(wanted),
        )
    return found


def version_row(connection: Connection, repository: int, reference: Reference) -> RowMapping:
    """All columns of a version. Raises NotFound, which tells what there is."""
    same = and_(versions.c.repository == repository, versions.c.version == reference.tag)
    row = connection.execute(select(versions).where(same)).mappings().one_or_none()
    if row is None:
        entry_of(entries_of(connection, repository, reference), reference)
        raise NotFound(f"{reference} does not name a version", hint="write namespace/name:1.2.3")
    return row


def referrers_of(
    connection: Connection, repository: int, digest: str, artifact_type: str | None = None
) -> list[RowMapping]:
    """The manifests whose subject is `digest`, those that came first in front: of those that are no larger than a
    referrer may be, the first hundred, of two megabytes together. Whoever publishes may push any number of them, with
    annotations as long as they are.
    """
    columns = manifests.c
    where = [columns.repository == repository, columns.subject == digest, columns.size <= REFERRER_LIMIT]
    if artifact_type is not None:
        where.append(columns.artifact_type == artifact_type)
    order = (columns.created, columns.digest)
    sizes = select(columns.digest, columns.size).where(*where).order_by(*order).limit(_MOST_REFERRERS)
    chosen: list[str] = []
    room = _REFERRERS_SIZE
    for row in connection.execute(sizes):
        room -= row.size
        if room < 0:
            break
        chosen.append(row.digest)
    wanted = select(
        columns.digest, columns.media_type, columns.size, columns.artifact_type, columns.annotations, columns.created
    ).where(columns.repository == repository, columns.digest.in_(chosen))
    return list(connection.execute(wanted.order_by(*order)).mappings())


def _described(connection: Connection, numbers: list[int]) -> list[Delta]:
    """The deltas with these numbers, by name."""
    columns = versions.c
    rows = connection.execute(
        select(columns.namespace, columns.name, columns.version, columns.yanked, columns.created).where(
            columns.repository.in_(numbers)
        )
    ).all()
    grouped: dict[tuple[str, str], list[tuple[str, bool, str]]] = {}
    for row in rows:
        one = (row.version, row.yanked is not None, row.created)
        grouped.setdefault((row.namespace, row.name), []).append(one)
    return [
        Delta(
            namespace,
            name,
            latest_of([version for version, _, _ in found], {version for version, yanked, _ in found if yanked}) or "",
            len(found),
            max(created for _, _, created in found),
        )
        for (namespace, name), found in sorted(grouped.items())
    ]
