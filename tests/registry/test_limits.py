"""What one client may ask for: requests a second, and bytes and seconds of a document."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import httpx2
import pytest
from starlette.types import Message, Receive, Scope, Send

from deltareg_registry.limits import Buckets, DocumentLimit, RateLimit
from deltareg_registry.settings import ServerSettings
from tests.servers.deltareg_server import RunningServer, running_server, server_process


@pytest.fixture
def slow_server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server that answers one request a second in the long run, ten at once, and waits a second for a document."""
    settings = ServerSettings(data=tmp_path, rate_limit=1.0, body_seconds=1.0, document_limit=10_000)
    with running_server(tmp_path / "server", settings) as running:
        yield running


def test_buckets_give_what_flows_into_them() -> None:
    time_now = 0.0
    buckets = Buckets(2.0, clock=lambda: time_now)
    assert [buckets.take("a") for _ in range(20)] == [0.0] * 20
    assert buckets.take("a") == 0.5
    assert buckets.take("b") == 0.0
    time_now = 0.25
    assert buckets.take("a") == 0.25
    time_now = 0.5
    assert buckets.take("a") == 0.0 and buckets.take("a") == 0.5
    time_now = 1e6
    assert [buckets.take("a") for _ in range(21)] == [0.0] * 20 + [0.5]


def test_whoever_asks_too_often_is_told_how_long_to_wait(slow_server: RunningServer) -> None:
    with slow_server.client(anonymous=True) as client:
        answers = [client.get("/api/v1") for _ in range(14)]
        last = answers[-1]
        assert (last.status_code, last.json()["code"]) == (429, "DR0503")
        assert last.headers["Retry-After"] == "1"
        assert last.headers["Content-Type"] == "application/problem+json"
        assert client.get("/healthz").status_code == 200, "health is never refused"
        oci = client.get("/v2/")
        assert (oci.status_code, oci.json()["errors"][0]["code"]) == (429, "TOOMANYREQUESTS")
        time.sleep(1.2)
        assert client.get("/api/v1").status_code == 200


def test_a_good_token_has_a_limit_of_its_own_and_made_up_ones_share_their_address(slow_server: RunningServer) -> None:
    with slow_server.client() as client:
        assert client.get("/api/v1/whoami").status_code == 200
        with slow_server.client(anonymous=True) as stranger:
            made_up = [
                stranger.get("/api/v1/whoami", headers={"Authorization": f"Bearer drt_{number}"}).status_code
                for number in range(14)
            ]
            nowhere = [
                stranger.get("/nowhere", headers={"Authorization": f"Bearer drt_{number}"}).status_code
                for number in range(3)
            ]
        assert made_up.count(401) >= 8 and made_up[-1] == 429
        assert nowhere == [429] * 3, "what does not look at the token proves nothing"
        assert client.get("/api/v1/whoami").status_code == 200, "the administrator is not kept out by that"


def test_a_token_has_one_limit_whatever_user_name_comes_with_it(slow_server: RunningServer) -> None:
    with slow_server.client(anonymous=True) as client:
        answers = [client.get("/v2/", auth=(f"user{number}", slow_server.token)).status_code for number in range(14)]
    assert answers[0] == 200 and answers[-1] == 429


def test_a_document_that_is_too_long_is_not_read(slow_server: RunningServer) -> None:
    with slow_server.client() as client:
        for content in (b'{"name": "' + b"x" * 20_000 + b'"}', iter([b"x" * 6000] * 3)):
            answer = client.post("/api/v1/namespaces", content=content, headers={"Content-Type": "application/json"})
            assert (answer.status_code, answer.json()["code"]) == (413, "DR0305")
            assert answer.headers["content-type"] == "application/problem+json"
            assert "more than 10000 bytes" in answer.json()["detail"]
            assert answer.json()["title"].startswith("More bytes were sent than the remote takes")
        assert client.post("/api/v1/namespaces", json={"name": "acme"}).status_code == 201


def test_a_document_that_comes_too_slowly_is_not_waited_for(slow_server: RunningServer) -> None:
    parts = urlsplit(slow_server.url)
    head = [
        "POST /api/v1/namespaces HTTP/1.1",
        f"Host: {parts.netloc}",
        f"Authorization: Bearer {slow_server.token}",
        "Content-Type: application/json",
        "Content-Length: 50",
    ]
    begun = time.monotonic()
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as connection:
        connection.sendall("\r\n".join([*head, "", '{"na']).encode())
        received = b""
        while piece := connection.recv(4096):
            received += piece
    assert 0.9 < time.monotonic() - begun < 15
    top, _, body = received.partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in top.lower()
    assert json.loads(body)["detail"] == "the document did not arrive in 1 s"
    assert json.loads(body)["code"] == "DR0500"


def test_method_that_a_path_does_not_take_is_no_bug(slow_server: RunningServer) -> None:
    with slow_server.client() as client:
        answer = client.patch("/api/v1/whoami")
    assert (answer.status_code, answer.json()["code"]) == (405, "DR0100")
    assert answer.json()["detail"] == "/api/v1/whoami does not take PATCH"
    assert "GET" in answer.json()["hint"]


def test_what_is_streamed_passes_piece_by_piece() -> None:
    pieces: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            assert len(pieces) == number, "the piece before has arrived when the next is made"
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": number < 2})

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            pieces.append(message["body"])

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    limited = RateLimit(DocumentLimit(app, size=10, seconds=1.0), rate=1.0)
    scope = {"type": "http", "path": "/api/v1", "headers": [], "client": ("10.0.0.1", 1)}
    anyio.run(limited, scope, receive, send)
    assert pieces == [b"0", b"1", b"2"]


def test_the_options_of_the_command_reach_the_server(tmp_path: Path) -> None:
    options = ("--rate-limit", "0.5", "--namespace-makers", "admins", "--log-format", "json")
    with server_process(tmp_path / "server", *options) as running:
        with httpx2.Client(base_url=running.url, headers={"Authorization": f"Bearer {running.token}"}) as admin:
            assert admin.post("/api/v1/users", json={"name": "rita"}).status_code == 201
            token = admin.post("/api/v1/users/rita/tokens", json={"name": "laptop"}).json()["token"]
        with httpx2.Client(base_url=running.url, headers={"Authorization": f"Bearer {token}"}) as client:
            answers = [client.post("/api/v1/namespaces", json={"name": "acme"}).status_code for _ in range(9)]
    assert answers[0] == 403 and answers[-1] == 429
