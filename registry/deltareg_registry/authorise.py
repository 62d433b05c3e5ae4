"""Each request is judged before its route runs: who asks, and whether the table of needs lets them."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import cast

from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.routing import APIRoute

from deltareg.errors import NotAllowed, NotFound, NotSignedIn
from deltareg.names import parse_reference
from deltareg_registry.access.policy import PAGES, ROUTES, Need
from deltareg_registry.access.principal import ANONYMOUS, Principal, Role
from deltareg_registry.access.tokens import note_use, principal_of
from deltareg_registry.database import Database
from deltareg_registry.records.namespaces import is_public, make_namespace
from deltareg_registry.state import State, address_of, state_of

__all__ = ["ANONYMOUS_TOKEN", "COOKIE", "authorise", "may_make", "principal_from"]

ANONYMOUS_TOKEN = "anonymous"
"""What programs of the OCI world bring that were told to get a token, and have no password."""

COOKIE = "deltareg_token"
"""The cookie in which a browser keeps its token. It counts for pages only."""

_ROLES = {Need.READ: Role.READER, Need.PUBLISH: Role.PUBLISHER, Need.CHANGE: Role.PUBLISHER, Need.OWN: Role.OWNER}
_LOOPBACK = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class _Asked:
    """What a request asks for, as far as its right to it is concerned."""

    need: Need
    namespace: str | None
    token: str | None
    address: str | None
    cookie: bool = False
    """Whether the token came in a cookie, which a browser sends long after the token has ended."""


async def authorise(request: Request) -> Principal:
    """Who asks; kept as `request.state.principal`. Raises NotSignedIn, NotAllowed, NotFound.

    A dependency of every router; asked a second time, it tells what it found. A namespace that is absent is made where
    whoever publishes to it may make one.
    """
    judged: Principal | None = getattr(request.state, "judged", None)
    if judged is not None:
        return judged
    state = state_of(request)
    route = cast(APIRoute, request.scope["route"])
    name = f"{'GET' if request.method == 'HEAD' else request.method} {route.path}"
    token, cookie = _token_of(request), False
    if token is None and name in PAGES:
        token = request.cookies.get(COOKIE)
        cookie = token is not None
    asked = _Asked(ROUTES[name], _namespace_of(request), token, address_of(request), cookie)
    request.state.token = token
    # In a thread: the database is not asked on the event loop.
    principal = await run_sync(_known, state, asked)
    # Kept before it is judged: the log, and the page of an error, tell who was refused.
    request.state.principal = request.state.visitor = principal
    if asked.need is not Need.NOTHING:
        principal = await run_sync(_judge, state, asked, principal)
        request.state.principal = principal
    request.state.judged = principal
    return principal


def principal_from(database: Database, token: str | None) -> Principal:
    """Who a token stands for; nobody known without one. Raises NotSignedIn."""
    if token is None:
        return ANONYMOUS
    with database.reading() as connection:
        principal, stale = principal_of(connection, token)
    if stale and principal.token is not None:
        with database.writing() as connection:
            note_use(connection, principal.token)
    return principal


def _known(state: State, asked: _Asked) -> Principal:
    try:
        return principal_from(state.database, asked.token)
    except NotSignedIn:
        if not asked.cookie:
            raise
        return ANONYMOUS


def _judge(state: State, asked: _Asked, principal: Principal) -> Principal:
    need = asked.need
    if need is Need.NOTHING or (need is Need.METRICS and asked.address in _LOOPBACK):
        return principal
    if need is Need.TOKEN:
        return _signed_in(principal)
    if need in (Need.ADMIN, Need.METRICS):
        if not (_signed_in(principal).admin and principal.unlimited):
            raise NotAllowed("only an administrator of the registry may do that", hint="ask one of them")
        return principal
    namespace = cast(str, asked.namespace)
    with state.database.reading() as connection:
        public = is_public(connection, namespace)
    if public is None and need is Need.PUBLISH and may_make(state, principal, namespace):
        with state.database.writing() as connection:
            make_namespace(connection, namespace, principal, public=state.settings.public, address=asked.address)
        return principal_from(state.database, asked.token)
    _check_role(principal, namespace, public, _ROLES[need])
    return principal


def _check_role(principal: Principal, namespace: str, public: bool | None, needed: Role) -> None:
    role = principal.role_in(namespace, public=bool(public))
    if public is not None and role >= needed:
        return
    if not principal.signed_in and not public:
        # Whether it is there is for those to know who may see it.
        raise NotSignedIn(
            f"there is no namespace {namespace} that everybody may read: the name is wrong, or it needs a token",
            hint="check the name, or deltareg login URL",
        )
    _signed_in(principal)
    # What one may not read, one is not told of either.
    if public is None or role is Role.NONE:
        raise NotFound(
            f"there is no namespace {namespace} that you may see",
            hint="check the name; if it is private, ask its owners to add you",
        )
    raise NotAllowed(
        f"you are {role.label} of {namespace}; that needs {needed.label}", hint=f"ask an owner of {namespace}"
    )


def may_make(state: State, principal: Principal, namespace: str) -> bool:
    """Whether whoever asks may make a namespace of this name, if it is free."""
    if not principal.signed_in:
        return False
    if principal.scopes is not None and not any(
        scope.namespace in ("*", namespace) and scope.action != "read" for scope in principal.scopes
    ):
        return False
    return principal.admin or state.settings.namespace_makers == "everybody"


def _signed_in(principal: Principal) -> Principal:
    if not principal.signed_in:
        raise NotSignedIn("that needs a token", hint="deltareg login URL")
    return principal


def _namespace_of(request: Request) -> str | None:
    namespace = request.path_params.get("namespace")
    if namespace is not None:
        parse_reference(f"{namespace}/{request.path_params.get('name', 'x')}")
    return namespace


def _token_of(request: Request) -> str | None:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return None if value.strip() == ANONYMOUS_TOKEN else value.strip()
    if scheme.lower() == "basic":
        # Programs of the OCI world know user and password: the password is the token, whoever the user is said to be.
        try:
            # Some of them sign in with empty texts where they were given none: that is nobody.
            return base64.b64decode(value, validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError) as error:
            raise NotSignedIn("the Authorization header is not understood", cause=str(error)) from error
    if scheme:
        raise NotSignedIn(f"authorization of the kind {scheme!r:.40} is not known", hint="send Bearer TOKEN")
    return None
