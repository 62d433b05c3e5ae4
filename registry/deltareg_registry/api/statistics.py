"""How much the registry holds, and how often it is fetched."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field

from deltareg.manifest import Document
from deltareg_registry.api.asking import PROBLEMS, Asking, problems
from deltareg_registry.api.bodies import bounded
from deltareg_registry.api.documents import DOCUMENT_LIMIT, After, Limit, NamespacePath, Shown
from deltareg_registry.records.namespaces import list_namespaces, readable_names
from deltareg_registry.records.statistics import NamespaceCount, count_all, count_namespaces, version_pulls
from deltareg_registry.state import state_of

__all__ = ["statistics_router"]

statistics_router = APIRouter(
    prefix="/api/v1",
    tags=["statistics"],
    responses=PROBLEMS | problems(413),
    route_class=bounded(DOCUMENT_LIMIT),
)


class Counts(Document):
    """How much there is."""

    repositories: int
    versions: int
    bytes: int = Field(description="of all blobs, each counted once")
    pulls: int = Field(description="how often manifests were fetched; the last seconds are not in it yet")


class NamespaceCounts(Counts):
    """How much a namespace holds."""

    namespace: str


class Statistics(Shown):
    """How much there is of what whoever asks may read."""

    total: Counts = Field(description="of all namespaces, not of this page alone")
    namespaces: list[NamespaceCounts]


class PullCount(Document):
    """How often a version was fetched."""

    reference: str
    pulls: int
    last: str | None


class PullList(Document):
    """How often the versions of a namespace were fetched, the most fetched first."""

    versions: list[PullCount]


@statistics_router.get("/statistics")
def statistics(request: Request, asking: Asking, cursor: After = None, limit: Limit = 100) -> Statistics:
    """How much there is of what you may read, by namespace and in all."""
    with state_of(request).database.reading() as connection:
        found = [each.name for each in list_namespaces(connection, asking, after=cursor or "", limit=limit + 1)]
        page = found[:limit]
        counted = count_namespaces(connection, page)
        total = count_all(connection, readable_names(asking))
    rows = [NamespaceCounts(namespace=each.namespace, **_counts(each).model_dump()) for each in counted]
    return Statistics(total=_counts(total), namespaces=rows, cursor=page[-1] if len(found) > limit else None)


@statistics_router.get("/namespaces/{namespace}/pulls")
def pulls(request: Request, asking: Asking, namespace: NamespacePath, limit: Limit = 100) -> PullList:
    """How often the versions of a namespace were fetched."""
    with state_of(request).database.reading() as connection:
        found = version_pulls(connection, namespace, limit=limit)
    return PullList(
        versions=[
            PullCount(reference=f"{namespace}/{one.name}:{one.version}", pulls=one.count, last=one.last)
            for one in found
        ]
    )


def _counts(counted: NamespaceCount) -> Counts:
    return Counts(repositories=counted.repositories, versions=counted.versions, bytes=counted.size, pulls=counted.pulls)
