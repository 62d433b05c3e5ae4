"""Bodies of requests have an end: FastAPI would read whatever comes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Message

__all__ = ["bounded"]


def bounded(limit: int) -> type[APIRoute]:
    """A class of routes that answer 413 to a body of more than `limit` bytes, before more is read."""

    class BoundedRoute(APIRoute):
        """A route whose body is bounded."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_bounded(request: Request) -> Response:
                taken = 0

                async def receive() -> Message:
                    nonlocal taken
                    message = await request.receive()
                    taken += len(message.get("body", b""))
                    if taken > limit:
                        raise HTTPException(413, f"the body has more than {limit} bytes")
                    return message

                return await handle(Request(request.scope, receive))

            return handle_bounded

    return BoundedRoute
