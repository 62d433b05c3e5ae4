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
from sqlalchemy import insert, select, update

from deltareg.digest import sha256
from deltareg.store import Store
from deltareg_registry.access.principal import Scope
from deltareg_registry.app import ROUTERS, routes_of
from deltareg_registry.database import now
from deltareg_registry.database.tables import members, namespaces, tags, tokens, versions, webhooks
from deltareg_registry.records.namespaces import insert_if_absent, repository_id
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


READABLE = "404 yes yes yes yes yes 404 401 401"
"""Where what is asked for is named outside the path, who may not read it is told that it is not there."""
SIGN_IN = Row("401 yes yes yes yes yes yes 401 401", NOTHING.public)
"""Programs of the OCI world sign in only where they are asked to: who is unknown is, unless something is public."""
UPLOAD = Row("401 403 404 404 404 403 404 401 401", "401 403 404 404 404 403 403 401 401")
"""Whoever may continue an upload is told that this one is not there."""
NOWHERE = Row(*["404 404 404 404 404 404 404 401 401"] * 2)
BOTH = {"first": "acme/search:1.0.0", "second": "acme/search:1.0.0"}


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
        "channel": "prod",
        "reference": "1.0.0",
        "identity": "00",
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
        "POST /d/{namespace}/{name}/versions/{version}": Line(PUBLISH, form={"action": "unyank"}),
        "POST /d/{namespace}/{name}/versions/{version}/channels": Line(PUBLISH, form={"channel": "stable"}),
        "GET /fits": Line(NOTHING),
        "POST /fits": Line(NOTHING),
        "GET /compare": Line(NOTHING),
        "GET /n": Line(NOTHING),
        "POST /n": Line(FULL_TOKEN, form={"name": "more"}),
        "GET /n/{namespace}": Line(READ),
        "POST /n/{namespace}": Line(OWN, form={"public": "1"}),
        "POST /n/{namespace}/signers": Line(OWN, form={"keys": ""}),
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
        # All of them ask from the same machine.
        "GET /metrics": Line(NOTHING),
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
        "GET /api/v1/search": Line(NOTHING),
        "GET /api/v1/index.ndjson": Line(NOTHING),
        "POST /api/v1/check": Line(NOTHING, json={}),
        "GET /api/v1/compare": Line(Row(READABLE, NOTHING.public), query=BOTH),
        "GET /api/v1/deltas": Line(NOTHING),
        "GET /api/v1/deltas/{namespace}/{name}": Line(READ),
        "GET /api/v1/deltas/{namespace}/{name}/resolve": Line(READ),
        "GET /api/v1/deltas/{namespace}/{name}/versions/{version}": Line(READ),
        "GET /api/v1/deltas/{namespace}/{name}/versions/{version}/signatures": Line(READ),
        "POST /api/v1/deltas/{namespace}/{name}/missing": Line(PUBLISH, json={"digests": []}),
        "PUT /api/v1/deltas/{namespace}/{name}/versions/{version}": Line(PUBLISH, content=b"{}"),
        "PUT /api/v1/deltas/{namespace}/{name}/versions/{version}/yank": Line(PUBLISH, json={"reason": "worse"}),
        "DELETE /api/v1/deltas/{namespace}/{name}/versions/{version}/yank": Line(PUBLISH),
        "PUT /api/v1/deltas/{namespace}/{name}/versions/{version}/deprecation": Line(PUBLISH, json={"reason": "old"}),
        "DELETE /api/v1/deltas/{namespace}/{name}/versions/{version}/deprecation": Line(PUBLISH),
        # A digest that no version has would be answered by 404; one that is none tells whoever may ask from others.
        "PUT /api/v1/deltas/{namespace}/{name}/channels/{channel}": Line(PUBLISH, json={"digest": "x"}),
        "DELETE /api/v1/deltas/{namespace}/{name}/channels/{channel}": Line(PUBLISH),
        "GET /v2/": Line(TOKEN),
        "GET /v2/token": Line(NOTHING),
        "GET /v2/{namespace}/{name}/blobs/{digest}": Line(READ),
        "DELETE /v2/{namespace}/{name}/blobs/{digest}": Line(OWN),
        "POST /v2/{namespace}/{name}/blobs/uploads": Line(PUBLISH),
        "POST /v2/{namespace}/{name}/blobs/uploads/": Line(PUBLISH),
        "GET /v2/{namespace}/{name}/blobs/uploads/{identity}": Line(UPLOAD),
        "PATCH /v2/{namespace}/{name}/blobs/uploads/{identity}": Line(UPLOAD),
        "PUT /v2/{namespace}/{name}/blobs/uploads/{identity}": Line(UPLOAD, query={"digest": "sha256:" + "0" * 64}),
        "DELETE /v2/{namespace}/{name}/blobs/uploads/{identity}": Line(UPLOAD),
        "GET /v2/{namespace}/{name}/manifests/{reference}": Line(READ),
        "PUT /v2/{namespace}/{name}/manifests/{reference}": Line(PUBLISH, content=b"{}"),
        "DELETE /v2/{namespace}/{name}/manifests/{reference}": Line(OWN),
        "GET /v2/{namespace}/{name}/tags/list": Line(READ),
        "GET /v2/{namespace}/{name}/referrers/{digest}": Line(SIGN_IN),
        "GET /v2/_catalog": Line(NOTHING),
        "GET /v2/{rest:path}": Line(NOWHERE),
        "POST /v2/{rest:path}": Line(NOWHERE),
        "PUT /v2/{rest:path}": Line(NOWHERE),
        "PATCH /v2/{rest:path}": Line(NOWHERE),
        "DELETE /v2/{rest:path}": Line(NOWHERE),
    }
)
"""Each route of the server."""


