"""The server whose pages are looked at, and who looks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver import Remote

from deltareg import Registry
from tests.registry.pages.visits import Visitor
from tests.registry.pages.world import fill, make_registry
from tests.servers.deltareg_server import RunningServer, running_server


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """What the deltas are made from."""
    return make_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[RunningServer]:
    """A server with deltas. What tests add to it has names of its own."""
    with running_server(tmp_path_factory.mktemp("pages")) as running:
        fill(running.state, registry)
        yield running


@pytest.fixture
def visitor(browser: Remote, shown: RunningServer) -> Iterator[Visitor]:
    """Nobody known, on the first page. The test fails where a page left an error in the console."""
    coming = Visitor(browser, shown.url)
    coming.arrive()
    yield coming
    assert coming.console() == []
    coming.leave()
