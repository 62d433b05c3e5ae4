"""A whole deployment: two servers behind nginx, on PostgreSQL and an object store, each of which is killed in turn."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from deltareg.digest import sha256
from tests.registry.oci.repository import Repository
from tests.servers.deltareg_server import ROOT
from tests.servers.nginx import serve_nginx
from tests.servers.object_store import ObjectStore, serve_objects
from tests.servers.postgresql import PostgreSQL, serve_postgresql

DEPLOY = ROOT / "registry" / "deploy"
LARGE = os.urandom(1 << 20) * 12
"""More than two pieces of an upload to the object store."""


@dataclass
class Deployment:
    """What runs. `servers` are the processes, in the order of `ports`."""

    data: Path
    options: list[str]
    environment: dict[str, str]
    ports: list[int]
    url: str = ""
    token: str = ""
    servers: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, number: int) -> None:
        """Start a server, or start it again."""
        program = [sys.executable, "-c", "from deltareg_registry.cli import main; main()", "serve", "--log-format=json"]
        where = [f"--data={self.data}", f"--port={self.ports[number]}", *self.options]
        with (self.data.parent / f"log-{number}").open("a") as log:
            process = subprocess.Popen(
                [*program, *where], stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment, cwd=ROOT
            )
        self.servers[number : number + 1] = [process]
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving http")
        self.token = self.token or process.stdout.readline().rpartition(" ")[2].strip()

    def client(self, number: int | None = None) -> httpx2.Client:
        """The administrator, at one server or at nginx."""
        url = self.url if number is None else f"http://127.0.0.1:{self.ports[number]}"
        return httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {self.token}"}, timeout=20)

    def ready(self) -> list[int]:
        """What each server says of itself."""
        return [httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=20).status_code for port in self.ports]


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQL]:
    with serve_postgresql(outages=True) as running:
        yield running


@pytest.fixture(scope="module")
def objects() -> Iterator[ObjectStore]:
    with serve_objects(outages=True) as running:
        yield running


@pytest.fixture(scope="module")
def deployed(
    postgresql: PostgreSQL, objects: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    with ExitStack() as stack:
        ports = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]
    with ExitStack() as stack:
        database = stack.enter_context(postgresql.database())
        bucket = stack.enter_context(objects.bucket())
        options = [f"--database={database}", f"--storage={bucket.url}/registry", "--no-redirect", "--gc-every=0"]
        known = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'registry'}", "PYTHONUNBUFFERED": "1"}
        data = tmp_path_factory.mktemp("deployment") / "data"
        deployment = Deployment(data, options, {**known, **bucket.environment()}, ports)
        try:
            for number in range(2):
                deployment.start(number)
            named = (DEPLOY / "nginx-upstream.conf").read_text()
            upstream = named.replace("8401", str(ports[0])).replace("8402", str(ports[1]))
            locations = (DEPLOY / "nginx-locations.conf").read_text()
            deployment.url = stack.enter_context(serve_nginx(locations, around=upstream))
            yield deployment
        finally:
            for server in deployment.servers:
                server.kill()
                server.communicate()


def wait_for(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_version_that_was_pushed_through_nginx_is_seen_by_every_server(deployed: Deployment) -> None:
    with deployed.client() as client:
        repository = Repository(client, "acme/search")
        digest = repository.push_image("1.0.0", layers=[LARGE, b"small"])
        answers = [repository.blob(sha256(LARGE)) for _ in range(4)]
        assert all(answer.content == LARGE for answer in answers)
        assert client.get("/metrics").status_code == 404
    for number in range(2):
        with deployed.client(number) as client:
            assert sha256(Repository(client, "acme/search").manifest("1.0.0").content) == digest
            counted = client.get("/metrics").text
            assert 'route="/v2/{namespace}/{name}/blobs/{digest}"' in counted, "nginx sent to both"


def test_upload_whose_server_is_killed_goes_on_at_the_other(deployed: Deployment) -> None:
    data = os.urandom(1 << 20) * 11
    first = 6 << 20
    with deployed.client() as client:
        repository = Repository(client, "acme/search")
        location = urlsplit(repository.begin()).path
        assert client.patch(location, content=data[:first]).status_code == 202
        place = urlsplit(deployed.url)
        with socket.create_connection((place.hostname or "", place.port or 0)) as connection:
            head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {deployed.token}\r\n"
            connection.sendall(f"{head}Content-Length: {len(data) - first}\r\n\r\n".encode())
            connection.sendall(data[first : first + (1 << 20)])
            killed = -1
            while killed < 0:
                told = [httpx2.get(f"http://127.0.0.1:{port}/metrics").text for port in deployed.ports]
                busy = [number for number, text in enumerate(told) if "requests_in_progress 2.0" in text]
                killed = busy[0] if busy else -1
            deployed.servers[killed].kill()
            deployed.servers[killed].wait()
        status = client.get(location)
        assert (status.status_code, status.headers["range"]) == (204, f"0-{first - 1}")
        more = client.patch(location, content=data[first:], headers={"Content-Range": f"{first}-{len(data) - 1}"})
        assert more.status_code == 202
        assert client.put(location, params={"digest": sha256(data)}).status_code == 201
        deployed.start(killed)
    with deployed.client(killed) as client:
        assert Repository(client, "acme/search").blob(sha256(data)).content == data


def test_database_that_crashes_is_told_of_and_leaves_no_half_version(
    deployed: Deployment, postgresql: PostgreSQL
) -> None:
    with deployed.client() as client:
        repository = Repository(client, "acme/search")
        manifest = repository.manifest("1.0.0").content
        postgresql.outage.begin()
        try:
            refused = [client.get("/api/v1/whoami"), repository.put("2.0.0", manifest), client.get("/readyz")]
            assert [answer.status_code for answer in refused] == [503] * 3
            assert refused[0].json()["code"] == "DR0500"
            assert "database does not answer" in refused[0].json()["detail"]
            assert "database does not answer" in refused[1].json()["errors"][0]["message"]
            assert client.get("/healthz").status_code == 200
        finally:
            postgresql.outage.end()
        wait_for(lambda: deployed.ready() == [200, 200])
        assert repository.tags() == ["1.0.0"]
        assert repository.put("2.0.0", manifest).status_code == 201
        assert repository.tags() == ["1.0.0", "2.0.0"]


@pytest.mark.slow
def test_store_that_crashes_is_told_of_and_leaves_no_half_blob(deployed: Deployment, objects: ObjectStore) -> None:
    data = b"a blob that comes at the wrong time"
    with deployed.client() as client:
        repository = Repository(client, "acme/search")
        location = repository.begin()
        objects.outage.begin()
        try:
            wait_for(lambda: deployed.ready() == [503, 503])
            assert "the storage cannot be used" in client.get("/readyz").json()["detail"]
            refused = client.put(location, params={"digest": sha256(data)}, content=data)
            assert refused.status_code == 503, refused.text
            assert repository.blob(sha256(data)).status_code == 404
            assert repository.manifest("1.0.0").status_code == 200, "what is in the database is still told"
        finally:
            objects.outage.end()
        wait_for(lambda: deployed.ready() == [200, 200])
        assert repository.push(data) == sha256(data)
        assert repository.blob(sha256(data)).content == data
        assert repository.blob(sha256(LARGE)).content == LARGE
    for number in range(2):
        log = (deployed.data.parent / f"log-{number}").read_text()
        assert deployed.token not in log and "Traceback" not in log
