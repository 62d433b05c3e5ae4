"""`deltareg-registry serve`: how a server starts, what it says where it cannot, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from deltareg_registry.app import open_state
from deltareg_registry.settings import ServerSettings
from deltareg_registry.state import State
from deltareg_registry.upkeep.background import collect_if_due
from tests.registry.oci.repository import Repository
from tests.servers.deltareg_server import ROOT, ServerProcess, server_process
from tests.servers.postgresql import PostgreSQL


def serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What becomes of a server that does not start."""
    known = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'registry'}", "NO_COLOR": "1", **environment}
    program = [sys.executable, "-c", "from deltareg_registry.cli import main; main()", "serve", *arguments]
    return subprocess.run(program, capture_output=True, text=True, env=known, cwd=ROOT, timeout=30)


@contextmanager
def half_a_request(server: ServerProcess) -> Iterator[socket.socket]:
    """A request whose body is on its way, and of which the server has seen the beginning."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as connection:
        head = f"POST /api/v1/namespaces HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {server.token}\r\n"
        connection.sendall(f'{head}Content-Type: application/json\r\nContent-Length: 15\r\n\r\n{{"name":'.encode())
        end = time.monotonic() + 10
        while b"requests_in_progress 2.0" not in httpx2.get(f"{server.url}/metrics").content:
            assert time.monotonic() < end
        yield connection


def is_closed(url: str) -> bool:
    try:
        httpx2.get(f"{url}/healthz")
    except httpx2.TransportError:
        return True
    return False


def wait_until_closed(url: str) -> None:
    end = time.monotonic() + 10
    while not is_closed(url):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_server_is_ready_soon_and_tells_its_token_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    with server_process(tmp_path) as server:
        # Half of it is the time that the test's own machine takes; a server that waits for something takes longer.
        assert time.monotonic() - begun < 10
        assert server.token is not None and server.token.startswith("drt_")
        answer = httpx2.get(f"{server.url}/api/v1/whoami", headers={"Authorization": f"Bearer {server.token}"})
        assert answer.json()["user"] == "owner"
        server.process.terminate()
        assert server.said.read_text().splitlines()[-1] == f"log in with: deltareg login {server.url}"
        assert server.process.wait(10) == 0
    with server_process(tmp_path) as again:
        again.process.terminate()
        again.process.wait(10)
        assert again.said.read_text().splitlines() == [f"serving {again.url}"], "the token is told once"


def test_options_come_from_the_environment_too(tmp_path: Path) -> None:
    told = serve(
        "--host", "127.0.0.1", "--port", "0",
        DELTAREG_REGISTRY_DATA=str(tmp_path),
        DELTAREG_REGISTRY_DATABASE="oracle://owner:s3cret@host/name",
    )  # fmt: skip
    assert told.returncode == 1
    assert "the URL of the database is not understood" in told.stderr
    assert "s3cret" not in told.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "Invalid value for '--port'"),
        (["--rate-limit", "0"], "Invalid value for '--rate-limit'"),
        (["--drain", "-1"], "Invalid value for '--drain'"),
        (["--gc-every", "soon"], "Invalid value for '--gc-every'"),
        (["--log-format", "xml"], "Invalid value for '--log-format'"),
        (["--storage", "ftp://somewhere"], "not the name of a place in an object store"),
        (["--host", "no.such.host.invalid"], "cannot listen at no.such.host.invalid:0"),
        (["--proxy", "10.0.0.1/8"], "'10.0.0.1/8' is not a network"),
    ],
)
def test_wrong_options_are_told(arguments: list[str], message: str, tmp_path: Path) -> None:
    told = serve("--data", str(tmp_path), "--port", "0", *arguments)
    assert (told.returncode, told.stdout) == (2, "")
    assert message in told.stderr
    assert "Traceback" not in told.stderr


def test_port_that_is_taken_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = serve("--data", str(tmp_path / "new"), "--port", port)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.splitlines() == [
        f"error[DR0101]: cannot listen at 127.0.0.1:{port}",
        "cause: Address already in use",
        "hint: name another --host or --port",
    ]
    assert not (tmp_path / "new").exists()


def test_data_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = serve("--data", str(tmp_path / "file" / "data"), "--port", "0")
    assert (told.returncode, told.stdout) == (1, "")
    assert f"could not make the data directory: {tmp_path}/file/data: Not a directory" in told.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="nobody may make directories in /sys, not even root")
def test_data_directory_without_permission_is_told() -> None:
    told = serve("--data", "/sys/deltareg", "--port", "0")
    assert (told.returncode, told.stdout) == (4, "")
    assert "/sys/deltareg" in told.stderr and "hint:" in told.stderr and "Traceback" not in told.stderr


def test_database_that_does_not_answer_is_told(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    url = f"postgresql://owner:s3cret@127.0.0.1:{port}/name"
    told = serve("--data", str(tmp_path), "--port", "0", "--database", url)
    assert (told.returncode, told.stdout) == (6, "")
    assert "the registry's database does not answer" in told.stderr
    assert "refused" in told.stderr and "hint:" in told.stderr
    assert "s3cret" not in told.stderr and "Traceback" not in told.stderr


def test_request_that_has_begun_is_answered_after_the_signal(tmp_path: Path) -> None:
    with server_process(tmp_path, "--drain", "20") as server:
        with half_a_request(server) as connection:
            server.process.send_signal(signal.SIGTERM)
            wait_until_closed(server.url)
            assert server.process.poll() is None
            connection.sendall(b'"acme"}')
            assert connection.recv(4096).startswith(b"HTTP/1.1 201 ")
        assert server.process.wait(10) == 0


def test_download_that_has_begun_comes_whole_after_the_signal(tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 48
    with server_process(tmp_path, "--drain", "20") as server:
        with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as client:
            repository = Repository(client, "acme/search")
            digest = repository.push(data)
            with client.stream("GET", f"/v2/acme/search/blobs/{digest}") as answer:
                pieces = answer.iter_bytes(1 << 20)
                received = [next(pieces)]
                server.process.send_signal(signal.SIGTERM)
                wait_until_closed(server.url)
                assert server.process.poll() is None, "the rest does not fit into the buffers between them"
                received += pieces
        assert b"".join(received) == data
        assert server.process.wait(10) == 0


def test_request_that_takes_longer_than_the_drain_is_cut(tmp_path: Path) -> None:
    with server_process(tmp_path, "--drain", "1") as server, half_a_request(server) as connection:
        server.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert server.process.wait(10) == 0
        assert 0.5 < time.monotonic() - begun < 8
        assert b"201" not in connection.recv(4096)


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    with server_process(tmp_path, "--drain", "60") as server, half_a_request(server):
        server.process.send_signal(signal.SIGTERM)
        wait_until_closed(server.url)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == -signal.SIGTERM


def test_two_processes_write_to_one_database_file_in_turn(tmp_path: Path) -> None:
    with server_process(tmp_path) as one, server_process(tmp_path) as other:
        failed: list[str] = []

        def write(url: str, prefix: str) -> None:
            with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {one.token}"}, timeout=30) as client:
                for number in range(25):
                    answer = client.post("/api/v1/namespaces", json={"name": f"{prefix}{number}"})
                    if answer.status_code != 201:
                        failed.append(answer.text)

        writers = [threading.Thread(target=write, args=given) for given in ((one.url, "a"), (other.url, "b"))]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert failed == []
        answer = httpx2.get(f"{other.url}/api/v1/namespaces/a24", headers={"Authorization": f"Bearer {one.token}"})
        assert answer.status_code == 200


def test_processes_that_start_at_once_make_one_registry(tmp_path: Path, postgresql: PostgreSQL) -> None:
    with postgresql.database() as url:
        for where in (["--data", str(tmp_path / "sqlite")], ["--data", str(tmp_path / "p"), "--database", url]):
            program = [sys.executable, "-c", "from deltareg_registry.cli import main; main()", "serve", "--port", "0"]
            environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'registry'}"}
            started = [
                subprocess.Popen([*program, *where], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
                for _ in range(3)
            ]
            try:
                told = [process.stdout.readline() for process in started if process.stdout is not None]
                assert all(line.startswith("serving http") for line in told)
            finally:
                for process in started:
                    process.terminate()
            rest = "".join(process.stdout.read() for process in started if process.stdout is not None)
            for process in started:
                process.wait(20)
            assert rest.count("shown this once") == 1


def test_log_is_json_where_that_is_asked_for(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from deltareg_registry.cli import main; main()", "serve", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'registry'}"}
    process = subprocess.Popen(
        [*program, "--data", str(tmp_path), "--log-format", "json", "--gc-every", "0.2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().split()[1]
        httpx2.get(f"{url}/api/v1?token=drt_secret", headers={"X-Request-Id": "mine"})
        collected: dict[str, object] = {}
        lines: list[dict[str, object]] = []
        while not collected:
            lines.append(json.loads(process.stderr.readline()))
            collected = next((line for line in lines if line["event"] == "collected"), {})
    finally:
        process.kill()
        process.communicate()
    assert any(line.get("request_id") == "mine" and line["path"] == "/api/v1" for line in lines)
    assert "drt_" not in json.dumps(lines)
    assert (collected["level"], collected["blobs"], collected["dry_run"]) == ("info", 0, False)


def test_one_process_of_several_collects(any_settings: ServerSettings) -> None:
    states = [open_state(any_settings) for _ in range(4)]
    for state in states:
        collect_if_due(state, 3600)
    runs = [threading.Thread(target=collect_if_due, args=(state, 0.05)) for state in states]
    time.sleep(0.1)
    before = _started(states[0])
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    started, ended, fault = _started(states[0])
    assert before[1] is None, "the first start has nothing to remove"
    assert started > before[0] and ended is not None and fault is None
    for state in states:
        state.database.close()


def _started(state: State) -> tuple[str, str | None, str | None]:
    with state.database.reading() as connection:
        row = connection.exec_driver_sql("select started, ended, fault from upkeep where task = 'gc'").one()
    return row[0], row[1], row[2]
