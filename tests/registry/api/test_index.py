"""The index in one file: whole, sorted, and cheap where nothing has changed."""

from __future__ import annotations

import json
from typing import Any

import httpx2
from sqlalchemy import update

from deltareg.digest import Digest
from deltareg.names import parse_reference
from deltareg_registry.access.principal import ANONYMOUS, Principal, Role
from deltareg_registry.database.tables import namespaces
from deltareg_registry.records.channels import remove_channel, set_channel
from deltareg_registry.records.index import index_revision, index_rows
from deltareg_registry.records.marks import set_mark
from deltareg_registry.state import State
from tests.registry.deltas import OWNER
from tests.registry.rows import digest, put_versions
from tests.servers.deltareg_server import RunningServer

URL = "/api/v1/index.ndjson"


def put(state: State, *names: str) -> None:
    parsed = [parse_reference(name) for name in names]
    with state.database.writing() as connection:
        put_versions(connection, [{"namespace": one.namespace, "name": one.name, "version": one.tag} for one in parsed])


def told(state: State, principal: Principal = OWNER) -> list[str]:
    with state.database.reading() as connection:
        return [row["reference"] for row in index_rows(connection, principal)]


def revision(state: State, principal: Principal = OWNER) -> str:
    with state.database.reading() as connection:
        return index_revision(connection, principal)


def lines(answer: httpx2.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


def test_every_name_that_one_may_read_has_a_line_and_they_are_sorted(state: State) -> None:
    put(state, "zoo/a:1.0.0", "acme/b:1.10.0", "acme/b:1.9.0", "acme/a:1.0.0")
    with state.database.writing() as connection:
        channel = parse_reference("acme/b:prod")
        set_channel(connection, OWNER, channel, Digest(digest("acme/b:1.9.0")), None)
    assert told(state) == ["acme/a:1.0.0", "acme/b:1.10.0", "acme/b:1.9.0", "acme/b:prod", "zoo/a:1.0.0"]
    assert told(state, Principal("rita", roles={"zoo": Role.READER})) == ["zoo/a:1.0.0"]
    assert told(state, ANONYMOUS) == []


def test_revision_changes_with_every_change_of_a_name_and_with_nothing_else(state: State) -> None:
    put(state, "acme/a:1.0.0", "zoo/a:1.0.0")
    rita = Principal("rita", roles={"zoo": Role.READER})
    seen, hers = [revision(state)], revision(state, rita)
    version, channel = parse_reference("acme/a:1.0.0"), parse_reference("acme/a:prod")
    with state.database.writing() as connection:
        set_channel(connection, OWNER, channel, Digest(digest(str(version))), None)
    seen.append(revision(state))
    for mark in ("yanked", "deprecated"):
        with state.database.writing() as connection:
            set_mark(connection, OWNER, version, mark, "x")
        seen.append(revision(state))
    with state.database.writing() as connection:
        remove_channel(connection, OWNER, channel)
    seen.append(revision(state))
    put(state, "acme/a:1.1.0")
    seen.append(revision(state))
    assert len(set(seen)) == 6
    assert revision(state) == seen[-1]
    assert revision(state, rita) == hers
    with state.database.writing() as connection:
        connection.execute(update(namespaces).where(namespaces.c.name == "acme").values(public=True))
    assert revision(state, rita) != hers


def test_index_is_sent_once_and_then_only_when_something_changed(server: RunningServer) -> None:
    put(server.state, *(f"acme/a:1.{number}.0" for number in range(50)))
    with server.client() as client:
        plain = client.get(URL, headers={"Accept-Encoding": "identity"})
        packed = client.get(URL, headers={"Accept-Encoding": "br;q=1, gzip;q=0.5"})
        assert client.get(URL, headers={"Accept-Encoding": "gzip;q=0"}).headers.get("content-encoding") is None
        assert (plain.headers["content-type"], plain.headers.get("content-encoding")) == ("application/x-ndjson", None)
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.text == plain.text
        assert packed.headers["etag"] != plain.headers["etag"]
        for answer in (plain, packed):
            again = client.get(URL, headers={"If-None-Match": f'"x", {answer.headers["etag"]}'})
            assert (again.status_code, again.content) == (304, b"")
        put(server.state, "acme/a:2.0.0")
        fresh = client.get(URL, headers={"If-None-Match": plain.headers["etag"]})
        assert (fresh.status_code, len(lines(fresh))) == (200, 51)
    assert [line["reference"] for line in lines(plain)] == sorted(line["reference"] for line in lines(plain))
    assert lines(plain)[0]["fingerprint"] == digest("structure")
    assert "yanked" not in lines(plain)[0]


def test_one_never_gets_the_index_of_somebody_else(server: RunningServer) -> None:
    put(server.state, "acme/a:1.0.0")
    with server.client() as client:
        tag = client.get(URL).headers["etag"]
    with server.client(server.user("mallory")) as client:
        answer = client.get(URL, headers={"If-None-Match": tag})
        assert (answer.status_code, answer.text) == (200, "")
    with server.client(server.user("rita", acme="reader")) as client:
        raw = client.get(URL, headers={"Accept-Encoding": "gzip"})
        assert [line["reference"] for line in lines(raw)] == ["acme/a:1.0.0"]
