"""Every route, asked by everybody: who gets in, who is told nothing, who is refused.

A new route needs a line in TABLE, or `test_every_route_has_its_line` fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import httpx2
import pytest
from sqlalchemy import insert, update

from deltareg.digest import sha256
from deltareg.store import Store
from deltareg_registry.access.principal import Scope
from deltareg_registry.app import ROUTERS, routes_of
from deltareg_registry.database import now
from deltareg_registry.database.tables import members, namespaces, tokens, webhooks
from deltareg_registry.records.namespaces import insert_if_absent
from tests.registry.deltas import publish_delta
from tests.servers.deltareg_server import RunningServer, running_server

ASKERS = ("anonymous", "reader", "publisher", "owner", "admin", "limited", "stranger", "revoked", "expired")
"""`limited` is a token of the owner that may only read; `stranger` owns another namespace."""


@dataclass(frozen=True)
class Row:
    """What each of ASKERS is answered where the namespace is private, and where it is public.

    `yes`: the route ran, whatever it made of the request; else the status.
    """

    private: str
    public: str


#                anonymous reader publisher owner admin limited stranger revoked expired
OPEN = Row(*["yes yes yes yes yes yes yes yes yes"] * 2)
"""It does not even look at the token."""
NOTHING = Row(*["yes yes yes yes yes yes yes 401 401"] * 2)
TOKEN = Row(*["401 yes yes yes yes yes yes 401 401"] * 2)
FULL_TOKEN = Row(*["401 yes yes yes yes 403 yes 401 401"] * 2)
READ = Row("401 yes yes yes yes yes 404 401 401", "yes yes yes yes yes yes yes 401 401")
MEMBERS = Row("401 yes yes yes yes yes 404 401 401", "401 yes yes yes yes yes yes 401 401")
PUBLISH = Row("401 403 yes yes yes 403 404 401 401", "401 403 yes yes yes 403 403 401 401")
OWN = Row("401 403 403 yes yes 403 404 401 401", "401 403 403 yes yes 403 403 401 401")
ADMIN = Row(*["401 403 403 403 yes 403 403 401 401"] * 2)
AUDIT = Row(*["401 403 403 yes yes 403 403 401 401"] * 2)


@dataclass(frozen=True)
class Line:
    """How a route is asked, and what it answers. What its path names has to be there: see PLACES and `prepare`."""

    row: Row
    json: Mapping[str, Any] | None = None
    content: bytes | None = None
    form: Mapping[str, Any] | None = None
    query: Mapping[str, str] = field(default_factory=dict)


PLACES: Mapping[str, str] = MappingProxyType(
    {
        "namespace": "acme",
        "name": "search",
        "version": "1.0.0",
        "user": "mia",
        "token": "00000000000000aa",
        "webhook": "00000000000000bb",
        "file": "style.css",
    }
)
"""What stands for the parts of paths."""

TABLE: Mapping[str, Line] = MappingProxyType(
    {
        "GET /": Line(NOTHING),
        "GET /static/{file}": Line(NOTHING),
        "GET /sign-in": Line(NOTHING),
        # The token that counts is the one that is filled in: here none.
        "POST /sign-in": Line(Row(*["401 401 401 401 401 401 401 401 401"] * 2)),
        "POST /sign-out": Line(NOTHING),
        "GET /d/{namespace}/{name}": Line(READ),
        "GET /fits": Line(NOTHING),
        "POST /fits": Line(NOTHING),
        "GET /compare": Line(NOTHING),
        "GET /n": Line(NOTHING),
        "POST /n": Line(FULL_TOKEN, form={"name": "more"}),
        "GET /n/{namespace}": Line(READ),
        "POST /n/{namespace}": Line(OWN, form={"public": "1"}),
        "POST /n/{namespace}/quota": Line(ADMIN, form={"bytes": ""}),
        "POST /n/{namespace}/members": Line(OWN, form={"user": "mia", "role": "reader"}),
        "POST /n/{namespace}/webhooks": Line(OWN, form={"url": "https://hooks.invalid/", "events": "version.publish"}),
        "POST /n/{namespace}/webhooks/{webhook}": Line(OWN, form={"action": "remove"}),
        "GET /tokens": Line(TOKEN),
        "POST /tokens": Line(FULL_TOKEN, form={"name": "new"}),
        "POST /tokens/{token}": Line(Row(*["401 404 404 404 yes 404 404 401 401"] * 2)),
        "GET /audit": Line(AUDIT, query={"namespace": "acme"}),
        "GET /healthz": Line(OPEN),
        "GET /readyz": Line(NOTHING),
        "GET /api/v1": Line(NOTHING),
        "GET /api/v1/openapi.json": Line(NOTHING),
        "GET /api/v1/whoami": Line(TOKEN),
        "GET /api/v1/namespaces": Line(NOTHING),
        "POST /api/v1/namespaces": Line(FULL_TOKEN, json={"name": "more"}),
        "GET /api/v1/namespaces/{namespace}": Line(READ),
        "PATCH /api/v1/namespaces/{namespace}": Line(OWN, json={}),
        "DELETE /api/v1/namespaces/{namespace}": Line(OWN),
        "PUT /api/v1/namespaces/{namespace}/quota": Line(ADMIN, json={"bytes": None}),
        "GET /api/v1/namespaces/{namespace}/pulls": Line(READ),
        "GET /api/v1/namespaces/{namespace}/members": Line(MEMBERS),
        "PUT /api/v1/namespaces/{namespace}/members/{user}": Line(OWN, json={"role": "reader"}),
        "DELETE /api/v1/namespaces/{namespace}/members/{user}": Line(OWN),
        "GET /api/v1/namespaces/{namespace}/webhooks": Line(OWN),
        "POST /api/v1/namespaces/{namespace}/webhooks": Line(
            OWN, json={"url": "https://hooks.invalid/", "events": ["version.publish"]}
        ),
        "PATCH /api/v1/namespaces/{namespace}/webhooks/{webhook}": Line(OWN, json={"enabled": False}),
        "DELETE /api/v1/namespaces/{namespace}/webhooks/{webhook}": Line(OWN),
        "POST /api/v1/namespaces/{namespace}/webhooks/{webhook}/test": Line(OWN),
        "GET /api/v1/namespaces/{namespace}/webhooks/{webhook}/deliveries": Line(OWN),
        "GET /api/v1/users": Line(ADMIN),
        "POST /api/v1/users": Line(ADMIN, json={"name": "someone"}),
        "PATCH /api/v1/users/{user}": Line(ADMIN, json={}),
        "POST /api/v1/users/{user}/tokens": Line(ADMIN, json={"name": "new"}),
        "GET /api/v1/tokens": Line(TOKEN),
        "POST /api/v1/tokens": Line(FULL_TOKEN, json={"name": "new"}),
        # The token is mia's: others are told that they have none of that id.
        "DELETE /api/v1/tokens/{token}": Line(Row(*["401 404 404 404 yes 404 404 401 401"] * 2)),
        "GET /api/v1/audit": Line(AUDIT, query={"namespace": "acme"}),
        "GET /api/v1/statistics": Line(TOKEN),
        "PUT /api/v1/deltas/{namespace}/{name}/versions/{version}": Line(PUBLISH, content=b"{}"),
    }
)
"""Each route of the server."""


@dataclass(frozen=True)
class World:
    """A server with a namespace, and a client for each who asks."""

    server: RunningServer
    clients: Mapping[str, httpx2.Client]

    def prepare(self, *, public: bool) -> None:
        """Put back what a request before has taken away."""
        hook = {"id": PLACES["webhook"], "namespace": "acme", "url": "https://hooks.invalid/", "secret": "whsec_"}
        member = {"namespace": "acme", "user": "mia", "role": "reader", "since": now()}
        with self.server.state.database.writing() as connection:
            connection.execute(update(namespaces).where(namespaces.c.name == "acme").values(public=public))
            connection.execute(update(tokens).where(tokens.c.id == PLACES["token"]).values(revoked=None))
            insert_if_absent(connection, webhooks, {**hook, "events": ["version.publish"], "created": now()})
            insert_if_absent(connection, members, member)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("roles")
    with running_server(directory / "server") as server:
        publish_delta(server.state, "acme/search:1.0.0", Store(directory / "local"))
        publish_delta(server.state, "other/search:1.0.0", Store(directory / "local"))
        asking = {
            "anonymous": None,
            "reader": server.user("rita", acme="reader"),
            "publisher": server.user("paul", acme="publisher"),
            "owner": server.user("olga", acme="owner"),
            "admin": server.token,
            "limited": server.user("olga", scopes=[Scope(namespace="acme", action="read")]),
            "stranger": server.user("sven", other="owner"),
            "revoked": server.user("olga"),
            "expired": server.user("olga"),
        }
        server.user("mia", acme="reader")
        with server.state.database.writing() as connection:
            for asker, column in (("revoked", "revoked"), ("expired", "expires")):
                kept = tokens.c.hash == sha256((asking[asker] or "").encode()).removeprefix("sha256:")
                connection.execute(update(tokens).where(kept).values({column: now()}))
        with server.state.database.writing() as connection:
            values = {"id": PLACES["token"], "user": "mia", "name": "mia's", "hash": "", "created": now()}
            connection.execute(insert(tokens).values({**values, "scopes": None}))
        with ExitStack() as stack:
            clients = {
                asker: stack.enter_context(server.client(token, anonymous=token is None))
                for asker, token in asking.items()
            }
            yield World(server, clients)


def test_every_route_has_its_line() -> None:
    assert sorted(TABLE) == sorted(routes_of(ROUTERS))


@pytest.mark.parametrize("public", [False, True], ids=["private", "public"])
@pytest.mark.parametrize("route", TABLE)
def test_each_asker_is_answered_as_the_table_says(world: World, route: str, public: bool) -> None:
    line = TABLE[route]
    expected = dict(zip(ASKERS, (line.row.public if public else line.row.private).split(), strict=True))
    world.prepare(public=public)
    assert {asker: outcome(world, route, line, asker, public=public) for asker in ASKERS} == expected


def outcome(world: World, route: str, line: Line, asker: str, *, public: bool) -> str:
    method, _, template = route.partition(" ")
    json = None if line.json is None else dict(line.json)
    path = template.format(**PLACES)
    form = None if line.form is None else dict(line.form)
    client = world.clients[asker]
    answer = client.request(method, path, json=json, content=line.content, data=form, params=dict(line.query))
    assert answer.status_code < 500, answer.text
    if answer.status_code < 400 and method != "GET":
        world.prepare(public=public)
    return str(answer.status_code) if answer.status_code in (401, 403, 404) else "yes"
