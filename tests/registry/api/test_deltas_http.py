"""Names over HTTP: who may read and change them, and how refusals are answered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from sqlalchemy import insert, select

from deltareg.digest import canonical_json, sha256
from deltareg.store import Store
from deltareg_registry.api.deltas import SIGNATURE_TYPE
from deltareg_registry.database import now
from deltareg_registry.database.tables import audit, manifests, namespaces
from deltareg_registry.records.namespaces import repository_id
from tests.registry.deltas import publish_delta
from tests.servers.deltareg_server import RunningServer

DELTA = "/api/v1/deltas/acme/search"
VERSION = f"{DELTA}/versions/1.0.0"


def put(client: httpx2.Client, path: str, **body: object) -> httpx2.Response:
    return client.put(path, json=body)


def told(answer: httpx2.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def test_reader_sees_names_and_publisher_changes_them(server: RunningServer, local: Store) -> None:
    first = publish_delta(server.state, "acme/search:1.0.0", local, "1")
    second = publish_delta(server.state, "acme/search:1.1.0", local, "2")
    with server.client(server.user("paul", acme="publisher")) as client:
        assert put(client, f"{DELTA}/channels/prod", digest=first, expected=None).json() == {
            "reference": "acme/search:prod",
            "digest": first,
        }
        assert put(client, f"{DELTA}/versions/1.1.0/yank", reason="wrong data").json()["yanked"] == "wrong data"
        assert put(client, f"{VERSION}/deprecation", reason="take 2").json()["deprecated"] == "take 2"
    with server.client(server.user("rita", acme="reader")) as client:
        listed = client.get("/api/v1/deltas").json()
        entries = client.get(DELTA).json()["entries"]
        by_name = [client.get(f"{DELTA}/resolve", params={"tag": tag}).json() for tag in ("latest", "prod", "1.0.0")]
        by_digest = client.get(f"{DELTA}/resolve", params={"digest": second}).json()
        assert client.get(f"{DELTA}/resolve").json() == by_name[0]
        refused = put(client, f"{VERSION}/yank", reason="x"), client.delete(f"{DELTA}/channels/prod")
    assert [(one["name"], one["latest"], one["versions"]) for one in listed["deltas"]] == [("acme/search", "1.0.0", 2)]
    assert [(one["reference"], one["yanked"], one["deprecated"]) for one in entries] == [
        ("acme/search:1.0.0", None, "take 2"),
        ("acme/search:1.1.0", "wrong data", None),
        ("acme/search:prod", None, None),
    ]
    assert by_name == [{"reference": "acme/search:1.0.0", "digest": first, "version": "1.0.0"}] * 3
    assert by_digest == {"reference": "acme/search:1.1.0", "digest": second, "version": "1.1.0"}
    assert [told(answer) for answer in refused] == [(403, "DR0300")] * 2


def test_changes_are_taken_back(server: RunningServer, local: Store) -> None:
    digest = publish_delta(server.state, "acme/search:1.0.0", local)
    with server.client() as client:
        put(client, f"{VERSION}/yank", reason="x")
        put(client, f"{VERSION}/deprecation", reason="y")
        put(client, f"{DELTA}/channels/prod", digest=digest, expected=None)
        assert client.delete(f"{VERSION}/yank").json()["yanked"] is None
        assert client.delete(f"{VERSION}/deprecation").json()["deprecated"] is None
        assert client.delete(f"{DELTA}/channels/prod").status_code == 204
        assert [one["reference"] for one in client.get(DELTA).json()["entries"]] == ["acme/search:1.0.0"]
    with server.state.database.reading() as connection:
        rows = connection.execute(select(audit).where(audit.c.action == "channel.remove")).one()
    assert (rows.actor, rows.address, rows.namespace, rows.detail) == ("owner", "127.0.0.1", "acme", {"from": digest})


def test_version_is_described_by_its_documents(server: RunningServer, local: Store) -> None:
    digest = publish_delta(server.state, "acme/search:1.0.0", local)
    signature = b'{"a":"signature"}'
    with server.state.database.writing() as connection:
        values = {
            "repository": repository_id(connection, "acme", "search"),
            "digest": sha256(signature),
            "media_type": "application/vnd.oci.image.manifest.v1+json",
            "artifact_type": SIGNATURE_TYPE,
            "size": len(signature),
            "subject": digest,
            "annotations": {"by": "somebody"},
            "content": signature,
            "created": now(),
            "touched": now(),
        }
        connection.execute(insert(manifests).values(values))
        values |= {"digest": sha256(b"x"), "artifact_type": "application/of.something-else"}
        connection.execute(insert(manifests).values(values))
    with server.client() as client:
        put(client, f"{DELTA}/channels/prod", digest=digest, expected=None)
        found = client.get(VERSION).json()
        signatures = client.get(f"{VERSION}/signatures").json()["signatures"]
    assert sha256(canonical_json(found["manifest"])) == digest
    assert sha256(canonical_json(found["config"])) == found["manifest"]["config"]["digest"]
    assert found["config"]["base"]["id"] == "hf://acme/base"
    assert (found["digest"], found["channels"], found["publisher"]) == (digest, ["prod"], "owner")
    assert [one["digest"] for one in signatures] == [sha256(signature)]
    assert found["signatures"] == signatures


def test_what_one_may_not_read_does_not_exist(server: RunningServer, local: Store) -> None:
    publish_delta(server.state, "acme/search:1.0.0", local)
    paths = [DELTA, f"{DELTA}/resolve", VERSION, f"{VERSION}/signatures"]
    with server.client(server.user("mallory")) as client:
        assert [told(client.get(path)) for path in paths] == [(404, "DR0002")] * 4
        assert told(put(client, f"{VERSION}/yank", reason="x")) == (404, "DR0002")
        assert client.get("/api/v1/deltas").json() == {"deltas": [], "nextCursor": None}
    with server.client(anonymous=True) as client:
        assert [told(client.get(path)) for path in paths] == [(401, "DR0303")] * 4
        assert client.get("/api/v1/deltas").status_code == 200


def test_change_of_what_is_absent_makes_no_namespace(server: RunningServer) -> None:
    with server.client() as client:
        assert told(put(client, VERSION + "/yank", reason="x")) == (404, "DR0002")
        assert told(put(client, f"{DELTA}/channels/prod", digest=sha256(b""), expected=None)) == (404, "DR0002")
    with server.state.database.reading() as connection:
        assert connection.execute(select(namespaces)).all() == []


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "/api/v1/deltas?limit=0", None, "DR0101"),
        ("GET", "/api/v1/deltas?cursor=x", None, "DR0101"),
        ("GET", "/api/v1/deltas?namespace=UP", None, "DR0102"),
        ("GET", f"{DELTA}/resolve?tag=a%2Bb", None, "DR0102"),
        ("GET", f"{DELTA}/resolve?digest=sha1:0", None, "DR0102"),
        ("GET", f"{DELTA}/resolve?tag=prod&digest=sha256:{'0' * 64}", None, "DR0101"),
        ("GET", f"{DELTA}/versions/prod", None, "DR0102"),
        ("PUT", f"{DELTA}/versions/prod/yank", {"reason": "x"}, "DR0102"),
        ("PUT", f"{VERSION}/yank", {"reason": " "}, "DR0101"),
        ("PUT", f"{VERSION}/yank", {}, "DR0101"),
        ("PUT", f"{VERSION}/deprecation", {"reason": "a\x00b"}, "DR0101"),
        ("PUT", f"{DELTA}/channels/prod", {"digest": "x", "expected": None}, "DR0101"),
        ("PUT", f"{DELTA}/channels/prod", {"digest": f"sha256:{'0' * 64}"}, "DR0101"),
        ("PUT", f"{DELTA}/channels/latest", {"digest": f"sha256:{'0' * 64}", "expected": None}, "DR0102"),
        ("DELETE", f"{DELTA}/channels/1.0.0", None, "DR0102"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    server: RunningServer, local: Store, method: str, path: str, body: object, code: str
) -> None:
    publish_delta(server.state, "acme/search:1.0.0", local)
    with server.client() as client:
        assert told(client.request(method, path, json=body)) == (400, code)


def test_of_many_who_move_a_channel_at_once_all_but_one_are_told_so(server: RunningServer, local: Store) -> None:
    digests = [publish_delta(server.state, f"acme/search:1.{n}.0", local, f"{n}") for n in range(8)]
    with server.client() as client, ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda digest: put(client, f"{DELTA}/channels/prod", digest=digest, expected=None), digests)
        )
        winner = client.get(f"{DELTA}/resolve?tag=prod").json()["digest"]
    moved = [answer for answer in answers if answer.status_code == 200]
    assert [answer.json()["digest"] for answer in moved] == [winner]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {told(answer) for answer in refused} == {(409, "DR0007")}
    assert {answer.json()["data"]["found"] for answer in refused} == {winner}
