"""A deltareg registry on loopback: in a thread of the test, or in a process that can be killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import pytest
import uvicorn

from deltareg_registry.access.principal import Scope
from deltareg_registry.access.tokens import make_token
from deltareg_registry.app import create_app, open_state
from deltareg_registry.database import now
from deltareg_registry.database.tables import members, metadata, tokens, upkeep, users
from deltareg_registry.first import first_token
from deltareg_registry.records.namespaces import insert_if_absent
from deltareg_registry.settings import ServerSettings
from deltareg_registry.state import State

__all__ = ["RunningServer", "ServerProcess", "empty", "running_server", "server", "server_process"]

ROOT = Path(__file__).resolve().parents[2]
_KEPT = (users, tokens, upkeep)


@dataclass(frozen=True)
class RunningServer:
    """A server that answers at `url`; `token` is its first administrator's."""

    url: str
    token: str
    state: State

    def client(self, token: str | None = None, *, anonymous: bool = False) -> httpx2.Client:
        """A plain HTTP client that is signed in as the administrator, as somebody else, or not at all."""
        headers = {} if anonymous else {"Authorization": f"Bearer {token or self.token}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30)

    def user(self, name: str, *, admin: bool = False, scopes: list[Scope] | None = None, **roles: str) -> str:
        """The token of a user, made if need be, with a role in each namespace that is given."""
        with self.state.database.writing() as connection:
            insert_if_absent(connection, users, {"name": name, "admin": admin, "created": now()})
            for namespace, role in roles.items():
                values = {"namespace": namespace, "user": name, "role": role, "since": now()}
                insert_if_absent(connection, members, values)
            return make_token(connection, name, "test", scopes=scopes)[1]


@contextmanager
def running_server(data: Path, settings: ServerSettings | None = None) -> Generator[RunningServer]:
    """A server in a thread, whose data lie in `data`."""
    settings = replace(settings or ServerSettings(data=data), data=data)
    state = open_state(settings)
    token = first_token(state.database) or ""
    config = uvicorn.Config(create_app(settings, state), host="127.0.0.1", port=0, log_level="warning")
    listening = config.bind_socket()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    _wait(url)
    try:
        yield RunningServer(url, token, state)
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


@dataclass(frozen=True)
class ServerProcess:
    """A server of its own process."""

    url: str
    token: str | None
    process: subprocess.Popen[bytes]
    said: Path
    """The file of what it prints."""


@contextmanager
def server_process(data: Path, *arguments: str, log: Path | None = None) -> Generator[ServerProcess]:
    """`deltareg-registry serve` with more arguments, in a process that ends afterwards; `log` is a file for its log."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'registry'}", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", "from deltareg_registry.cli import main; main()", "serve", "--data", str(data)]
    said = data.with_name(f"{data.name}.out")
    with said.open("wb") as output, nullcontext() if log is None else log.open("ab") as errors:
        process = subprocess.Popen(
            [*command, "--port", "0", *arguments], stdout=output, stderr=errors, env=environment, cwd=ROOT
        )
    try:
        deadline = time.monotonic() + 30
        while (found := re.search(r"http\S+\n", said.read_text())) is None:
            assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.02)
        url = found[0].strip()
        _wait(url)
        # By now it has said all: the token too, if it made one.
        told = re.search(r"drt_\S+", said.read_text())
        token = None if told is None else told[0]
        yield ServerProcess(url, token, process, said)
    finally:
        process.kill()
        process.wait(10)


def empty(server: RunningServer) -> None:
    """Take everything out of a server but its users and their tokens, so that another test can have it."""
    with server.state.database.writing() as connection:
        for table in reversed(metadata.sorted_tables):
            if table not in _KEPT:
                connection.execute(table.delete())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A new server."""
    with running_server(tmp_path / "server") as running:
        yield running


def _wait(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            assert httpx2.get(f"{url}/readyz").status_code == 200
            return
        except httpx2.TransportError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.02)
