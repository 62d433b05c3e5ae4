"""Reading pages as browsers do, without one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser

import httpx2

from deltareg_registry.authorise import COOKIE
from tests.registry.pages.world import FIRST, SECOND
from tests.servers.deltareg_server import RunningServer

__all__ = ["READ", "Reader", "csrf", "visiting"]

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
READ = [
    "/",
    "/?text=shark&yanked=1&order=size&licence=bsd-3-clause",
    "/sign-in",
    "/d/acme/shark",
    "/d/acme/shark?version=1.2.0",
    "/d/acme/hostile",
    "/d/acme/reef",
    "/fits",
    f"/compare?first={FIRST}&second={SECOND}",
    "/n",
    "/n/acme",
    "/tokens",
    "/audit",
    "/d/acme/nothing",
    "/nowhere",
]
"""Every page, and what is answered by one."""


@contextmanager
def visiting(server: RunningServer, token: str | None = None) -> Iterator[httpx2.Client]:
    """A client that behaves as a browser does, with a token in its cookie."""
    with httpx2.Client(base_url=server.url, headers=BROWSER, timeout=30) as client:
        if token is not None:
            client.cookies.set(COOKIE, token)
        yield client


def csrf(page: str) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', page)
    assert found is not None, "the page has no form of somebody who is signed in"
    return found[1]


class Reader(HTMLParser):
    """What a page is made of: tags with their attributes, and whether each is closed."""

    EMPTY = frozenset(("meta", "link", "input", "wbr", "br", "img"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def named(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in tags]
