"""Blobs: pulled as a whole and in ranges, in the repositories that have them alone."""

from __future__ import annotations

import threading

import httpx2
import pytest
from sqlalchemy import event

from deltareg.digest import sha256
from deltareg_registry.database.tables import blobs
from deltareg_registry.settings import ServerSettings
from deltareg_registry.upkeep.collect import collect
from tests.deltas import noise
from tests.registry.oci.repository import Repository, code_of
from tests.servers.deltareg_server import RunningServer, running_server
from tests.servers.object_store import Bucket

LARGE = noise(9 << 20)
"""More than one piece of either storage."""


def test_pulled_blob_is_what_was_pushed(either_repository: Repository) -> None:
    for data in (b"", b"x", LARGE):
        digest = either_repository.push(data)
        answer = either_repository.blob(digest)
        assert (answer.status_code, answer.content) == (200, data)
        head = either_repository.client.head(f"{either_repository.path}/blobs/{digest}")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["docker-content-digest"] == digest
        assert head.headers["content-length"] == str(len(data))


def test_answer_names_digest_and_etag(repository: Repository) -> None:
    digest = repository.push(b"some bytes")
    answer = repository.blob(digest)
    assert answer.headers["docker-content-digest"] == digest
    assert answer.headers["etag"] == f'"{digest}"'
    for known in (f'"{digest}"', f'W/"{digest}"', "*", f'"other", "{digest}"'):
        again = repository.blob(digest, {"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", f'"{digest}"')
    assert repository.blob(digest, {"If-None-Match": '"other"'}).status_code == 200


def test_range_is_answered_by_206(either_repository: Repository) -> None:
    digest = either_repository.push(LARGE)
    for header, start, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, None),
        ("bytes=-7", -7, None),
        ("bytes=1048570-1048590", 1048570, 1048591),
        ("bytes=9000000-99999999", 9000000, None),
    ):
        answer = either_repository.blob(digest, {"Range": header})
        assert (answer.status_code, answer.content) == (206, LARGE[start:end]), header
        first = start % len(LARGE)
        expected = f"bytes {first}-{first + len(answer.content) - 1}/{len(LARGE)}"
        assert answer.headers["content-range"] == expected


def test_range_beyond_the_end_is_answered_by_416(repository: Repository) -> None:
    digest, nothing = repository.push(b"0123456789"), repository.push(b"")
    for asked, header, size in ((digest, "bytes=10-", 10), (digest, "bytes=-0", 10), (nothing, "bytes=0-", 0)):
        answer = repository.blob(asked, {"Range": header})
        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{size}")


def test_range_that_is_not_understood_is_left_out(repository: Repository) -> None:
    digest = repository.push(b"0123456789")
    for header in ("bytes=0-1,3-4", "lines=1-2", "bytes=a-b", "bytes=-", "bytes=5-2", "bytes=1" + "0" * 40 + "-"):
        assert repository.blob(digest, {"Range": header}).status_code == 200
    changed = {"Range": "bytes=0-1", "If-Range": '"other"'}
    assert repository.blob(digest, changed).status_code == 200
    assert repository.blob(digest, {**changed, "If-Range": f'"{digest}"'}).status_code == 206


def test_blob_is_read_in_its_repository_alone(repository: Repository) -> None:
    digest = repository.push(b"of one repository")
    other = Repository(repository.client, "acme/other")
    other.push(b"something else")
    assert code_of(other.blob(digest)) == (404, "BLOB_UNKNOWN")
    assert code_of(Repository(repository.client, "acme/absent").blob(digest)) == (404, "NAME_UNKNOWN")
    assert other.client.head(f"{other.path}/blobs/{digest}").status_code == 404


def test_what_is_no_digest_is_refused(repository: Repository) -> None:
    digest = repository.push(b"x")
    for text in ("sha256:abc", "sha512:" + "0" * 128, digest.upper(), "latest", digest + "%0a"):
        assert code_of(repository.blob(text)) == (400, "DIGEST_INVALID"), text
    for text in ("../../registry.db", "..%2f..%2fregistry.db", "sha256:%2e%2e/x"):
        assert repository.blob(text).status_code in (400, 404), text


