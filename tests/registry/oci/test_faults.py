"""Disks that are full, servers that are killed, stores that fail: what was sent stays, and nothing half is seen."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import httpx2
import pytest

from deltareg.digest import sha256
from deltareg.errors import DigestMismatch
from deltareg_registry.settings import ServerSettings
from deltareg_registry.storage import open_storage
from tests.deltas import noise
from tests.disks import fill, small_disk
from tests.registry.oci.repository import Repository, code_of
from tests.servers.deltareg_server import RunningServer, running_server, server_process
from tests.servers.object_store import Bucket, Proxy

DATA = noise(3 << 20)


def test_upload_goes_on_after_the_server_was_killed(tmp_path: Path) -> None:
    with server_process(tmp_path / "server") as first:
        headers = {"Authorization": f"Bearer {first.token}"}
        with httpx2.Client(base_url=first.url, headers=headers, timeout=30) as client:
            place = Repository(client, "acme/search").begin()
            assert client.patch(place, content=DATA[: 2 << 20]).status_code == 202
        first.process.kill()
    with (
        server_process(tmp_path / "server") as second,
        httpx2.Client(base_url=second.url, headers=headers, timeout=30) as client,
    ):
        repository = Repository(client, "acme/search")
        assert client.get(place).headers["range"] == f"0-{(2 << 20) - 1}"
        answer = client.put(place, params={"digest": sha256(DATA)}, content=DATA[2 << 20 :])
        assert answer.status_code == 201
        assert repository.blob(sha256(DATA)).content == DATA


def test_full_disk_is_told_and_the_upload_goes_on_once_there_is_room(tmp_path: Path) -> None:
    data = tmp_path / "server"
    with (
        small_disk(data / "storage", 8192) as disk,
        running_server(data, ServerSettings(data=data)) as running,
        running.client() as client,
    ):
        repository = Repository(client, "acme/search")
        place = repository.begin()
        assert client.patch(place, content=DATA[: 1 << 20]).status_code == 202
        ballast = fill(disk)
        answer = client.patch(place, content=DATA[1 << 20 :])
        assert answer.status_code == 507
        assert answer.json()["errors"][0]["detail"]["code"] == "DR0004"
        arrived = int(client.get(place).headers["range"].removeprefix("0-")) + 1
        assert arrived == 1 << 20
        ballast.unlink()
        assert client.put(place, params={"digest": sha256(DATA)}, content=DATA[arrived:]).status_code == 201
        assert repository.blob(sha256(DATA)).content == DATA


def test_files_of_blobs_belong_to_their_digest_and_are_not_written_again(
    server: RunningServer, repository: Repository
) -> None:
    path = server.state.storage.path(repository.push(DATA))
    assert path is not None and path.read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    # A damaged one is mended by whoever sends it again.
    path.write_bytes(b"damaged")
    repository.push(DATA)
    assert path.read_bytes() == DATA
    assert os.listdir(path.parent) == [path.name]


def test_object_store_that_fails_loses_no_upload(bucket: Bucket, proxy: Proxy, tmp_path: Path) -> None:
    data = tmp_path / "server"
    settings = ServerSettings(data=data, storage=f"{bucket.url}/registry", redirect=False)
    with running_server(data, settings) as running, running.client() as client:
        repository = Repository(client, "acme/search")
        place = repository.begin()
        assert client.patch(place, content=DATA[: 1 << 20]).status_code == 202
        proxy.refuse = lambda request: 403 if request.startswith("PUT") else None
        refused = client.patch(place, content=DATA[1 << 20 :])
        # The store refuses the server, not whoever pushes.
        assert code_of(refused) == (500, "UNKNOWN")
        assert client.get(place).headers["range"] == f"0-{(1 << 20) - 1}"
        proxy.refuse = lambda request: None
        assert client.put(place, params={"digest": sha256(DATA)}, content=DATA[1 << 20 :]).status_code == 201
        assert repository.blob(sha256(DATA)).content == DATA
        assert bucket.uploads() == []


def test_blob_whose_bytes_are_others_leaves_nothing_in_the_object_store(bucket: Bucket, tmp_path: Path) -> None:
    data = tmp_path / "server"
    settings = ServerSettings(data=data, storage=f"{bucket.url}/registry")
    large = noise(17 << 19)
    with running_server(data, settings) as running, running.client() as client:
        repository = Repository(client, "acme/search")
        answer = client.put(repository.begin(), params={"digest": sha256(b"others")}, content=large)
        assert code_of(answer) == (400, "DIGEST_INVALID")
    assert bucket.files("registry") == {}
    assert bucket.uploads() == []


def test_connection_that_fell_silent_does_not_keep_an_upload(tmp_path: Path) -> None:
    data = tmp_path / "server"
    with running_server(data, ServerSettings(data=data, silence=0.5)) as running, running.client() as client:
        repository = Repository(client, "acme/search")
        place = repository.begin()
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"PATCH {place} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {running.token}\r\n"
            connection.sendall(f"{head}Content-Length: {len(DATA)}\r\n\r\n".encode() + DATA[: 1 << 20])
            answer = connection.recv(4000)
            while b"}]}" not in answer and (more := connection.recv(4000)):
                answer += more
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b'"code":"DR0500"' in answer
            # The connection is still open.
            assert client.get(place).headers["range"] == f"0-{(1 << 20) - 1}"
            last = client.put(place, params={"digest": sha256(DATA)}, content=DATA[1 << 20 :])
            assert last.status_code == 201


def test_blob_of_a_copy_goes_straight_to_its_place_once_it_is_verified(bucket: Bucket, tmp_path: Path) -> None:
    large = noise(17 << 19)
    pieces = [large[: 4 << 20], large[4 << 20 :]]
    store = open_storage(f"{bucket.url}/registry", tmp_path)
    with pytest.raises(DigestMismatch):
        store.put_stream(sha256(b"others"), len(large), pieces)
    assert (bucket.files("registry"), bucket.uploads()) == ({}, [])
    store.put_stream(sha256(large), len(large), pieces)
    assert list(bucket.files("registry").values()) == [large]


def test_damaged_blob_of_a_copy_leaves_no_file(tmp_path: Path) -> None:
    store = open_storage(None, tmp_path)
    with pytest.raises(DigestMismatch):
        store.put_stream(sha256(b"others"), len(DATA), [DATA])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    store.put_stream(sha256(DATA), len(DATA), [DATA])
    assert [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] == [DATA]
