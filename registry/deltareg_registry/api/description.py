"""The description of the interface (OpenAPI), with the answers that every route shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.openapi.utils import get_openapi
from starlette.routing import BaseRoute

from deltareg_registry import __version__
from deltareg_registry.access.policy import ROUTES, Need
from deltareg_registry.problems import PROBLEM, Problem

__all__ = ["describe"]

_REFERENCE = "#/components/schemas/{model}"
_EVERYWHERE = (400, 401, 429, 500, 503)


def describe(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI document of `routes`; what each of them needs tells which problems it answers."""
    document = get_openapi(title="deltareg registry", version=__version__, routes=routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    problem = Problem.model_json_schema(by_alias=True, mode="serialization", ref_template=_REFERENCE)
    schemas["Problem"] = problem
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "a token of the registry: drt_…"}
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            need = ROUTES[f"{method.upper()} {path}"]
            _complete(operation, need, method, path)
    return document


def _complete(operation: dict[str, Any], need: Need, method: str, path: str) -> None:
    operation["x-need"] = need.value
    operation["security"] = [{"token": []}] if need not in (Need.NOTHING, Need.READ) else [{}, {"token": []}]
    # What FastAPI says of its own answer to a bad request is not what this server answers.
    declared: dict[str, Any] = {
        status: told for status, told in operation["responses"].items() if "HTTPValidationError" not in str(told)
    }
    statuses: set[int] = set(_EVERYWHERE)
    if need is not Need.NOTHING:
        statuses.add(403)
    if "{" in path:
        statuses.add(404)
    if "requestBody" in operation:
        statuses |= {408, 413, 422}
    if method != "get":
        statuses |= {409, 507}
    for status in sorted(statuses | {int(status) for status in declared if status.isdigit() and int(status) >= 400}):
        told: Mapping[str, Any] = declared.get(str(status), {})
        declared[str(status)] = {
            "description": told.get("description", HTTPStatus(status).phrase),
            "content": {PROBLEM: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}},
        }
    operation["responses"] = dict(sorted(declared.items()))