def test_damaged_storage_ends_the_answer(server: RunningServer, repository: Repository) -> None:
    cut, gone = repository.push(LARGE), repository.push(b"gone")
    path = server.state.storage.path(cut)
    assert path is not None
    path.write_bytes(LARGE[: 5 << 20])
    with pytest.raises(httpx2.RemoteProtocolError):
        repository.blob(cut)
    server.state.storage.delete([gone])
    answer = repository.blob(gone)
    assert code_of(answer) == (500, "UNKNOWN")
    assert str(server.state.settings.data) not in answer.text


def test_object_store_sends_blobs_itself_unless_that_is_forbidden(
    bucket: Bucket, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for redirect, status in ((True, 307), (False, 200)):
        data = tmp_path_factory.mktemp("server")
        settings = ServerSettings(data=data, storage=f"{bucket.url}/{redirect}", redirect=redirect)
        with running_server(data, settings) as running, running.client() as client:
            repository = Repository(client, "acme/search")
            digest = repository.push(LARGE)
            answer = client.get(f"{repository.path}/blobs/{digest}")
            assert answer.status_code == status
            if redirect:
                assert answer.headers["location"].startswith(bucket.server.endpoint)
                assert httpx2.get(answer.headers["location"]).content == LARGE
            else:
                assert answer.content == LARGE
                ranged = repository.blob(digest, {"Range": "bytes=8388600-8388700"})
                assert ranged.content == LARGE[8388600:8388701]


def test_proxy_in_front_sends_the_files_where_it_is_said_to(tmp_path_factory: pytest.TempPathFactory) -> None:
    data = tmp_path_factory.mktemp("server")
    with running_server(data, ServerSettings(data=data, accel="/stored/")) as running, running.client() as client:
        repository = Repository(client, "acme/search")
        digest = repository.push(b"some bytes")
        answer = repository.blob(digest)
        name = digest.removeprefix("sha256:")
        assert answer.headers["x-accel-redirect"] == f"/stored/blobs/sha256/{name[:2]}/{name}"
        assert answer.content == b""


def test_blob_that_is_collected_while_a_publisher_asks_for_it_is_not_told_to_be_there(
    server: RunningServer, repository: Repository
) -> None:
    digest, database = repository.push(b"sent and never named"), server.state.database
    with database.writing() as connection:
        connection.execute(blobs.update().values(touched="2020-01-01T00:00:00.000000Z"))
    looked, collected = threading.Event(), threading.Event()

    def look(_c: object, _u: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT blobs.size"):
            looked.set()

    def gather(_: object) -> None:
        if looked.is_set() and not collected.is_set():
            collected.set()
            assert collect(database, server.state.storage, 3600).blobs == 1

    event.listen(database.engine, "before_cursor_execute", look)
    event.listen(database.engine, "commit", gather)
    assert repository.client.head(f"{repository.path}/blobs/{digest}").status_code == 404
    assert collected.is_set()


def test_deleted_blob_is_gone_from_its_repository(repository: Repository) -> None:
    digest = repository.push(b"unwanted")
    other = Repository(repository.client, "acme/other")
    other.push(b"unwanted")
    assert repository.delete(f"blobs/{digest}").status_code == 202
    assert code_of(repository.blob(digest)) == (404, "BLOB_UNKNOWN")
    assert code_of(repository.delete(f"blobs/{digest}")) == (404, "BLOB_UNKNOWN")
    assert other.blob(digest).content == b"unwanted"


def test_blob_that_a_manifest_needs_is_not_deleted(repository: Repository) -> None:
    repository.push_image("first", layers=[b"needed"])
    assert code_of(repository.delete(f"blobs/{sha256(b'needed')}")) == (405, "UNSUPPORTED")
    assert repository.blob(sha256(b"needed")).status_code == 200
