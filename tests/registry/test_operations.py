"""What an operator sees of a server: metrics, request ids, the log, and whether it is ready."""

from __future__ import annotations

import io
import json
import logging
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deltareg.errors import BucketUnavailable
from deltareg_registry.logs import configure_logging
from deltareg_registry.readiness import Readiness
from deltareg_registry.settings import ServerSettings
from deltareg_registry.storage import open_storage
from tests.servers.deltareg_server import RunningServer, running_server


class Log(io.StringIO):
    """What was logged."""

    @property
    def events(self) -> list[dict[str, Any]]:
        """Each line of it."""
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def of(self, identity: str) -> list[dict[str, Any]]:
        """The lines about one request."""
        return [event for event in self.events if event.get("request_id") == identity]


@pytest.fixture
def log() -> Iterator[Log]:
    """The log as JSON, as long as a test runs."""
    root, ours = logging.getLogger(), logging.getLogger("deltareg_registry")
    kept = root.handlers[:], root.level, ours.level
    stream = Log()
    configure_logging(json=True, stream=stream)
    yield stream
    root.handlers[:], level, mine = kept
    root.setLevel(level)
    ours.setLevel(mine)


def wait_for(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def metrics_of(server: RunningServer, token: str | None = None) -> dict[str, dict[tuple[str, ...], float]]:
    with server.client(token, anonymous=token is None) as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            name = sample.name.removeprefix("deltareg_registry_")
            found.setdefault(name, {})[tuple(sample.labels[key] for key in sorted(sample.labels, reverse=True))] = (
                sample.value
            )
    return found


def test_requests_are_counted_by_their_route(server: RunningServer) -> None:
    with server.client() as client:
        for name in ("acme", "other"):
            assert client.post("/api/v1/namespaces", json={"name": name}).status_code == 201
            assert client.get(f"/api/v1/namespaces/{name}").status_code == 200
        client.get("/api/v1/namespaces/none")
        client.get("/made/up/by/somebody")
        client.request("PROPFIND", "/healthz")
    told = metrics_of(server)
    requests = told["requests_total"]
    assert requests["200", "/api/v1/namespaces/{namespace}", "GET"] == 2
    assert requests["404", "/api/v1/namespaces/{namespace}", "GET"] == 1
    assert requests["201", "/api/v1/namespaces", "POST"] == 2
    assert requests["404", "unknown", "GET"] == 1
    assert not any("acme" in label or "PROPFIND" in label for labels in requests for label in labels)
    assert told["request_seconds_count"]["/api/v1/namespaces", "POST"] == 2
    assert told["received_bytes_total"][()] == len(b'{"name":"acme"}') + len(b'{"name":"other"}')
    assert told["sent_bytes_total"][()] > 500
    assert told["requests_in_progress"][()] == 1, "this one"
    assert told["process_start_time_seconds"][()] > 0


def test_what_the_database_holds_is_told(any_settings: ServerSettings) -> None:
    with running_server(any_settings.data, any_settings) as server:
        told = metrics_of(server)
        for name in ("versions", "blobs", "blob_bytes", "open_uploads", "waiting_deliveries"):
            assert told[name] == {(): 0}
        assert told["database_up"][()] == 1
        assert 1 <= told["database_connections"][()] <= 20
        assert told["database_connections_used"][()] <= 1


def test_metrics_are_for_administrators_and_the_machine_itself(server: RunningServer) -> None:
    elsewhere = {"X-Forwarded-For": "192.0.2.7"}
    rita = server.user("rita")
    with server.client(anonymous=True) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/metrics", headers=elsewhere).status_code == 401
        assert client.get("/metrics", headers={**elsewhere, "Authorization": f"Bearer {rita}"}).status_code == 403
        assert client.get("/metrics", headers={**elsewhere, "Authorization": f"Bearer {server.token}"}).is_success


def test_each_request_has_an_id_in_answer_problem_and_log(server: RunningServer, log: Log) -> None:
    with server.client() as client:
        made = client.get("/api/v1/namespaces/none?token=drt_secret", headers={"Cookie": "deltareg_token=drt_biscuit"})
        identity = made.headers["x-request-id"]
        assert made.json()["requestId"] == identity and len(identity) == 32
        taken = client.get("/healthz", headers={"X-Request-Id": "proxy-1.7:x"})
        assert taken.headers["x-request-id"] == "proxy-1.7:x"
        for odd in ("a b", "x" * 65, 'x"}'):
            assert client.get("/healthz", headers={"X-Request-Id": odd}).headers["x-request-id"] != odd
    wait_for(lambda: log.of(identity))
    (line,) = log.of(identity)
    assert line["ms"] > 0 and line["sent"] > 100
    assert {key: line[key] for key in ("event", "method", "path", "status", "user", "address", "received")} == {
        "event": "request",
        "method": "GET",
        "path": "/api/v1/namespaces/{namespace}",
        "status": 404,
        "user": "owner",
        "address": "127.0.0.1",
        "received": 0,
    }
    assert not any(secret in log.getvalue() for secret in ("drt_", server.token))


def test_fault_of_the_server_is_logged_with_its_request_and_hidden_from_who_asks(
    server: RunningServer, log: Log
) -> None:
    with server.state.database.writing() as connection:
        connection.exec_driver_sql("update tokens set scopes = '[{\"namespace\": 7}]'")
    with server.client() as client:
        answer = client.get("/api/v1/whoami")
    identity = answer.headers["x-request-id"]
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert answer.json()["detail"] == "the server failed"
    assert identity in answer.json()["hint"] and "ValidationError" not in answer.text
    wait_for(lambda: len(log.of(identity)) == 2)
    fault, line = log.of(identity)
    assert "ValidationError" in fault["exception"] and server.token not in fault["exception"]
    assert line["status"] == 500


def test_client_that_goes_away_is_told_of_in_one_line(server: RunningServer, log: Log) -> None:
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
        head = "POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nX-Request-Id: gone\r\nContent-Length: 50\r\n"
        connection.sendall(f"{head}Authorization: Bearer {server.token}\r\n\r\n{{".encode())
        time.sleep(0.2)
    wait_for(lambda: log.of("gone"))
    (line,) = log.of("gone")
    # What it had sent by then need not have been read: first it is asked who sends it.
    assert (line["status"], line["received"]) in ((499, 1), (400, 1), (400, 0), (499, 0))


def test_log_for_people_has_one_line_a_request(server: RunningServer, log: Log) -> None:
    configure_logging(json=False, stream=log)
    with server.client() as client:
        client.get("/api/v1/whoami", headers={"X-Request-Id": "abc"})
    wait_for(log.getvalue)
    (line,) = log.getvalue().splitlines()
    for part in ("[info", "request_id=abc", "path=/api/v1/whoami", "status=200", "user=owner"):
        assert part in line


def test_readiness_asks_the_storage_and_liveness_asks_nothing(tmp_path: Path) -> None:
    with running_server(tmp_path / "server") as server, server.client(anonymous=True) as client:
        assert client.get("/readyz").json() == {"status": "ok"}
        shutil.rmtree(tmp_path / "server" / "storage")
        assert client.get("/readyz").status_code == 200, "it was asked a moment ago"
        server.state.readiness._seconds = 0.0
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "DR0500")
        assert "cause" not in answer.json(), "it names the directory, which is nobody's affair"
        assert client.get("/healthz").status_code == 200
        (tmp_path / "server" / "storage").mkdir()
        assert client.get("/readyz").status_code == 200


def test_storage_that_hangs_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        readiness = Readiness(open_storage("s3://bucket", tmp_path), patience=0.2)
        for _ in range(3):
            begun = time.monotonic()
            with pytest.raises(BucketUnavailable, match="s3://bucket does not answer"):
                readiness.check()
            assert time.monotonic() - begun < 2
