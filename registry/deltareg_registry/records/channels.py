"""Channels: names that move from version to version, by compare-and-set."""

from __future__ import annotations

from sqlalchemy import Connection, delete

from deltareg.digest import Digest
from deltareg.errors import BadName
from deltareg.names import LATEST, Reference, is_channel
from deltareg.store import channel_moved
from deltareg_registry.access.principal import Principal
from deltareg_registry.database.tables import tags
from deltareg_registry.records.events import announce
from deltareg_registry.records.names import entries_of, entry_of
from deltareg_registry.records.namespaces import locked_repository
from deltareg_registry.records.tags import has_version_of, moving_digest, put_tag

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
    found = moving_digest(connection, repository, tag)
    if found == digest:
        return False
    if found != expected:
        raise channel_moved(channel, found, expected)
    if not has_version_of(connection, repository, digest):
        wanted = Reference(channel.namespace, channel.name, digest=digest)
        entry_of(entries_of(connection, repository, wanted), wanted)
    put_tag(connection, repository, tag, digest)
    announce(connection, principal, "channel.set", channel, {"from": found, "to": digest}, address=address)
    return True


def remove_channel(
    connection: Connection, principal: Principal, channel: Reference, *, address: str | None = None
) -> None:
    """Drop a channel; the version that it leads to stays. Raises NotFound, BadName for what is no channel."""
    tag = _name(channel)
    repository = locked_repository(connection, channel.namespace, channel.name)
    found = entry_of(entries_of(connection, repository, channel), channel)
    connection.execute(delete(tags).where(tags.c.repository == repository, tags.c.tag == tag))
    announce(connection, principal, "channel.remove", channel, {"from": found.digest}, address=address)


def _name(channel: Reference) -> str:
    tag = channel.tag or LATEST
    if not is_channel(tag) or tag == LATEST:
        raise BadName(f"{tag!r} cannot be set", hint="a channel is a lower-case word other than latest")
    return tag
