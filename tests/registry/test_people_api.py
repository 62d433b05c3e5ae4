"""Namespaces, members, users, tokens, statistics and the audit log over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from deltareg.store import Store
from deltareg_registry.access.principal import Scope
from deltareg_registry.database import parse_time
from deltareg_registry.records.namespaces import repository_id
from deltareg_registry.settings import ServerSettings
from tests.registry.deltas import publish_delta
from tests.registry.receiver import until
from tests.servers.deltareg_server import RunningServer, running_server

NAMESPACES = "/api/v1/namespaces"
KEY, UNKNOWN_CURVE = (
    private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for private in (derive_private_key(7, SECP256R1()), Ed25519PrivateKey.from_private_bytes(b"k" * 32))
)


@pytest.fixture
def owner(server: RunningServer) -> Iterator[httpx2.Client]:
    """A user who owns acme and rules nothing else."""
    with server.client(server.user("olga")) as client:
        assert client.post(NAMESPACES, json={"name": "acme"}).status_code == 201
        yield client


def refused(answer: httpx2.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def test_whoever_makes_a_namespace_owns_it(server: RunningServer, owner: httpx2.Client) -> None:
    assert owner.get(f"{NAMESPACES}/acme").json()["role"] == "owner"
    assert refused(owner.post(NAMESPACES, json={"name": "acme"})) == (409, "DR0309")
    assert refused(owner.post(NAMESPACES, json={"name": "Acme!"})) == (400, "DR0101")
    assert refused(owner.post(NAMESPACES, json={"nmae": "acme"})) == (400, "DR0101")
    limited = server.user("olga", scopes=[Scope(namespace="*", action="read")])
    with server.client(limited) as client:
        assert refused(client.post(NAMESPACES, json={"name": "more"})) == (403, "DR0300")


def test_only_administrators_make_namespaces_where_it_is_so_set(tmp_path: Path) -> None:
    settings = ServerSettings(data=tmp_path, namespace_makers="admins", public=True)
    with running_server(tmp_path / "server", settings) as server:
        with server.client(server.user("olga")) as client:
            assert refused(client.post(NAMESPACES, json={"name": "acme"})) == (403, "DR0300")
        with server.client() as client:
            assert client.post(NAMESPACES, json={"name": "acme"}).json()["public"] is True
            assert client.post(NAMESPACES, json={"name": "other", "public": False}).json()["public"] is False


def test_owners_open_a_namespace_and_set_its_rules(server: RunningServer, owner: httpx2.Client) -> None:
    acme = f"{NAMESPACES}/acme"
    with server.client(anonymous=True) as stranger:
        assert stranger.get(acme).status_code == 401
        assert owner.patch(acme, json={"public": True}).json()["public"] is True
        assert stranger.get(acme).json()["role"] == "reader"
        assert [each["name"] for each in stranger.get(NAMESPACES).json()["namespaces"]] == ["acme"]
    assert owner.get(acme).json()["policy"] == {"deletion": False, "signedBy": []}
    assert owner.patch(acme, json={"policy": {"deletion": True}}).status_code == 200
    changed = owner.patch(acme, json={"policy": {"signedBy": [KEY]}}).json()
    assert changed["policy"] == {"deletion": True, "signedBy": [KEY]}
    assert changed["public"] is True
    for wrong in ("no key", UNKNOWN_CURVE):
        assert refused(owner.patch(acme, json={"policy": {"signedBy": [wrong]}})) == (400, "DR0101")
    assert owner.patch(acme, json={"policy": {"signedBy": []}}).json()["policy"]["signedBy"] == []


def test_the_bytes_of_a_namespace_are_shown_beside_its_quota(
    server: RunningServer, owner: httpx2.Client, tmp_path: Path
) -> None:
    publish_delta(server.state, "acme/search:1.0.0", Store(tmp_path / "local"))
    used = owner.get(f"{NAMESPACES}/acme").json()["used"]
    assert used > 0
    assert owner.get(NAMESPACES).json()["namespaces"][0]["used"] == used
    assert refused(owner.put(f"{NAMESPACES}/acme/quota", json={"bytes": 1 << 40})) == (403, "DR0300")
    with server.client() as admin:
        assert admin.put(f"{NAMESPACES}/acme/quota", json={"bytes": used}).json()["quota"] == used
        assert refused(admin.put(f"{NAMESPACES}/none/quota", json={"bytes": 1})) == (404, "DR0002")
        assert refused(admin.put(f"{NAMESPACES}/acme/quota", json={"bytes": -1})) == (400, "DR0101")
        assert admin.get(f"{NAMESPACES}/acme").json()["quota"] == used
    assert refused(owner.delete(f"{NAMESPACES}/acme")) == (409, "DR0309")


def test_owners_look_after_members(server: RunningServer, owner: httpx2.Client) -> None:
    members = f"{NAMESPACES}/acme/members"
    rita = server.user("rita")
    assert owner.put(f"{members}/rita", json={"role": "reader"}).json()["role"] == "reader"
    assert owner.put(f"{members}/rita", json={"role": "publisher"}).json()["role"] == "publisher"
    assert [(each["user"], each["role"]) for each in owner.get(members).json()["members"]] == [
        ("olga", "owner"),
        ("rita", "publisher"),
    ]
    assert refused(owner.put(f"{members}/nobody", json={"role": "reader"})) == (404, "DR0002")
    assert refused(owner.put(f"{members}/rita", json={"role": "king"})) == (400, "DR0101")
    assert refused(owner.delete(f"{members}/olga")) == (409, "DR0309")
    with server.client(rita) as client:
        assert client.get(members).status_code == 200
        assert owner.delete(f"{members}/rita").status_code == 204
        assert client.get(members).status_code == 404
    assert refused(owner.delete(f"{members}/rita")) == (404, "DR0002")


def test_administrators_look_after_users(server: RunningServer) -> None:
    users = "/api/v1/users"
    with server.client() as admin:
        assert admin.post(users, json={"name": "rita"}).json()["admin"] is False
        assert refused(admin.post(users, json={"name": "rita"})) == (409, "DR0309")
        given = admin.post(f"{users}/rita/tokens", json={"name": "laptop"}).json()
        assert refused(admin.post(f"{users}/nobody/tokens", json={"name": "laptop"})) == (404, "DR0002")
        with server.client(given["token"]) as client:
            assert refused(client.get(users)) == (403, "DR0300")
            assert admin.patch(f"{users}/rita", json={"admin": True}).json()["admin"] is True
            assert client.get(users).status_code == 200
            assert admin.patch(f"{users}/rita", json={"disabled": True}).json()["disabled"] is not None
            assert refused(client.get(users)) == (401, "DR0303")
        assert refused(admin.patch(f"{users}/owner", json={"admin": False})) == (409, "DR0309")
        first = admin.get(users, params={"limit": 1}).json()
        second = admin.get(users, params={"limit": 1, "cursor": first["cursor"]}).json()
        assert [each["name"] for page in (first, second) for each in page["users"]] == ["owner", "rita"]
        assert second["cursor"] is None


def test_tokens_are_shown_once_and_end(server: RunningServer, owner: httpx2.Client) -> None:
    made = owner.post("/api/v1/tokens", json={"name": "ci", "days": 2})
    assert made.status_code == 201
    given = made.json()
    left = datetime.fromisoformat(given["expires"]) - datetime.now(UTC)
    assert 1.9 < left.total_seconds() / 86400 <= 2
    with server.client(given["token"]) as client:
        assert client.get("/api/v1/whoami").json()["token"]["id"] == given["id"]
    (kept,) = [each for each in owner.get("/api/v1/tokens").json()["tokens"] if each["id"] == given["id"]]
    assert "token" not in kept and kept["lastUsed"] is not None
    assert parse_time(kept["lastUsed"]) >= kept["created"]
    assert owner.delete(f"/api/v1/tokens/{given['id']}").status_code == 204
    with server.client(given["token"]) as client:
        assert refused(client.get("/api/v1/whoami")) == (401, "DR0303")
    for wrong in ({"days": 1, "expires": "2100-01-01"}, {"expires": "2001-01-01"}, {"expires": "soon"}, {"days": 0}):
        assert refused(owner.post("/api/v1/tokens", json={"name": "ci", **wrong})) == (400, "DR0101"), wrong


def test_a_token_may_do_at_most_what_its_maker_may(server: RunningServer, owner: httpx2.Client) -> None:
    def ask(namespace: str, action: str) -> httpx2.Response:
        scopes = [{"namespace": namespace, "action": action}]
        return owner.post("/api/v1/tokens", json={"name": "ci", "scopes": scopes})

    with server.client() as admin:
        admin.post(NAMESPACES, json={"name": "open", "public": True})
        admin.post(NAMESPACES, json={"name": "closed"})
        assert admin.post(NAMESPACES, json={"name": "second"}).status_code == 201
        assert admin.put(f"{NAMESPACES}/second/members/olga", json={"role": "publisher"}).status_code == 200
    allowed = [("acme", "own"), ("second", "publish"), ("open", "read"), ("*", "own"), ("yet-to-come", "publish")]
    assert [ask(*each).status_code for each in allowed] == [201] * 5
    for namespace, action in (("second", "own"), ("open", "publish"), ("closed", "read")):
        assert refused(ask(namespace, action)) == (403, "DR0300"), namespace
    assert refused(ask("acme", "everything")) == (400, "DR0101")
    limited = ask("acme", "own").json()["token"]
    with server.client(limited) as client:
        assert refused(client.post("/api/v1/tokens", json={"name": "more"})) == (403, "DR0300")
        assert client.get(f"{NAMESPACES}/acme/webhooks").status_code == 200
        assert client.get(f"{NAMESPACES}/second").status_code == 404


def test_a_limited_token_revokes_only_itself(server: RunningServer, owner: httpx2.Client) -> None:
    scopes = [{"namespace": "acme", "action": "read"}]
    first = owner.post("/api/v1/tokens", json={"name": "first"}).json()
    limited = owner.post("/api/v1/tokens", json={"name": "limited", "scopes": scopes}).json()
    with server.client(limited["token"]) as client:
        assert refused(client.delete(f"/api/v1/tokens/{first['id']}")) == (404, "DR0002")
        assert client.delete(f"/api/v1/tokens/{limited['id']}").status_code == 204
        assert client.get("/api/v1/whoami").status_code == 401
    with server.client(server.user("rita")) as client:
        assert refused(client.delete(f"/api/v1/tokens/{first['id']}")) == (404, "DR0002")
        assert refused(client.get("/api/v1/tokens", params={"user": "olga"})) == (403, "DR0300")
    with server.client() as admin:
        assert len(admin.get("/api/v1/tokens", params={"user": "olga"}).json()["tokens"]) == 3
        assert admin.delete(f"/api/v1/tokens/{first['id']}").status_code == 204


def test_owners_read_the_audit_log_of_their_namespaces_only(server: RunningServer, owner: httpx2.Client) -> None:
    with server.client() as admin:
        admin.post(NAMESPACES, json={"name": "other"})
        owner.patch(f"{NAMESPACES}/acme", json={"public": True})
        every = admin.get("/api/v1/audit").json()["records"]
        assert {each["namespace"] for each in every} == {"acme", "other", None}
        assert len(admin.get("/api/v1/audit", params={"namespace": "other"}).json()["records"]) == 1
    mine = owner.get("/api/v1/audit").json()["records"]
    assert [(each["action"], each["actor"], each["address"]) for each in mine] == [
        ("namespace.change", "olga", "127.0.0.1"),
        ("namespace.create", "olga", "127.0.0.1"),
    ]
    assert refused(owner.get("/api/v1/audit", params={"namespace": "other"})) == (403, "DR0300")
    assert refused(owner.get("/api/v1/audit", params={"since": "yesterday"})) == (400, "DR0101")
    first = owner.get("/api/v1/audit", params={"limit": 1}).json()
    second = owner.get("/api/v1/audit", params={"limit": 1, "cursor": first["cursor"]}).json()
    assert first["records"] + second["records"] == mine and second["cursor"] is None
    assert owner.get("/api/v1/audit", params={"until": mine[0]["time"]}).json()["records"] == mine[1:]


def test_statistics_count_what_one_may_read(server: RunningServer, owner: httpx2.Client, tmp_path: Path) -> None:
    local = Store(tmp_path / "local")
    digest = publish_delta(server.state, "acme/search:1.0.0", local)
    publish_delta(server.state, "acme/copy:1.0.0", local)
    publish_delta(server.state, "other/search:1.0.0", local)
    with server.state.database.reading() as connection:
        repository = repository_id(connection, "acme", "search")
    for _ in range(3):
        server.state.pulls.count(repository, digest)
    until(lambda: owner.get("/api/v1/statistics").json()["total"]["pulls"] == 3)
    mine = owner.get("/api/v1/statistics").json()
    (acme,) = mine["namespaces"]
    assert (acme["namespace"], acme["repositories"], acme["versions"], acme["pulls"]) == ("acme", 2, 2, 3)
    assert mine["total"]["bytes"] == acme["bytes"] > 0
    with server.client() as admin:
        every = admin.get("/api/v1/statistics", params={"limit": 1}).json()
    assert [each["namespace"] for each in every["namespaces"]] == ["acme"] and every["cursor"] == "acme"
    assert every["total"] == {"repositories": 3, "versions": 3, "bytes": acme["bytes"], "pulls": 3}
    pulls = owner.get(f"{NAMESPACES}/acme/pulls").json()["versions"]
    assert [(each["reference"], each["pulls"]) for each in pulls] == [("acme/search:1.0.0", 3), ("acme/copy:1.0.0", 0)]


def test_pulls_counted_last_are_written_down_when_the_server_ends(tmp_path: Path) -> None:
    with running_server(tmp_path / "server") as server:
        digest = publish_delta(server.state, "acme/search:1.0.0", Store(tmp_path / "local"))
        with server.state.database.reading() as connection:
            repository = repository_id(connection, "acme", "search")
        server.state.pulls.count(repository, digest)
    with running_server(tmp_path / "server") as again, again.client(again.user("owner")) as client:
        assert client.get("/api/v1/statistics").json()["total"]["pulls"] == 1