@dataclass(frozen=True)
class World:
    """A server with a namespace, and a client for each who asks."""

    server: RunningServer
    clients: Mapping[str, httpx2.Client]
    blob: str
    """The digest of one that is there."""

    def prepare(self, *, public: bool) -> None:
        """Put back what a request before has taken away."""
        hook = {"id": PLACES["webhook"], "namespace": "acme", "url": "https://hooks.invalid/", "secret": "whsec_"}
        member = {"namespace": "acme", "user": "mia", "role": "reader", "since": now()}
        with self.server.state.database.writing() as connection:
            connection.execute(update(namespaces).where(namespaces.c.name == "acme").values(public=public))
            connection.execute(update(tokens).where(tokens.c.id == PLACES["token"]).values(revoked=None))
            insert_if_absent(connection, webhooks, {**hook, "events": ["version.publish"], "created": now()})
            insert_if_absent(connection, members, member)
            channel = {"repository": repository_id(connection, "acme", "search"), "tag": PLACES["channel"]}
            digest = connection.execute(select(versions.c.digest).where(versions.c.namespace == "acme")).scalar_one()
            insert_if_absent(connection, tags, {**channel, "digest": digest, "updated": now()})


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
        with server.state.database.reading() as connection:
            config = connection.execute(select(versions.c.config).where(versions.c.namespace == "acme")).scalar_one()
        with ExitStack() as stack:
            clients = {
                asker: stack.enter_context(server.client(token, anonymous=token is None))
                for asker, token in asking.items()
            }
            yield World(server, clients, config)


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
    path = template.replace("{rest:path}", "nowhere").format(**PLACES, digest=world.blob)
    form = None if line.form is None else dict(line.form)
    client = world.clients[asker]
    answer = client.request(method, path, json=json, content=line.content, data=form, params=dict(line.query))
    assert answer.status_code < 500, answer.text
    if answer.status_code < 400 and method != "GET":
        world.prepare(public=public)
    return str(answer.status_code) if answer.status_code in (401, 403, 404) else "yes"
