"""Uploads: in one piece, in chunks, resumed; nothing is seen under its digest before it was verified."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import select

from deltareg.digest import Digest, sha256
from deltareg_registry.access.principal import Scope
from deltareg_registry.database.tables import namespaces, uploads
from deltareg_registry.settings import ServerSettings
from tests.deltas import noise
from tests.registry.oci.repository import Repository, code_of
from tests.servers.deltareg_server import RunningServer, running_server

LARGE = noise(19 << 19)
"""Several pieces of either storage, and a rest."""


def append(repository: Repository, place: str, data: bytes, start: int | None = None) -> tuple[int, str]:
    """Send a chunk; the status and the Range header of the answer."""
    headers = {} if start is None else {"Content-Range": f"{start}-{start + len(data) - 1}"}
    answer = repository.client.patch(place, content=data, headers=headers)
    return answer.status_code, answer.headers.get("range", "")


def close(repository: Repository, place: str, digest: str, data: bytes = b"") -> tuple[int, str]:
    """End an upload; the status, and the place of the blob or the code of the error."""
    answer = repository.client.put(place, params={"digest": digest}, content=data)
    return answer.status_code, answer.headers.get("location") or code_of(answer)[1]


def left(server: RunningServer) -> list[str]:
    """The bytes and the rows of uploads that the server still has."""
    with server.state.database.reading() as connection:
        rows = list(connection.execute(select(uploads.c.id)).scalars())
    return rows + server.state.storage.uploads.identities(time.time() + 60)


def test_blob_in_one_post(either_repository: Repository, either: RunningServer) -> None:
    for data in (b"", b"x", LARGE):
        digest = sha256(data)
        answer = either_repository.client.post(
            f"{either_repository.path}/blobs/uploads/", params={"digest": digest}, content=data
        )
        place = f"{either_repository.path}/blobs/{digest}"
        assert (answer.status_code, answer.headers["location"]) == (201, place)
        assert answer.headers["docker-content-digest"] == digest
        assert either_repository.blob(digest).content == data
    assert left(either) == []


def test_blob_in_chunks(either_repository: Repository, either: RunningServer) -> None:
    place = either_repository.begin()
    assert append(either_repository, place, LARGE[:1], 0) == (202, "0-0")
    assert append(either_repository, place, LARGE[1 : 9 << 19], 1) == (202, f"0-{(9 << 19) - 1}")
    assert append(either_repository, place, LARGE[9 << 19 : -5]) == (202, f"0-{len(LARGE) - 6}")
    digest = sha256(LARGE)
    done = close(either_repository, place, digest, LARGE[-5:])
    assert done == (201, f"{either_repository.path}/blobs/{digest}")
    assert either_repository.blob(digest).content == LARGE
    assert left(either) == []
    assert append(either_repository, place, b"more")[0] == 404


def test_chunk_out_of_order_is_answered_by_416(either_repository: Repository) -> None:
    place = either_repository.begin()
    assert append(either_repository, place, b"56789", 5)[0] == 416
    assert append(either_repository, place, b"01234", 0) == (202, "0-4")
    for start in (0, 4, 6):
        assert append(either_repository, place, b"x", start)[0] == 416
    answer = either_repository.client.put(
        place, params={"digest": sha256(b"0123456")}, content=b"6", headers={"Content-Range": "6-6"}
    )
    assert code_of(answer) == (416, "BLOB_UPLOAD_INVALID")
    status = either_repository.client.get(place)
    assert (status.status_code, status.headers["range"], status.headers["location"]) == (204, "0-4", place)
    assert append(either_repository, place, b"56789", 5) == (202, "0-9")
    assert close(either_repository, place, sha256(b"0123456789"))[0] == 201


def test_range_that_does_not_fit_its_bytes_is_refused(repository: Repository) -> None:
    place = repository.begin()
    for text, status in (("0-9", 400), ("5-0", 416), ("0", 400), ("a-b", 400), ("-1-3", 400), ("0-" + "9" * 30, 400)):
        answer = repository.client.patch(place, content=b"12345", headers={"Content-Range": text})
        assert answer.status_code == status, text
    assert repository.client.get(place).headers["range"] == "0-0"
    assert append(repository, place, b"12345", 0) == (202, "0-4")


def test_other_bytes_are_refused_and_the_upload_is_gone(either_repository: Repository, either: RunningServer) -> None:
    other = sha256(b"other bytes")
    for data in (b"", b"these bytes", LARGE):
        place = either_repository.begin()
        assert close(either_repository, place, other, data) == (400, "DIGEST_INVALID")
        assert either_repository.client.get(place).status_code == 404
        answer = either_repository.client.post(
            f"{either_repository.path}/blobs/uploads/", params={"digest": other}, content=data
        )
        assert code_of(answer) == (400, "DIGEST_INVALID")
    assert either_repository.blob(other).status_code == 404
    assert left(either) == []


def test_digests_that_are_none_are_refused(repository: Repository) -> None:
    place = repository.begin()
    for text in ("", "sha256:abc", "sha512:" + "0" * 128, "../../registry.db", "sha256:" + "0" * 63 + "/"):
        assert close(repository, place, text, b"x") == (400, "DIGEST_INVALID")
        answer = repository.client.post(f"{repository.path}/blobs/uploads/", params={"digest": text})
        assert code_of(answer) == (400, "DIGEST_INVALID")
    answer = repository.client.post(f"{repository.path}/blobs/uploads/", params={"digest-algorithm": "sha512"})
    assert code_of(answer) == (400, "DIGEST_INVALID")
    # The upload is as it was.
    assert close(repository, place, sha256(b"x"), b"x")[0] == 201


def test_uploads_that_are_none_are_unknown(repository: Repository) -> None:
    repository.push(b"x")
    for identity in ("0" * 32, "x", "..%2f..%2fregistry.db", "0" * 500):
        path = f"{repository.path}/blobs/uploads/{identity}"
        assert repository.client.get(path).status_code == 404, identity
        assert repository.client.patch(path, content=b"x").status_code in (404, 405), identity
        assert repository.client.delete(path).status_code in (404, 405), identity
    assert code_of(repository.client.get(f"{repository.path}/blobs/uploads/x")) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert repository.client.get(f"{repository.path}/blobs/uploads/%00").status_code == 400


def test_upload_is_its_users_in_its_repository(server: RunningServer, repository: Repository) -> None:
    repository.push(b"x")
    place = repository.begin()
    with server.client(server.user("paul", acme="publisher")) as client:
        assert client.get(place).status_code == 404
        assert client.patch(place, content=b"x").status_code == 404
    assert repository.client.get(place.replace("search", "other")).status_code == 404
    assert repository.client.get(place).status_code == 204


def test_cancelled_upload_is_gone(either_repository: Repository, either: RunningServer) -> None:
    place = either_repository.begin()
    append(either_repository, place, LARGE)
    assert either_repository.client.delete(place).status_code == 204
    assert code_of(either_repository.client.get(place)) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert left(either) == []


def test_client_that_goes_away_can_go_on(either_repository: Repository, either: RunningServer) -> None:
    place = either_repository.begin()
    host, port = either.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"PATCH {place} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {either.token}\r\n"
        connection.sendall(f"{head}Content-Length: {len(LARGE)}\r\n\r\n".encode() + LARGE[: 17 << 19])
        time.sleep(0.3)
    deadline = time.monotonic() + 10
    size = 0
    while size == 0:
        assert time.monotonic() < deadline
        size = int(either_repository.client.get(place).headers["range"].removeprefix("0-"))
        time.sleep(0.05)
    assert size == (17 << 19) - 1
    assert close(either_repository, place, sha256(LARGE), LARGE[size + 1 :])[0] == 201
    assert either_repository.blob(sha256(LARGE)).content == LARGE


def test_another_process_goes_on(either_repository: Repository, either: RunningServer) -> None:
    place = either_repository.begin()
    append(either_repository, place, LARGE[: 9 << 19])
    data = either.state.settings.data
    with running_server(data, either.state.settings) as second, second.client(either.token) as client:
        there = Repository(client, either_repository.name)
        assert append(there, place, LARGE[9 << 19 : 10 << 19], 9 << 19)[0] == 202
        # Back and forth: what the first process remembers is out of date.
        assert append(either_repository, place, LARGE[10 << 19 : 12 << 19])[0] == 202
        assert close(there, place, sha256(LARGE), LARGE[12 << 19 :])[0] == 201
    assert either_repository.blob(sha256(LARGE)).content == LARGE


def test_bytes_that_no_row_tells_of_are_dropped(server: RunningServer, repository: Repository) -> None:
    # As after a crash between writing and noting.
    place = repository.begin()
    append(repository, place, b"01234")
    root = server.state.storage.root
    assert root is not None
    with (root / "uploads" / place.rpartition("/")[2]).open("ab") as file:
        file.write(b"never noted")
    assert close(repository, place, sha256(b"0123456789"), b"56789")[0] == 201


def test_two_requests_do_not_mix_their_bytes(either_repository: Repository, either: RunningServer) -> None:
    place = either_repository.begin()

    def send(letter: bytes) -> int:
        with either.client() as client:
            headers = {"Content-Range": f"0-{(17 << 19) - 1}"}
            return client.patch(place, content=letter * (17 << 19), headers=headers).status_code

    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(send, (b"a", b"b", b"c", b"d")))
    assert statuses[0] == 202 and set(statuses[1:]) <= {416, 503}
    digests = [sha256(letter * (17 << 19)) for letter in (b"a", b"b", b"c", b"d")]
    assert [close(either_repository, place, digest)[0] for digest in digests].count(201) <= 1
    assert sum(either_repository.blob(digest).status_code == 200 for digest in digests) <= 1


def test_same_blob_from_several_clients_at_once(either: RunningServer, either_repository: Repository) -> None:
    either_repository.push(b"x")
    digest = sha256(LARGE)

    def push(number: int) -> Digest:
        with either.client() as client:
            return Repository(client, f"acme/search-{number % 2}").push(LARGE)

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(push, range(6))) == {digest}
    with either.client() as client:
        for number in range(2):
            assert Repository(client, f"acme/search-{number}").blob(digest).content == LARGE
    assert left(either) == []


def test_blob_above_the_limit_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "server"
    with running_server(data, ServerSettings(data=data, blob_limit=100)) as running, running.client() as client:
        repository = Repository(client, "acme/search")
        place = repository.begin()
        assert append(repository, place, b"x" * 60) == (202, "0-59")
        announced = client.patch(place, content=b"x" * 41)
        assert code_of(announced) == (413, "SIZE_INVALID")
        assert announced.json()["errors"][0]["detail"]["code"] == "DR0305"

        def unannounced() -> object:
            yield b"x" * 41

        answer = client.patch(place, content=unannounced())  # type: ignore[arg-type]
        assert code_of(answer) == (413, "SIZE_INVALID")
        assert answer.json()["errors"][0]["detail"]["code"] == "DR0305"
        assert client.get(place).headers["range"] == "0-59"
        assert append(repository, place, b"x" * 40) == (202, "0-99")
        assert close(repository, place, sha256(b"x" * 100))[0] == 201


def test_quota_of_the_namespace_is_kept(server: RunningServer, repository: Repository) -> None:
    first = repository.push(b"x" * 60)
    with server.state.database.writing() as connection:
        connection.execute(namespaces.update().values(quota=100))
    Repository(repository.client, "acme/other").push(b"x" * 60)
    place = repository.begin()
    answer = repository.client.put(place, params={"digest": sha256(b"y" * 41)}, content=b"y" * 41)
    assert code_of(answer) == (403, "DENIED")
    assert answer.json()["errors"][0]["detail"]["code"] == "DR0304"
    assert repository.client.get(place).status_code == 204
    repository.push(b"y" * 40)
    assert repository.blob(first).status_code == 200
    assert append(repository, place, b"z")[0] == 403
    other = Repository(repository.client, "beta/search")
    other.push(b"z" * 200)
    mount = {"mount": sha256(b"z" * 200), "from": other.name}
    answer = repository.client.post(f"{repository.path}/blobs/uploads/", params=mount)
    assert code_of(answer) == (403, "DENIED")


def test_blob_is_mounted_from_a_repository_that_may_be_read(server: RunningServer, repository: Repository) -> None:
    digest = repository.push(b"shared")
    target = Repository(repository.client, "beta/other")
    answer = target.client.post(f"{target.path}/blobs/uploads/", params={"mount": digest, "from": repository.name})
    assert (answer.status_code, answer.headers["location"]) == (201, f"{target.path}/blobs/{digest}")
    assert target.blob(digest).content == b"shared"
    for source in ("acme/absent", "absent/absent", "..", "", "beta/other:1.0.0"):
        unknown = {"mount": sha256(b"unknown"), "from": source}
        assert target.client.post(f"{target.path}/blobs/uploads/", params=unknown).status_code == 202
    assert target.client.post(f"{target.path}/blobs/uploads/", params={"mount": digest}).status_code == 202


def test_blob_of_a_repository_that_may_not_be_read_is_not_mounted(
    server: RunningServer, repository: Repository
) -> None:
    digest = repository.push(b"secret")
    token = server.user("eve")
    limited = server.user("tom", acme="reader", scopes=[Scope(namespace="tom", action="publish")])
    for user, mine in ((token, "eve"), (limited, "tom")):
        with server.client(user) as client:
            own = Repository(client, f"{mine}/copy")
            answer = client.post(f"{own.path}/blobs/uploads/", params={"mount": digest, "from": repository.name})
            assert answer.status_code == 202
            assert own.blob(digest).status_code == 404
    with server.state.database.writing() as connection:
        connection.execute(namespaces.update().where(namespaces.c.name == "acme").values(public=True))
    with server.client(token) as client:
        own = Repository(client, "eve/copy")
        answer = client.post(f"{own.path}/blobs/uploads/", params={"mount": digest, "from": repository.name})
        assert answer.status_code == 201


def test_uploads_need_the_right_to_publish(server: RunningServer, repository: Repository) -> None:
    repository.push(b"x")
    place = repository.begin()
    with server.client(server.user("rita", acme="reader")) as client:
        assert code_of(client.post(f"{repository.path}/blobs/uploads/")) == (403, "DENIED")
        assert code_of(client.patch(place, content=b"x")) == (403, "DENIED")
    with server.client(anonymous=True) as client:
        answer = client.post(f"{repository.path}/blobs/uploads/")
        assert code_of(answer) == (401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"].startswith("Bearer realm=")


def test_ten_thousand_open_uploads_harm_nobody(server: RunningServer, repository: Repository) -> None:
    repository.push(b"x")
    place = repository.begin()
    with server.state.database.writing() as connection:
        row = connection.execute(select(uploads)).one()._asdict()
        connection.execute(uploads.insert(), [{**row, "id": f"{number:032x}"} for number in range(10_000)])
    assert append(repository, place, b"01234") == (202, "0-4")
    started = time.monotonic()
    assert repository.push(b"another") and time.monotonic() - started < 2
    assert close(repository, place, sha256(b"0123456789"), b"56789")[0] == 201
