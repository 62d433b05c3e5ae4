"""A real browser, without a window, driven by WebDriver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from selenium import webdriver

from tests.servers.process import answers_http, find, keep, scratch

__all__ = ["browse"]

_SWITCHES = (
    "--headless",
    "--no-sandbox",  # root has none, and containers forbid what it takes
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little of it
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # pages have to do without the rest of the world
    "--window-size=1280,900",
)


@contextmanager
def browse(*switches: str) -> Iterator[webdriver.Remote]:
    """Run Chromium, with a new profile and further switches, as long as the body runs."""
    driver, browser = find("chromedriver", "chromium-driver"), find("chromium", "chromium")
    with scratch("chromium") as directory:
        options = webdriver.ChromeOptions()
        options.binary_location = str(browser)
        for switch in (*_SWITCHES, f"--user-data-dir={directory / 'profile'}", *switches):
            options.add_argument(switch)
        with keep(
            directory,
            lambda ports: [driver, f"--port={ports[0]}"],
            lambda ports: answers_http(f"http://127.0.0.1:{ports[0]}/status"),
        ) as ports:
            session = webdriver.Remote(f"http://127.0.0.1:{ports[0]}", options=options)
            try:
                yield session
            finally:
                session.quit()
