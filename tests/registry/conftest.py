"""What tests of the server share."""

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
from tests.servers.deltareg_server import server

__all__ = ["server"]


@pytest.fixture(params=["sqlite", "postgresql"])
def any_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerSettings]:
    """The settings of a server, once with SQLite and once with PostgreSQL."""
    with ExitStack() as stack:
        url = None
        if request.param == "postgresql":
            url = stack.enter_context(request.getfixturevalue("postgresql").database())
        yield ServerSettings(data=tmp_path / "server", database=url)


@pytest.fixture
def any_state(any_settings: ServerSettings) -> Iterator[State]:
    """What a server works with, whose administrator is `owner`, once with each database."""
    state = open_state(any_settings)
    first_token(state.database)
    yield state
    state.database.close()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """What a new server works with, over SQLite alone: for what does not depend on the database."""
    opened = open_state(ServerSettings(data=tmp_path / "server"))
    first_token(opened.database)
    yield opened
    opened.database.close()


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """A store in which deltas are made."""
    return Store(tmp_path / "local")
