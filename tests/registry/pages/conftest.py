"""The server whose pages are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver import Remote
from selenium.webdriver.remote.file_detector import UselessFileDetector

from deltareg import Registry
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
def visitor(browser: Remote, shown: RunningServer) -> Iterator[Remote]:
    """The browser on the first page, of nobody known; the test fails where a page left an error in its console."""
    # The browser runs on this machine: files need not be sent to it.
    browser.file_detector = UselessFileDetector()
    browser.command_executor.add_command("cdp", "POST", "/session/$sessionId/goog/cdp/execute")
    browser.command_executor.add_command("log", "POST", "/session/$sessionId/se/log")
    browser.get(shown.url)
    browser.delete_all_cookies()
    browser.get(shown.url)
    console(browser)
    yield browser
    with suppress(NoAlertPresentException):
        pytest.fail(f"a page opened a dialogue: {browser.switch_to.alert.text}")
    assert console(browser) == []


def console(browser: Remote) -> list[str]:
    """What was written to the console since it was asked for last; answers of 4xx are no errors of the pages."""
    lines = browser.execute("log", {"type": "browser"})["value"]
    return [line["message"] for line in lines if "the server responded with a status of 4" not in line["message"]]
