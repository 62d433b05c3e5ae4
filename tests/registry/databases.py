"""Both databases: what is tested with the fixture `state` is tested over SQLite and over PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deltareg.store import Store
from deltareg_registry.app import open_state
from deltareg_registry.first import first_token
from deltareg_registry.settings import ServerSettings
from deltareg_registry.state import State
from tests.servers.postgresql import PostgreSQL, serve_postgresql

__all__ = ["local", "postgresql", "state"]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A real PostgreSQL on loopback."""
    with serve_postgresql() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    """What a new registry works with, in files of its own and in either database."""
    with ExitStack() as stack:
        url: str | None = None
        if request.param == "postgresql":
            running: PostgreSQL = request.getfixturevalue("postgresql")
            url = stack.enter_context(running.database())
        opened = open_state(ServerSettings(data=tmp_path / "server", database=url))
        stack.callback(opened.database.close)
        first_token(opened.database)
        yield opened


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """A store in which deltas are made."""
    return Store(tmp_path / "local")
