"""A receiver of webhooks on loopback, which answers as a test tells it to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["Receiver", "receive"]


@dataclass(frozen=True)
class Received:
    """A message."""

    headers: dict[str, str]
    body: bytes
    path: str


@dataclass
class Receiver:
    """What has arrived at `url`, and the answers that are to come: a status each, and then 204 for ever."""

    url: str
    statuses: list[int] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    delay: float = 0.0

    def wait(self, count: int) -> list[Received]:
        """What has arrived, once it is so much."""
        until(lambda: len(self.received) >= count)
        return self.received


@contextmanager
def receive() -> Iterator[Receiver]:
    """A receiver, as long as the body runs."""
    found = Receiver("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.received.append(Received(headers, body, self.path))
            time.sleep(found.delay)
            status = found.statuses.pop(0) if found.statuses else 204
            self.send_response(status)
            if status in (301, 307):
                self.send_header("Location", found.url + "/elsewhere")
            self.send_header("Content-Length", "6" if status != 204 else "0")
            self.end_headers()
            if status != 204:
                self.wfile.write(b"secret")

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def until(true: Callable[[], bool]) -> None:
    """Wait until something is so. Raises AssertionError after a minute."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
