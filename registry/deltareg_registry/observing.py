"""Each request gets an id, is counted, and has one line in the log.

Pure ASGI: bodies pass through as they come. Of a request, the log has the template of its path: names of people's
deltas, queries, cookies and tokens stay out of it.
"""

from __future__ import annotations

import logging
import re
import secrets
import time

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from deltareg.errors import DeltaregError
from deltareg_registry.access.principal import Principal
from deltareg_registry.metrics import Metrics
from deltareg_registry.problems import answer

__all__ = ["Observed"]

_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_HEADER = b"x-request-id"
# What nginx calls a client that went away before it was answered.
_GONE = 499
_UNKNOWN = "unknown"

_log = logging.getLogger("deltareg_registry.access")
_faults = logging.getLogger("deltareg_registry.faults")


class Observed:
    """Watches every request that goes to `app`. What nobody caught is answered here, with the id to look for."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and watch it until it is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        # The routes share this dictionary, and write into it who asks.
        scope.setdefault("state", {})["request_id"] = exchange.id
        with bound_contextvars(request_id=exchange.id), self._metrics.in_progress.track_inprogress():
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except ClientDisconnect:
                pass
            except Exception:
                _faults.exception("the request failed")
                await exchange.fail()
            finally:
                self._tell(exchange)

    def _tell(self, exchange: _Exchange) -> None:
        scope, seconds = exchange.scope, time.perf_counter() - exchange.begun
        route, status = _route(scope), exchange.status or _GONE
        self._metrics.count(route, scope["method"], status, seconds, exchange.received, exchange.sent)
        principal = scope["state"].get("principal")
        _log.info(
            "request",
            extra={
                "method": scope["method"],
                "path": route,
                "status": status,
                "ms": round(seconds * 1000, 1),
                "received": exchange.received,
                "sent": exchange.sent,
                "user": principal.user if isinstance(principal, Principal) else None,
                "address": scope["client"][0] if scope.get("client") else None,
            },
        )


class _Exchange:
    """One request and its answer as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.id = _given_id(scope) or secrets.token_hex(16)
        self.begun = time.perf_counter()
        self.status: int | None = None
        self.received = 0
        self.sent = 0
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        """The next message of the request."""
        message = await self._receive()
        self.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        """Send the next message of the answer; the first carries the id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (_HEADER, self.id.encode())]
            message = {**message, "headers": headers}
        await self._send(message)
        self.sent += len(message.get("body", b""))

    async def fail(self) -> None:
        """Say that the server failed, where nothing has been said yet. Else the answer stays incomplete, and uvicorn
        closes the connection: the client sees that it is."""
        if self.status is None:
            told = DeltaregError("the server failed", hint=f"tell its operator the id of the request: {self.id}")
            await answer(Request(self.scope), told)(self.scope, self.receive, self.send)


def _given_id(scope: Scope) -> str | None:
    """The id that a proxy or a client gave the request, if it is one that can stand in a log."""
    for name, value in scope["headers"]:
        if name == _HEADER and _ID.fullmatch(value):
            return value.decode()
    return None


def _route(scope: Scope) -> str:
    """The template of the path: there are few of them, and paths have no end."""
    return getattr(scope.get("route"), "path", None) or _UNKNOWN
