"""A small web server on loopback that does what a test says, also what no server should."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from deltareg.remote.network import Network, Patience

__all__ = ["IMPATIENT", "Asked", "Site", "cut", "say", "serve_site"]

IMPATIENT = Network(patience=Patience(connect=2, silence=0.5, total=20, attempts=4))
"""A network for tests of what takes too long."""


@dataclass
class Asked:
    """One request, and the means to answer it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    handler: BaseHTTPRequestHandler = field(repr=False)

    @property
    def offset(self) -> int:
        """Where the range that is asked for begins."""
        text = self.headers.get("range", "bytes=0-")
        return int(text.removeprefix("bytes=").partition("-")[0])


class Site(ThreadingHTTPServer):
    """`requests` are all that came; `answer` is called for each, with it and how many came before."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Asked, int], None], certificate: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.requests: list[Asked] = []
        self.lock = threading.Lock()
        if certificate is not None:
            self.socket = certificate.wrap_socket(self.socket, server_side=True)
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away; tests keep silent."""


class _Handler(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    # Head and body are two writes, the second of which would wait 40 ms for an acknowledgement of the first.

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, body, self)
        with self.server.lock:
            before = len(self.server.requests)
            self.server.requests.append(asked)
        self.server.answer(asked, before)

    do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Tests keep silent."""


def say(
    asked: Asked, status: int, body: bytes | Mapping[str, Any] = b"", headers: Mapping[str, str] | None = None
) -> None:
    """Answer; a mapping is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = {} if isinstance(body, bytes) else {"Content-Type": "application/json"}
    asked.handler.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **kind, **(headers or {})}.items():
        asked.handler.send_header(name, value)
    asked.handler.end_headers()
    if asked.method != "HEAD":
        asked.handler.wfile.write(data)


def cut(asked: Asked, status: int, body: bytes, *, after: int, headers: Mapping[str, str] | None = None) -> None:
    """Answer, and cut the connection `after` so many bytes of the body."""
    asked.handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        asked.handler.send_header(name, value)
    asked.handler.end_headers()
    asked.handler.wfile.write(body[:after])
    asked.handler.wfile.flush()
    with suppress(OSError):
        asked.handler.connection.shutdown(socket.SHUT_RDWR)
    asked.handler.close_connection = True


@contextmanager
def serve_site(answer: Callable[[Asked, int], None], certificate: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Run a site as long as the body runs."""
    with Site(answer, certificate) as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield site
        finally:
            site.shutdown()
            thread.join()
