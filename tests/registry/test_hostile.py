"""What hostile clients and publishers try: to take the memory, the threads and the disk of the server, to outlive a
token, and to learn of the machine."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import pytest

from deltareg.digest import sha256
from deltareg.errors import Busy, InvalidArgument
from deltareg.manifest import INDEX_TYPE, MANIFEST_TYPE
from deltareg.store import Store
from deltareg_registry.api.deltas import SIGNATURE_TYPE
from deltareg_registry.api.turns import Turns
from deltareg_registry.database.tables import namespaces, uploads
from deltareg_registry.settings import ServerSettings
from tests.deltas import add_delta
from tests.registry.deltas import pack_of
from tests.registry.oci.repository import EMPTY_TYPE, Repository, code_of, described
from tests.servers.deltareg_server import RunningServer, running_server

DOCUMENTS = (
    "PUT /api/v1/deltas/acme/search/versions/1.0.0/yank",
    "PUT /api/v1/deltas/acme/search/channels/prod",
    "POST /api/v1/deltas/acme/search/missing",
    "POST /api/v1/namespaces",
    "POST /api/v1/users",
    "POST /api/v1/tokens",
)


@pytest.fixture
def repository(server: RunningServer) -> Repository:
    """A repository of a new server, as its administrator sees it."""
    return Repository(server.client(), "acme/search")


def first_line(server: RunningServer, route: str, *, length: int) -> str:
    """What is answered to a request of a stranger before any of its body has come."""
    parts = urlsplit(server.url)
    head = [f"{route} HTTP/1.1", f"Host: {parts.netloc}", "Content-Type: application/json", f"Content-Length: {length}"]
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        return connection.recv(4096).decode().partition("\r\n")[0]


@pytest.mark.parametrize("route", DOCUMENTS)
def test_the_document_of_a_stranger_is_not_waited_for(server: RunningServer, route: str) -> None:
    begun = time.monotonic()
    assert first_line(server, route, length=60_000_000) == "HTTP/1.1 401 Unauthorized"
    assert time.monotonic() - begun < 15, "a document has a minute to arrive"


def test_changes_of_names_are_short_documents(server: RunningServer) -> None:
    with server.client() as client:
        assert client.post("/api/v1/namespaces", json={"name": "acme"}).status_code == 201
        for route in DOCUMENTS[:3]:
            method, path = route.split()
            answer = client.request(method, path, json={"reason": "x" * 2_000_000})
            assert (answer.status_code, "more than" in answer.json()["detail"]) == (413, True)


def test_a_description_of_too_many_objects_is_not_parsed(server: RunningServer) -> None:
    with server.client(anonymous=True) as client:
        content = b'{"x": [' + b"[]," * 2_000_000 + b"[]]}"
        answer = client.post("/api/v1/check", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert "objects and arrays" in answer.json()["detail"]


def test_of_many_bad_tensors_one_is_told(server: RunningServer) -> None:
    with server.client(anonymous=True) as client:
        answer = client.post("/api/v1/check", json={"tensors": [{}] * 1000})
        assert answer.status_code == 400
        assert "tensors.0.name" in answer.text and "tensors.1." not in answer.text


def test_who_finds_no_place_to_wait_is_told_at_once() -> None:
    turns, begun, go_on = Turns(1, 1, 20.0), threading.Event(), threading.Event()
    waited: list[str] = []

    def first() -> None:
        with turns.take():
            begun.set()
            go_on.wait(20)

    def second() -> None:
        with turns.take():
            waited.append("came")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert begun.wait(20)
    threads[1].start()
    try:
        deadline = time.monotonic() + 20
        while turns._places._value and time.monotonic() < deadline:
            time.sleep(0.01)
        started = time.monotonic()
        with pytest.raises(Busy) as raised, turns.take():
            pass
        assert time.monotonic() - started < 5 and raised.value.data["retry_after"] == 5
    finally:
        go_on.set()
        for thread in threads:
            thread.join(20)
    assert waited == ["came"]
    with turns.take():
        pass


@pytest.mark.parametrize(
    "content",
    [
        b'{"schemaVersion":2,"config":{},"layers":[' + b"{}," * 100_000 + b"{}]}",
        b'{"schemaVersion":2,"annotations":{' + b",".join(b'"%d":1' % number for number in range(100_000)) + b"}}",
    ],
    ids=["layers", "annotations"],
)
def test_of_a_manifest_full_of_faults_few_are_told(repository: Repository, content: bytes) -> None:
    versions = f"/api/v1/deltas/{repository.name}/versions/1.0.0"
    for answer in (repository.put("x", content), repository.client.put(versions, content=content)):
        assert answer.status_code in (400, 422)
        assert len(answer.content) < 10_000


def test_signatures_without_end_make_no_answer_without_end(repository: Repository, local: Store) -> None:
    manifest = add_delta(local, [pack_of("a record")])
    assert repository.push_delta(local, manifest, "1.0.0").status_code == 201
    repository.push(b"{}")
    for number in range(12):
        # Each as large as a signature's manifest may be, but for the first, which is larger.
        told = f"{number}" + "y" * (3_000_000 if number == 0 else 250_000)
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": SIGNATURE_TYPE,
            "config": described(b"{}", EMPTY_TYPE),
            "layers": [],
            "subject": {"mediaType": MANIFEST_TYPE, "digest": sha256(manifest), "size": len(manifest)},
            "annotations": {"x": told},
        }
        data = json.dumps(document).encode()
        assert repository.put(sha256(data), data).status_code == 201
    version = f"/api/v1/deltas/{repository.name}/versions/1.0.0"
    for path in (version, f"{version}/signatures"):
        answer = repository.client.get(path)
        assert answer.status_code == 200
        assert 0 < len(answer.json()["signatures"]) < 12
        assert len(answer.content) < 3 << 20
    # The protocol's own list tells all, page by page.
    found, path = 0, f"{repository.path}/referrers/{sha256(manifest)}"
    while path:
        answer = repository.client.get(path)
        assert len(answer.content) < 4 << 20
        found += len(answer.json()["manifests"])
        path = answer.headers.get("link", "").partition("<")[2].partition(">")[0]
    assert found == 12


def test_uploads_that_nobody_ends_use_up_the_quota(server: RunningServer, repository: Repository) -> None:
    whole = repository.push(b"whole")
    with server.state.database.writing() as connection:
        connection.execute(namespaces.update().values(quota=100))
    places = [repository.begin() for _ in range(3)]
    answers = [repository.client.patch(place, content=b"x" * 60) for place in places]
    assert [answer.status_code for answer in answers] == [202, 403, 403]
    assert code_of(answers[1]) == (403, "DENIED")
    # The digest of what is here already opens no door: as many bytes as that blob has may come, and no more.
    answer = repository.client.put(places[2], params={"digest": whole}, content=b"x" * 90)
    assert answer.status_code == 403
    # What is given up is free again, and the upload itself goes on.
    assert repository.client.patch(places[0], content=b"x" * 30).status_code == 202
    assert repository.client.delete(places[0]).status_code == 204
    assert repository.client.patch(repository.begin(), content=b"x" * 90).status_code == 202


def test_uploads_at_once_share_the_room_that_there_is(server: RunningServer, repository: Repository) -> None:
    repository.push(b"")
    with server.state.database.writing() as connection:
        connection.execute(namespaces.update().values(quota=100))
    begun, go_on = threading.Barrier(3), threading.Event()
    statuses: list[int] = []

    def send() -> None:
        def pieces() -> Iterator[bytes]:
            yield b"x" * 30
            begun.wait(20)
            go_on.wait(20)
            yield b"x" * 30

        with server.client() as client:
            answer = client.patch(repository.begin(), content=pieces())
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    begun.wait(20)
    time.sleep(0.3)  # both have been told of their room by then
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert sorted(statuses) == [202, 403]
    with server.state.database.reading() as connection:
        assert [row.size for row in connection.execute(uploads.select())] == [60]


def test_a_token_makes_none_that_outlives_it(server: RunningServer) -> None:
    with server.client() as admin:
        assert admin.post("/api/v1/users", json={"name": "rita", "admin": True}).status_code == 201
        given = admin.post("/api/v1/users/rita/tokens", json={"name": "laptop", "days": 2}).json()
    with server.client(given["token"]) as client:
        for path in ("/api/v1/tokens", "/api/v1/users/rita/tokens"):
            for end in ({}, {"days": 3}, {"expires": "9999-12-31"}):
                answer = client.post(path, json={"name": "thief", **end})
                assert (answer.status_code, answer.json()["code"]) == (403, "DR0300"), answer.text
            assert client.post(path, json={"name": "short", "days": 1}).status_code == 201
        # What administrators give to others is theirs to decide.
        assert client.post("/api/v1/users/owner/tokens", json={"name": "long"}).status_code == 201


def test_who_takes_the_name_of_a_removed_namespace_reads_nothing_of_it(server: RunningServer) -> None:
    rita, paul = server.user("rita"), server.user("paul")
    with server.client(rita) as client:
        assert client.post("/api/v1/namespaces", json={"name": "secret"}).status_code == 201
        hook = {"url": "https://inside.example.com/", "events": ["version.publish"]}
        assert client.post("/api/v1/namespaces/secret/webhooks", json=hook).status_code == 201
        assert client.delete("/api/v1/namespaces/secret").status_code == 204
    with server.client(paul) as client:
        assert client.post("/api/v1/namespaces", json={"name": "secret"}).status_code == 201
        told = client.get("/api/v1/audit", params={"namespace": "secret"}).json()["records"]
        assert [(one["actor"], one["action"]) for one in told] == [("paul", "namespace.create")]
    with server.client() as admin:
        assert len(admin.get("/api/v1/audit", params={"namespace": "secret"}).json()["records"]) == 4


def test_a_character_that_no_text_has_is_refused_wherever_it_stands(any_settings: ServerSettings) -> None:
    with running_server(any_settings.data, any_settings) as server, server.client() as client:
        for path in ("/api/v1/search?licence=a%00b", "/api/v1/deltas?cursor=%00", "/api/v1/namespaces/a%00b"):
            assert client.get(path).status_code == 400
        if server.state.settings.database is not None:
            with pytest.raises(InvalidArgument), server.state.database.reading() as connection:
                connection.execute(namespaces.select().where(namespaces.c.name == "a\0b"))


def test_who_finds_no_connection_to_the_database_is_told_to_come_again(
    any_settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltareg_registry.database.engine._BUSY_SECONDS", 0.2)
    with running_server(any_settings.data, any_settings) as server, server.client() as client, ExitStack() as stack:
        with suppress(Busy):
            while True:
                stack.enter_context(server.state.database.reading())
        answer = client.get("/api/v1/whoami")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_a_database_that_fails_tells_strangers_nothing_of_itself(any_settings: ServerSettings) -> None:
    with running_server(any_settings.data, any_settings) as server, server.client() as client:
        repository = Repository(client, "acme/search")
        data = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []} | {"artifactType": "a\0b"})
        assert repository.put("x", data.encode(), INDEX_TYPE).status_code == 400
        subject = sha256(b"")
        for path in (f"referrers/{subject}?last=%00", f"referrers/{subject}?artifactType=%00", "tags/list?last=%00"):
            assert client.get(f"{repository.path}/{path}").status_code == 400
        with server.state.database.writing() as connection:
            connection.exec_driver_sql("drop table terms")
        for answer in (client.get("/api/v1/search?licence=mit"), client.get("/?licence=mit", headers=ACCEPT)):
            assert answer.status_code >= 500
            for told in ("terms", "select ", "sqlite", "psycopg", "database_"):
                assert told not in answer.text.lower()


ACCEPT = {"Accept": "text/html"}
