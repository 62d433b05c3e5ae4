"""Namespaces: who may read them, what their owners ask for, how much they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field

from deltareg.errors import Conflict, NotAllowed
from deltareg.manifest import Document
from deltareg_registry.access.principal import Principal, Role
from deltareg_registry.api.asking import PROBLEMS, Asking, problems
from deltareg_registry.api.bodies import bounded
from deltareg_registry.api.documents import DOCUMENT_LIMIT, NAME, After, Change, Limit, NamespacePath, Shown
from deltareg_registry.authorise import may_make
from deltareg_registry.records.namespaces import (
    Namespace,
    change_namespace,
    delete_namespace,
    list_namespaces,
    lock_namespace,
    make_namespace,
    namespace_named,
)
from deltareg_registry.records.policies import MOST_SIGNERS, NamespacePolicy, PublicKey, changed_policy
from deltareg_registry.records.quotas import used_bytes
from deltareg_registry.records.statistics import count_namespaces
from deltareg_registry.state import address_of, state_of

__all__ = ["namespaces_router"]

namespaces_router = APIRouter(
    prefix="/api/v1/namespaces",
    tags=["namespaces"],
    responses=PROBLEMS | problems(413),
    route_class=bounded(DOCUMENT_LIMIT),
)

_LARGEST = 2**53 - 1


class NamespaceDetails(Document):
    """A namespace, as whoever asks sees it."""

    name: str
    public: bool = Field(description="whether everybody may read it, without a token")
    created: str
    role: str = Field(description="of whoever asks: reader, publisher or owner")
    used: int = Field(description="bytes of all blobs of its repositories, each counted once")
    quota: int | None = Field(description="bytes that it may hold; null: no limit")
    policy: NamespacePolicy


class NamespaceList(Shown):
    """A page of the namespaces that whoever asks may read."""

    namespaces: list[NamespaceDetails]


class NewNamespace(Change):
    """A namespace that is wanted."""

    name: str = Field(pattern=NAME, max_length=64)
    public: bool | None = Field(default=None, description="without it, as the server is set")


class PolicyChange(Change):
    """The rules that are to change."""

    deletion: bool | None = Field(default=None, description="whether publishers may remove versions")
    signed_by: list[PublicKey] | None = Field(
        default=None, max_length=MOST_SIGNERS, description="PEM public keys, one of which has to have signed a version"
    )


class NamespaceChange(Change):
    """What is to change; what is left out, or null, stays."""

    public: bool | None = None
    policy: PolicyChange | None = None


class Quota(Change):
    """How much a namespace may hold."""

    bytes: Annotated[int, Field(ge=0, le=_LARGEST)] | None = Field(description="null: no limit")


@namespaces_router.get("")
def namespaces(request: Request, asking: Asking, cursor: After = None, limit: Limit = 100) -> NamespaceList:
    """The namespaces that you may read, by name."""
    with state_of(request).database.reading() as connection:
        found = list_namespaces(connection, asking, after=cursor or "", limit=limit + 1)
        page = found[:limit]
        sizes = {one.namespace: one.size for one in count_namespaces(connection, [each.name for each in page])}
    shown = [_details(each, asking, sizes) for each in page]
    return NamespaceList(namespaces=shown, cursor=page[-1].name if len(found) > limit else None)


@namespaces_router.post("", status_code=201)
def create_namespace(request: Request, asking: Asking, wanted: NewNamespace) -> NamespaceDetails:
    """Make a namespace, which you own."""
    state = state_of(request)
    if not may_make(state, asking, wanted.name):
        raise NotAllowed("you may not make a namespace of that name", hint="ask an administrator of the registry")
    public = state.settings.public if wanted.public is None else wanted.public
    with state.database.writing() as connection:
        if not make_namespace(connection, wanted.name, asking, public=public, address=address_of(request)):
            raise Conflict(f"there is a namespace {wanted.name} already", hint="choose another name")
        made = namespace_named(connection, wanted.name)
    # The roles of `asking` are those from before.
    return _details(made, asking, {}, role=Role.OWNER)


@namespaces_router.get("/{namespace}")
def namespace_details(request: Request, asking: Asking, namespace: NamespacePath) -> NamespaceDetails:
    """A namespace, and how much it holds."""
    with state_of(request).database.reading() as connection:
        found = namespace_named(connection, namespace)
        return _details(found, asking, {namespace: used_bytes(connection, namespace)})


@namespaces_router.patch("/{namespace}")
def change(request: Request, asking: Asking, namespace: NamespacePath, wanted: NamespaceChange) -> NamespaceDetails:
    """Change who may read a namespace, and its rules."""
    with state_of(request).database.writing() as connection:
        lock_namespace(connection, namespace)
        changes: dict[str, object] = {}
        if wanted.public is not None:
            changes["public"] = wanted.public
        if wanted.policy is not None:
            rules = wanted.policy.model_dump(by_alias=True, exclude_none=True)
            changes["policy"] = changed_policy(connection, namespace, rules)
        found = change_namespace(connection, asking, namespace, changes, address=address_of(request))
        return _details(found, asking, {namespace: used_bytes(connection, namespace)})


@namespaces_router.delete("/{namespace}", status_code=204)
def remove(request: Request, asking: Asking, namespace: NamespacePath) -> None:
    """Remove a namespace that is empty, with its members and webhooks."""
    with state_of(request).database.writing() as connection:
        delete_namespace(connection, asking, namespace, address=address_of(request))


@namespaces_router.put("/{namespace}/quota")
def set_quota(request: Request, asking: Asking, namespace: NamespacePath, wanted: Quota) -> NamespaceDetails:
    """Set how much a namespace may hold. What it holds already stays, even where that is more."""
    with state_of(request).database.writing() as connection:
        changes = {"quota": wanted.bytes}
        found = change_namespace(connection, asking, namespace, changes, address=address_of(request))
        return _details(found, asking, {namespace: used_bytes(connection, namespace)})


def _details(
    found: Namespace, asking: Principal, sizes: Mapping[str, int], *, role: Role | None = None
) -> NamespaceDetails:
    return NamespaceDetails(
        name=found.name,
        public=found.public,
        created=found.created,
        role=(role or asking.role_in(found.name, public=found.public)).label,
        used=sizes.get(found.name, 0),
        quota=found.quota,
        policy=NamespacePolicy.model_validate(found.policy),
    )
