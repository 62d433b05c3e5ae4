"""Tokens of users."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field
from sqlalchemy import Connection

from deltareg.errors import NotAllowed, NotFound
from deltareg.manifest import Document
from deltareg_registry.access.principal import Action, Principal, Scope, role_for
from deltareg_registry.access.tokens import KeptToken, expiry, list_tokens
from deltareg_registry.api.asking import PROBLEMS, Asking, problems
from deltareg_registry.api.bodies import bounded
from deltareg_registry.api.documents import DOCUMENT_LIMIT, NAME, PRINTED, Change, IdPath, UserQuery
from deltareg_registry.authorise import may_make
from deltareg_registry.records.namespaces import find_namespace
from deltareg_registry.records.tokens import issue_token, withdraw_token
from deltareg_registry.state import State, address_of, state_of

__all__ = [
    "GivenToken",
    "NewToken",
    "TokenList",
    "TokenRecord",
    "check_end",
    "give_token",
    "given_token",
    "token_record",
    "tokens_router",
]

tokens_router = APIRouter(
    prefix="/api/v1/tokens",
    tags=["tokens"],
    responses=PROBLEMS | problems(413),
    route_class=bounded(DOCUMENT_LIMIT),
)


class TokenRecord(Document):
    """What is known of a token: all but itself."""

    id: str
    user: str
    name: str
    scopes: list[Scope] | None = Field(description="null: all that the user may do")
    created: str
    expires: str | None
    revoked: str | None
    last_used: str | None = Field(description="to the minute")


class TokenList(Document):
    """The tokens of a user."""

    tokens: list[TokenRecord]


class GivenToken(TokenRecord):
    """A new token."""

    token: str = Field(description="shown this once")


class NewScope(Change):
    """What a token is to be limited to."""

    namespace: str = Field(pattern=rf"^\*$|{NAME}", max_length=64, description="a namespace, or * for all")
    action: Action = Field(description="read, publish or own: each includes those before it")


class NewToken(Change):
    """A token that is wanted."""

    name: str = Field(pattern=PRINTED, min_length=1, max_length=100, description="what it is for")
    scopes: list[NewScope] | None = Field(
        default=None, min_length=1, max_length=100, description="null: all that the user may do"
    )
    expires: str | None = Field(default=None, max_length=40, description="RFC 3339; null: never")
    days: Annotated[int, Field(ge=1, le=36500)] | None = Field(default=None, description="instead of `expires`")


@tokens_router.get("")
def tokens(request: Request, asking: Asking, user: UserQuery = None) -> TokenList:
    """Your tokens, or as an administrator those of a user."""
    if user is not None and user != asking.user and not (asking.admin and asking.unlimited):
        raise NotAllowed("only an administrator of the registry sees the tokens of others")
    with state_of(request).database.reading() as connection:
        return TokenList(tokens=[token_record(token) for token in list_tokens(connection, user or asking.user)])


@tokens_router.post("", status_code=201)
def create_token(request: Request, asking: Asking, wanted: NewToken) -> GivenToken:
    """Make a token for yourself that may do at most what you may. It is shown this once."""
    state = state_of(request)
    if not asking.unlimited:
        raise NotAllowed("a limited token cannot make tokens", hint="use one without scopes")
    assert asking.user is not None
    check_end(asking, wanted)
    with state.database.writing() as connection:
        for scope in wanted.scopes or ():
            _check_scope(connection, state, asking, scope)
        return give_token(connection, asking, asking.user, wanted, address_of(request))


@tokens_router.delete("/{token}", status_code=204)
def revoke(request: Request, asking: Asking, token: IdPath) -> None:
    """Revoke a token: one of your own, or as an administrator any. A limited token can revoke only itself."""
    with state_of(request).database.writing() as connection:
        found = list_tokens(connection, identity=token)
        if not found or not _may_revoke(asking, found[0]):
            raise NotFound(f"you have no token {token}")
        withdraw_token(connection, asking, found[0], address=address_of(request))


def give_token(
    connection: Connection, principal: Principal, user: str, wanted: NewToken, address: str | None
) -> GivenToken:
    """Make a token as it is wanted. Raises NotFound, InvalidArgument."""
    scopes = None
    if wanted.scopes is not None:
        scopes = [Scope(namespace=scope.namespace, action=scope.action) for scope in wanted.scopes]
    end = expiry(wanted.expires, wanted.days)
    kept, secret = issue_token(connection, principal, user, wanted.name, scopes=scopes, expires=end, address=address)
    return given_token(kept, secret)


def given_token(token: KeptToken, secret: str) -> GivenToken:
    """A new token as a document, with the token itself."""
    return GivenToken.model_validate({**token_record(token).model_dump(), "token": secret})


def token_record(token: KeptToken) -> TokenRecord:
    """A token as a document."""
    return TokenRecord(
        id=token.id,
        user=token.user,
        name=token.name,
        scopes=token.scopes,
        created=token.created,
        expires=token.expires,
        revoked=token.revoked,
        last_used=token.used,
    )


def _may_revoke(asking: Principal, token: KeptToken) -> bool:
    if asking.unlimited:
        return asking.admin or token.user == asking.user
    return asking.token == token.id


def check_end(asking: Principal, wanted: NewToken) -> None:
    """Raise NotAllowed for a token that would outlive the one it is made with: a stolen one would have no end."""
    end = expiry(wanted.expires, wanted.days)
    if asking.expires is not None and (end is None or end > asking.expires):
        raise NotAllowed(
            f"your token ends at {asking.expires}, and so does what is made with it",
            hint="give an earlier end, or use a token without one",
        )


def _check_scope(connection: Connection, state: State, asking: Principal, scope: NewScope) -> None:
    if scope.namespace == "*":
        return  # in each namespace it is worth what its user may do there
    found = find_namespace(connection, scope.namespace)
    if found is None:
        allowed = may_make(state, asking, scope.namespace)
    else:
        allowed = asking.role_in(found.name, public=found.public) >= role_for(scope.action)
    if not allowed:
        raise NotAllowed(
            f"you may not {scope.action} in {scope.namespace}, so no token of yours may", hint="ask its owners"
        )
