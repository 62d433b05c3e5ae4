"""Tokens: 256 random bits, shown once. The registry keeps their SHA-256, which is enough for what cannot be guessed."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from deltareg.errors import InvalidArgument, NotSignedIn
from deltareg_registry.access.principal import Principal, Role, Scope, role_of
from deltareg_registry.database import from_now, now, parse_time
from deltareg_registry.database.tables import members, tokens, users

__all__ = [
    "PREFIX",
    "KeptToken",
    "expiry",
    "list_tokens",
    "make_token",
    "note_use",
    "principal_of",
    "revoke_token",
]

PREFIX = "drt_"
"""How every token begins, so that scanners of secrets know one."""

_USED_SECONDS = 60
_MOST_DAYS = 36500


@dataclass(frozen=True)
class KeptToken:
    """What is known of a token: all but itself."""

    id: str
    user: str
    name: str
    scopes: list[Scope] | None
    created: str
    expires: str | None
    revoked: str | None
    used: str | None


def make_token(
    connection: Connection,
    user: str,
    name: str,
    *,
    scopes: Sequence[Scope] | None = None,
    expires: str | None = None,
) -> tuple[str, str]:
    """Make a token for a user; return its id and the token itself, which nobody can read again."""
    secret = PREFIX + secrets.token_urlsafe(32)
    identity = secrets.token_hex(8)
    connection.execute(
        insert(tokens).values(
            id=identity,
            user=user,
            name=name,
            hash=_hash(secret),
            scopes=None if scopes is None else [scope.model_dump(by_alias=True) for scope in scopes],
            created=now(),
            expires=expires,
        )
    )
    return identity, secret


def revoke_token(connection: Connection, identity: str) -> None:
    """Let a token be good for nothing from now on, if it is good until now."""
    still = (tokens.c.id == identity, tokens.c.revoked.is_(None))
    connection.execute(update(tokens).where(*still).values(revoked=now()))


def list_tokens(connection: Connection, user: str | None = None, identity: str | None = None) -> list[KeptToken]:
    """The tokens of a user, or of everybody, in the order in which they were made; or the one of an id."""
    table = tokens.c
    wanted = select(
        table.id, table.user, table.name, table.scopes, table.created, table.expires, table.revoked, table.used
    ).order_by(table.created, table.id)
    if user is not None:
        wanted = wanted.where(table.user == user)
    if identity is not None:
        wanted = wanted.where(table.id == identity)
    return [
        KeptToken(
            row.id,
            row.user,
            row.name,
            None if row.scopes is None else [Scope.model_validate(one) for one in row.scopes],
            row.created,
            row.expires,
            row.revoked,
            row.used,
        )
        for row in connection.execute(wanted)
    ]


def expiry(expires: str | None, days: float | None) -> str | None:
    """When a token ends, given as a time or as a number of days from now on. Raises InvalidArgument."""
    if expires is not None and days is not None:
        raise InvalidArgument("a token's end is given twice", hint="give the time or the days")
    if days is not None:
        if not 0 < days <= _MOST_DAYS:
            raise InvalidArgument(f"{days} days are not allowed", cause=f"more than 0, at most {_MOST_DAYS}")
        return from_now(days * 86400)
    if expires is None:
        return None
    end = parse_time(expires)
    if end <= now():
        raise InvalidArgument(f"{end} has passed", hint="give a time to come")
    return end


def principal_of(connection: Connection, secret: str) -> tuple[Principal, bool]:
    """Who a token stands for, and whether it is time to note that it was used. Raises NotSignedIn."""
    columns = [tokens.c.id, tokens.c.name, tokens.c.user, tokens.c.scopes, tokens.c.expires, tokens.c.revoked]
    wanted = select(*columns, tokens.c.used, users.c.admin, users.c.disabled).join(users)
    row = connection.execute(wanted.where(tokens.c.hash == _hash(secret))).one_or_none()
    if row is None:
        raise NotSignedIn("the token is not known here", hint="check it, or ask for a new one")
    if row.revoked is not None or row.disabled is not None:
        raise NotSignedIn("the token was revoked", hint="ask an owner or an administrator for a new one")
    if row.expires is not None and row.expires <= now():
        raise NotSignedIn(f"the token expired at {row.expires}", hint="ask an owner or an administrator for a new one")
    found = connection.execute(select(members.c.namespace, members.c.role).where(members.c.user == row.user))
    roles: dict[str, Role] = {one.namespace: role_of(one.role) for one in found}
    stale = row.used is None or row.used < from_now(-_USED_SECONDS)
    scopes = None if row.scopes is None else tuple(Scope.model_validate(one) for one in row.scopes)
    return Principal(row.user, row.admin, row.id, row.name, row.expires, scopes, roles), stale


def note_use(connection: Connection, identity: str) -> None:
    """Note that a token was used now."""
    connection.execute(update(tokens).where(tokens.c.id == identity).values(used=now()))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
