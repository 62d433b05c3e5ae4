"""The description of the interface is that of the routes that are there, and nothing in it leads nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

from deltareg_registry.access.policy import ROUTES
from deltareg_registry.api import API_ROUTERS
from deltareg_registry.api.description import describe
from deltareg_registry.problems import PROBLEM
from tests.docs import ROOT
from tests.servers.deltareg_server import RunningServer

DESCRIBED = describe([route for router in API_ROUTERS for route in router.routes])


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, found in DESCRIBED["paths"].items():
        for method, operation in found.items():
            yield f"{method.upper()} {path}", operation


def test_every_refusal_is_a_problem() -> None:
    for route, operation in operations():
        assert operation["x-need"] == ROUTES[route].value
        refusals = {status: told for status, told in operation["responses"].items() if status >= "400"}
        assert {"400", "401", "429", "500", "503"} <= refusals.keys(), route
        for status, told in refusals.items():
            assert list(told["content"]) == [PROBLEM], (route, status)


def test_every_reference_leads_somewhere() -> None:
    def references(value: object) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in cast("dict[str, object]", value).items():
                if key == "$ref":
                    yield str(inner)
                yield from references(inner)
        elif isinstance(value, list):
            for inner in cast("list[object]", value):
                yield from references(inner)

    known = {f"#/components/schemas/{name}" for name in DESCRIBED["components"]["schemas"]}
    found = set(references(DESCRIBED))
    assert found <= known
    assert "#/components/schemas/HTTPValidationError" not in found


def test_server_gives_the_description_that_is_published(server: RunningServer) -> None:
    with server.client(anonymous=True) as client:
        given = client.get("/api/v1/openapi.json").json()
    assert given == json.loads((ROOT / "schemas" / "registry-openapi.json").read_text())
