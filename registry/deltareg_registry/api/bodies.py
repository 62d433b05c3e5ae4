"""Bodies of requests have an end, and come from somebody who may send them: FastAPI would read whatever comes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Message

from deltareg_registry.authorise import authorise

__all__ = ["bounded"]

# A million empty lists take 60 MB of memory, and 3 MB of a body. No description of a model has more than this.
_MOST_CONTAINERS = 2_000_000


def bounded(limit: int) -> type[APIRoute]:
    """A class of routes that read the body of none who may not ask, and answer 413 to more than `limit` bytes of one,
    before more is read, and to more objects and arrays than a document has, before it is parsed."""

    class BoundedRoute(APIRoute):
        """A route whose body is bounded."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_bounded(request: Request) -> Response:
                taken = containers = 0

                async def receive() -> Message:
                    nonlocal taken, containers
                    message = await request.receive()
                    data: bytes = message.get("body", b"")
                    taken += len(data)
                    if taken > limit:
                        raise HTTPException(413, f"the body has more than {limit} bytes")
                    # Those within texts are counted too: there is room for them.
                    containers += data.count(b"[") + data.count(b"{")
                    if containers > _MOST_CONTAINERS:
                        raise HTTPException(413, f"the body has more than {_MOST_CONTAINERS} objects and arrays")
                    return message

                # FastAPI parses a body before it asks who sent it.
                await authorise(request)
                return await handle(Request(request.scope, receive))

            return handle_bounded

    return BoundedRoute
