"""Giving out tokens and taking them back, so that the audit log tells of it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from deltareg.errors import InvalidArgument
from deltareg_registry.access.principal import Principal, Scope
from deltareg_registry.access.tokens import KeptToken, list_tokens, make_token, revoke_token
from deltareg_registry.records.audit import record
from deltareg_registry.records.users import user_named

__all__ = ["issue_token", "withdraw_token"]


_NAME_LIMIT = 100


def issue_token(
    connection: Connection,
    principal: Principal,
    user: str,
    name: str,
    *,
    scopes: Sequence[Scope] | None = None,
    expires: str | None = None,
    address: str | None = None,
) -> tuple[KeptToken, str]:
    """Make a token for a user; return what is kept of it, and the token itself. Raises NotFound, InvalidArgument."""
    if not 0 < len(name) <= _NAME_LIMIT or not name.isprintable():
        raise InvalidArgument(f"{name[:_NAME_LIMIT]!r} cannot be a token's name", cause="1 to 100 printed characters")
    user_named(connection, user)
    identity, secret = make_token(connection, user, name, scopes=scopes, expires=expires)
    kept = list_tokens(connection, identity=identity)[0]
    told = None if scopes is None else [scope.model_dump(by_alias=True) for scope in scopes]
    detail = {"user": user, "name": name, "scopes": told, "expires": expires}
    record(connection, principal, "token.create", identity, address=address, detail=detail)
    return kept, secret


def withdraw_token(
    connection: Connection, principal: Principal, token: KeptToken, *, address: str | None = None
) -> None:
    """Let a token be good for nothing from now on."""
    if token.revoked is None:
        revoke_token(connection, token.id)
        detail = {"user": token.user, "name": token.name}
        record(connection, principal, "token.revoke", token.id, address=address, detail=detail)
