"""One process that answers at one socket, and how it ends: it finishes what it has begun."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from deltareg.errors import InvalidArgument

__all__ = ["bind", "serve_at"]


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody is answered at yet. Raises InvalidArgument where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _refused(host, port, error) from error
    # A server that is started anew must not wait for the last connections of the old one.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _refused(host, port, error) from error
    return bound


def serve_at(app: FastAPI, bound: socket.socket, *, drain: float, proxies: Sequence[str]) -> None:
    """Answer until a signal comes, then let what was begun go on for `drain` seconds. A second signal ends at once.

    What `proxies` (addresses and networks) say of where a request comes from is believed.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        forwarded_allow_ips=list(proxies),
        timeout_graceful_shutdown=round(drain),
    )
    _Server(config).run(sockets=[bound])


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; uvicorn would let a second SIGTERM go unheard, and end a drained process as if the
        signal had killed it."""
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.should_exit = True


def _refused(host: str, port: int, error: OSError) -> InvalidArgument:
    return InvalidArgument(
        f"cannot listen at {host}:{port}", cause=error.strerror or str(error), hint="name another --host or --port"
    )
