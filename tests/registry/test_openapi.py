"""The description of the interface holds for every route: schemathesis makes requests from it and looks at the answers.

Nothing may fail inside the server, nor answer with a status, a type or a document that the description lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from requests import Session
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from deltareg.store import Store
from deltareg_registry.access.policy import ROUTES
from tests.registry.deltas import publish_delta
from tests.servers.deltareg_server import RunningServer, running_server

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
THERE = {"namespace": "acme", "name": "search", "version": "1.0.0", "user": "rita"}
"""What is there: of paths that are made up, nearly all lead nowhere."""
DESCRIBED = sorted(route for route in ROUTES if " /api/v1" in route and not route.endswith("/openapi.json"))


@dataclass(frozen=True)
class Asker:
    """Somebody who asks, for what is there or for what was made up."""

    session: Session
    there: bool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("described")
    with running_server(directory / "server") as running:
        publish_delta(running.state, "acme/search:1.0.0", Store(directory / "local"))
        yield running


@pytest.fixture(scope="module")
def askers(server: RunningServer) -> Iterator[list[Asker]]:
    sessions = [Session(), Session()]
    for session, token in zip(sessions, (server.token, server.user("rita", acme="reader")), strict=True):
        session.headers["Authorization"] = f"Bearer {token}"
        session.trust_env = False
    yield [Asker(sessions[0], there=True), Asker(sessions[0], there=False), Asker(sessions[1], there=True)]
    for session in sessions:
        session.close()


@pytest.fixture(scope="module")
def description(server: RunningServer) -> BaseSchema:
    with server.client() as client:
        found = schemathesis.openapi.from_dict(client.get("/api/v1/openapi.json").json())
    found.config.base_url = server.url
    return found


def cases(operation: APIOperation) -> SearchStrategy[schemathesis.Case]:
    """Requests that are as the description says, and, where it says anything of requests, such that are not."""
    good = operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
    if not operation.body and not any(operation.query):
        return good
    return good | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)


@pytest.mark.parametrize("route", DESCRIBED)
def test_answers_are_those_that_the_description_tells(description: BaseSchema, askers: list[Asker], route: str) -> None:
    method, _, path = route.partition(" ")

    @settings(
        max_examples=8,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(case=cases(description[path][method]))
    def ask(case: schemathesis.Case) -> None:
        made_up = dict(case.path_parameters or {})
        for asker in askers:
            known = {name: THERE.get(name, value) for name, value in made_up.items()}
            case.path_parameters = known if asker.there else made_up
            case.call_and_validate(session=asker.session, checks=CHECKS)

    ask()


def test_every_route_of_the_interface_is_described(server: RunningServer) -> None:
    with server.client() as client:
        paths = client.get("/api/v1/openapi.json").json()["paths"]
    described = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    assert described == set(DESCRIBED)
