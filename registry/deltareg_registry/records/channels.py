"""Channels: names that move from version to version, by compare-and-set."""

from __future__ import annotations

from sqlalchemy import Connection, and_, delete, select, update

from deltareg.digest import Digest
from deltareg.errors import BadName
from deltareg.names import LATEST, Reference, is_channel
from deltareg.store import channel_moved
from deltareg_registry.access.principal import Principal
from deltareg_registry.database import now
from deltareg_registry.database.tables import tags, versions
from deltareg_registry.records.audit import record
from deltareg_registry.records.events import emit
from deltareg_registry.records.names import entries_of, entry_of
from deltareg_registry.records.namespaces import insert_if_absent, locked_repository

__all__ = ["remove_channel", "set_channel"]


def set_channel(
    connection: Connection,
    principal: Principal,
    channel: Reference,
    digest: Digest,
    expected: Digest | None,
    *,
    address: str | None = None,
) -> bool:
    """Let a channel name a published version, if it still leads to `expected` (None: to nothing).

    Returns whether that changed anything. Raises ChannelMoved where it leads elsewhere, NotFound where no version has
    the digest, BadName for a name that is no channel or is computed, as `latest` is.
    """
    tag = _name(channel)
    repository = locked_repository(connection, channel.namespace, channel.name)
    same = and_(tags.c.repository == repository, tags.c.tag == tag)
    row = connection.execute(select(tags.c.digest).where(same)).scalar_one_or_none()
    found = None if row is None else Digest(row)
    if found == digest:
        return False
    if found != expected:
        raise channel_moved(channel, found, expected)
    one = select(versions.c.id).where(versions.c.repository == repository, versions.c.digest == digest).limit(1)
    if connection.execute(one).scalar_one_or_none() is None:
        wanted = Reference(channel.namespace, channel.name, digest=digest)
        entry_of(entries_of(connection, repository, wanted), wanted)
    values = {"repository": repository, "tag": tag, "digest": digest, "updated": now()}
    if not insert_if_absent(connection, tags, values):
        connection.execute(update(tags).where(same).values(digest=digest, updated=values["updated"]))
    record(
        connection,
        principal,
        "channel.set",
        str(channel),
        namespace=channel.namespace,
        address=address,
        detail={"from": found, "to": digest},
    )
    emit(connection, channel.namespace, "channel.set", str(channel), {"from": found, "to": digest})
    return True


def remove_channel(
    connection: Connection, principal: Principal, channel: Reference, *, address: str | None = None
) -> None:
    """Drop a channel; the version that it leads to stays. Raises NotFound, BadName for what is no channel."""
    tag = _name(channel)
    repository = locked_repository(connection, channel.namespace, channel.name)
    found = entry_of(entries_of(connection, repository, channel), channel)
    connection.execute(delete(tags).where(tags.c.repository == repository, tags.c.tag == tag))
    record(
        connection,
        principal,
        "channel.remove",
        str(channel),
        namespace=channel.namespace,
        address=address,
        detail={"from": found.digest},
    )
    emit(connection, channel.namespace, "channel.remove", str(channel), {"from": found.digest})


def _name(channel: Reference) -> str:
    tag = channel.tag or LATEST
    if not is_channel(tag) or tag == LATEST:
        raise BadName(f"{tag!r} cannot be set", hint="a channel is a lower-case word other than latest")
    return tag
