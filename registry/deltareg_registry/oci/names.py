"""Repositories, digests and who asks, as the routes under /v2/ know them; and errors with the codes of OCI."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from sqlalchemy import Connection

from deltareg.digest import Digest, parse_digest
from deltareg.errors import BadName, DeltaregError, NotFound
from deltareg.names import parse_reference
from deltareg_registry.access.principal import Principal
from deltareg_registry.authorise import authorise
from deltareg_registry.problems import OciError
from deltareg_registry.records.namespaces import repository_id
from deltareg_registry.state import State, address_of, state_of

__all__ = ["Asked", "Asking", "asked_of", "checked_name", "digest_of", "location", "repository_of", "said_as"]

Asking = Annotated[Principal, Depends(authorise)]


@dataclass(frozen=True)
class Asked:
    """A request to one repository, as far as records need it."""

    state: State
    principal: Principal
    namespace: str
    name: str
    address: str | None

    @property
    def repository(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


def asked_of(request: Request) -> Asked:
    """What is asked, by whom, once that is allowed."""
    path = request.path_params
    principal = cast(Principal, request.state.principal)
    return Asked(state_of(request), principal, path["namespace"], path["name"], address_of(request))


def checked_name(request: Request) -> None:
    """Refuse names of repositories that no repository has here. Raises OciError."""
    namespace, name = request.path_params.get("namespace"), request.path_params.get("name")
    if namespace is not None:
        check_repository(request, f"{namespace}/{name}")


def check_repository(request: Request, text: str) -> None:
    """Raise OciError unless `text` is written as a repository; whoever reads is told that there is none."""
    try:
        found = parse_reference(text)
        if found.repository != text:
            raise BadName(f"{text!r:.200} is no repository", hint="write namespace/name")
    except BadName as error:
        raise OciError("NAME_INVALID", 404 if request.method in ("GET", "HEAD") else 400, error) from error


def digest_of(text: str) -> Digest:
    """A digest that a request names. Raises OciError."""
    with said_as("DIGEST_INVALID", 400, BadName):
        return parse_digest(text)


def repository_of(connection: Connection, asked: Asked) -> int:
    """The number of the repository. Raises OciError."""
    with said_as("NAME_UNKNOWN", 404, NotFound):
        return repository_id(connection, asked.namespace, asked.name)


def location(asked: Asked, *parts: str) -> str:
    """The path of something in the repository. Relative: the server need not know how clients reach it."""
    return "/".join(["/v2", asked.namespace, asked.name, *parts])


@contextmanager
def said_as(oci_code: str, status: int, kind: type[DeltaregError]) -> Generator[None]:
    """Give errors of a kind a code of OCI and a status."""
    try:
        yield
    except OciError:
        raise
    except kind as error:
        raise OciError(oci_code, status, error) from error
