"""Servers over files and over an object store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deltareg_registry.settings import ServerSettings
from tests.registry.oci.repository import Repository
from tests.servers.deltareg_server import RunningServer, running_server
from tests.servers.object_store import Bucket


@pytest.fixture(params=["files", "objects"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningServer]:
    """A server whose blobs lie in files, and one whose blobs lie in an object store, which sends them itself."""
    settings = ServerSettings(data=tmp_path / "server")
    if request.param == "objects":
        bucket: Bucket = request.getfixturevalue("bucket")
        settings = ServerSettings(data=tmp_path / "server", storage=f"{bucket.url}/registry")
    with running_server(tmp_path / "server", settings) as running:
        yield running


@pytest.fixture
def either_repository(either: RunningServer) -> Iterator[Repository]:
    """A repository of a server of either kind."""
    with either.client() as client:
        yield Repository(client, "acme/search")


@pytest.fixture
def repository(server: RunningServer) -> Iterator[Repository]:
    """A repository of a new server, as its administrator sees it."""
    with server.client() as client:
        yield Repository(client, "acme/search")


@pytest.fixture
def shared(database: str, tmp_path: Path) -> Iterator[RunningServer]:
    """A server whose database is PostgreSQL."""
    with running_server(tmp_path / "server", ServerSettings(data=tmp_path / "server", database=database)) as running:
        yield running
