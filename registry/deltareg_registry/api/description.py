"""The description of `/api/v1` in the words of OpenAPI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from deltareg_registry import __version__
from deltareg_registry.access.policy import ROUTES, Need
from deltareg_registry.problems import PROBLEM

__all__ = ["describe"]


def describe(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI document of these routes, each with what it needs; answers that are problems have their own type."""
    described = get_openapi(title="deltareg registry", version=__version__, routes=routes)
    schemes = described.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["token"] = {"type": "http", "scheme": "bearer", "description": "a token of the registry: drt_…"}
    for route in routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods or ():
                operation = described["paths"][route.path].get(method.lower())
                if operation is not None:
                    _complete(operation, ROUTES[f"{method} {route.path}"])
    return described


def _complete(operation: dict[str, Any], need: Need) -> None:
    operation["x-need"] = need.value
    operation["security"] = [{"token": []}] if need is not Need.NOTHING else [{}, {"token": []}]
    for status, response in operation["responses"].items():
        content: dict[str, Any] = response.get("content", {})
        # FastAPI declares every answer as what the route itself answers with.
        if status >= "400" and len(content) == 1:
            response["content"] = {PROBLEM: next(iter(content.values()))}
