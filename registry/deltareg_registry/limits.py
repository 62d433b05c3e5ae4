"""How much one client may ask: requests a second, and bytes and seconds of a document.

Pure ASGI: what is streamed passes through as it comes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

import anyio
from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltareg.errors import DeltaregError, InvalidArgument, TooLarge, TooManyRequests
from deltareg_registry.access.principal import Principal
from deltareg_registry.problems import answer, late
from deltareg_registry.settings import ServerSettings

__all__ = ["Buckets", "DocumentLimit", "NoNul", "RateLimit", "install"]

_BURST_SECONDS = 10.0
_MOST_BUCKETS = 100_000
_FREE = ("/healthz", "/readyz", "/metrics")
_DOCUMENTS = "/api/v1"
_SLOWEST = 100_000.0  # bytes a second


def install(app: FastAPI, settings: ServerSettings) -> None:
    """Let the settings' limits hold for every route of `app`."""
    app.add_middleware(NoNul)
    app.add_middleware(DocumentLimit, size=settings.document_limit, seconds=settings.body_seconds)
    if settings.rate_limit is not None:
        app.add_middleware(RateLimit, rate=settings.rate_limit)


class Buckets:
    """A token bucket for each key: `rate` a second flow in, ten seconds' worth fit in."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._size = max(1.0, rate * _BURST_SECONDS)
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._levels

    def add(self, key: str) -> None:
        """Make a full bucket where there is none."""
        if key not in self._levels:
            self._keep(key, self._size)

    def take(self, key: str) -> float:
        """Take one from a bucket; the seconds to wait until there is one, 0 where there was."""
        level, then = self._levels.get(key, (self._size, self._clock()))
        level = min(self._size, level + (self._clock() - then) * self._rate)
        if level < 1.0:
            self._keep(key, level)
            return (1.0 - level) / self._rate
        self._keep(key, level - 1.0)
        return 0.0

    def _keep(self, key: str, level: float) -> None:
        self._levels[key] = level, self._clock()
        self._levels.move_to_end(key)
        while len(self._levels) > _MOST_BUCKETS:
            self._levels.popitem(last=False)  # whoever asked longest ago


class RateLimit:
    """Answers 429 to whoever asks too often: by token, or by address without one.

    A token has a bucket of its own once it was found good. Until then its requests count for the address, or else
    whoever makes up a new token for each request would have no limit. Each process counts for itself.
    """

    def __init__(self, app: ASGIApp, rate: float) -> None:
        self._app = app
        self._buckets = Buckets(rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["path"] in _FREE:
            await self._app(scope, receive, send)
            return
        token = _token_key(scope)
        key = token if token is not None and token in self._buckets else _address_key(scope)
        wait = self._buckets.take(key)
        if wait > 0:
            told = TooManyRequests(
                "these were too many requests", hint=f"wait {wait:.0f} s, and ask less often", retry_after=wait
            )
            await answer(Request(scope), told)(scope, receive, send)
            return
        # The routes share this dictionary, and write into it who asks.
        state = scope.setdefault("state", {})
        await self._app(scope, receive, send)
        principal = state.get("principal")
        if token is not None and isinstance(principal, Principal) and principal.signed_in:
            self._buckets.add(token)


class NoNul:
    """Refuses paths and queries with a character that PostgreSQL takes in no text, and that nothing here has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and ("\0" in scope["path"] or b"%00" in scope["query_string"]):
            told = InvalidArgument("the request has a character that nothing here has: NUL")
            await answer(Request(scope), told)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class DocumentLimit:
    """Refuses what is too long, or comes too slowly, to be a document of the API, before more of it is read."""

    def __init__(self, app: ASGIApp, size: int, seconds: float) -> None:
        self._app = app
        self._size = size
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with a body that is watched."""
        if scope["type"] != "http" or not scope["path"].startswith(_DOCUMENTS):
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._size, self._seconds)
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            if body.fault is not None and not started:
                return  # what the route says of a body that ended early is not what happened
            started = True
            await send(message)

        try:
            await self._app(scope, body.receive, watched)
        except ClientDisconnect:
            if body.fault is None:
                raise
        if body.fault is not None and not started:
            response = answer(Request(scope), body.fault)
            # The rest of the body is still on its way: the connection cannot be used again.
            response.headers["Connection"] = "close"
            await response(scope, receive, send)


class _Body:
    """The body of a request as it arrives."""

    def __init__(self, receive: Receive, size: int, seconds: float) -> None:
        self.fault: DeltaregError | None = None
        self._receive = receive
        self._left = size
        self._size = size
        self._seconds = seconds
        self._end = anyio.current_time() + seconds
        self._complete = False

    async def receive(self) -> Message:
        """The next message; that the client has gone, in place of what is too long or comes too late."""
        if self._complete or self.fault is not None:
            # What comes now is no body: the client may wait for its answer as long as it likes.
            return await self._receive() if self.fault is None else {"type": "http.disconnect"}
        try:
            # What comes at a fair speed may take longer.
            more = (self._size - self._left) / _SLOWEST
            with anyio.fail_after(max(0.0, self._end + more - anyio.current_time())):
                message = await self._receive()
        except TimeoutError:
            self.fault = late(f"the document did not arrive in {self._seconds:g} s")
            return {"type": "http.disconnect"}
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.fault = TooLarge(f"the body has more than {self._size} bytes", hint="send less at a time")
            return {"type": "http.disconnect"}
        self._complete = not message.get("more_body", False)
        return message


def _token_key(scope: Scope) -> str | None:
    header = next((value for name, value in scope["headers"] if name == b"authorization"), None)
    if header is None:
        return None
    scheme, _, token = header.partition(b" ")
    if scheme.lower() == b"basic":
        # Any user name goes with a token: it is not to be counted anew with each.
        with suppress(binascii.Error):
            token = base64.b64decode(token, validate=True).partition(b":")[2]
    return "token:" + hashlib.sha256(token.strip()).hexdigest()


def _address_key(scope: Scope) -> str:
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"address:{host}"
    # A client has a whole /64 of IPv6 addresses to come from.
    return f"address:{address if address.version == 4 else ipaddress.ip_network((address, 64), strict=False)}"
