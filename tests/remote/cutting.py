"""A connection that breaks off: what lies between a client and a server, and cuts after so many bytes."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

__all__ = ["cutting"]

_PIECE = 64 << 10


@contextmanager
def cutting(url: str, after: int, times: int) -> Iterator[str]:
    """The URL of a way to `url`; `times` connections are cut, each once `after` bytes of it went to the server."""
    left = threading.BoundedSemaphore(times)

    class Way(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            target = urlsplit(url)
            with socket.create_connection((target.hostname or "", target.port or 80)) as server:
                back = threading.Thread(target=_pass, args=(server, self.request), daemon=True)
                back.start()
                _pass(self.request, server, after, left)
            back.join(5)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Way) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}"
        finally:
            listening.shutdown()
            thread.join()


def _pass(
    source: socket.socket, target: socket.socket, limit: int | None = None, cuts: threading.Semaphore | None = None
) -> None:
    passed = 0
    with suppress(OSError):
        while data := source.recv(_PIECE):
            target.sendall(data)
            passed += len(data)
            if limit is not None and passed > limit and cuts is not None and cuts.acquire(blocking=False):
                break
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
