"""Search over all versions that one may read."""

from __future__ import annotations

from time import perf_counter
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field

from deltareg.catalog import SearchRow
from deltareg.manifest import Document
from deltareg_registry.api.asking import PROBLEMS, Asking
from deltareg_registry.records.searching import COUNTED, Facet, Order, Search, search
from deltareg_registry.state import state_of

__all__ = ["search_router"]

search_router = APIRouter(prefix="/api/v1/search", tags=["search"], responses=PROBLEMS)

# A description may be long; what is listed need not hold all of it.
_SHOWN = 2000
_DIGEST = r"^sha256:[0-9a-f]{64}$"


class FoundDelta(SearchRow):
    """A version that was found."""

    model_type: str | None = None
    publisher: str | None = None
    parameters: int = Field(description="elements of post's tensors")
    exactness: str


class FacetCount(Document):
    """How many versions have a value."""

    value: str
    count: int


class Facets(Document):
    """What the versions that were found have in common: the most frequent values, of at most the newest 10,000."""

    namespace: list[FacetCount]
    licence: list[FacetCount]
    model_type: list[FacetCount]
    base: list[FacetCount]
    rows: int = Field(description="versions that were counted")


class SearchPage(Document):
    """Some of the versions that were found, in the order that was asked for."""

    results: list[FoundDelta]
    total: int = Field(description=f"versions that were found, on all pages; {COUNTED} where there are more")
    total_is_exact: bool = Field(description="false where there are more than total")
    seconds: float = Field(description="time that the query took")
    next_cursor: str | None = Field(default=None, description="cursor of the next page; null after the last")
    facets: Facets | None = Field(default=None, description="null where they were not asked for")


_DigestQuery = Annotated[str | None, Query(pattern=_DIGEST)]
_Text = Annotated[str | None, Query(max_length=1000, description="words that reference, base or description hold")]


@search_router.get("")
def find(
    request: Request,
    asking: Asking,
    text: _Text = None,
    fingerprint: _DigestQuery = None,
    space: _DigestQuery = None,
    tokenizer_core: Annotated[str | None, Query(alias="tokenizerCore", pattern=_DIGEST)] = None,
    tokenizer_added: Annotated[str | None, Query(alias="tokenizerAdded", pattern=_DIGEST)] = None,
    licence: Annotated[str | None, Query(max_length=200)] = None,
    namespace: Annotated[str | None, Query(max_length=200)] = None,
    model_type: Annotated[str | None, Query(alias="modelType", max_length=300)] = None,
    base: Annotated[str | None, Query(max_length=2000, description="id of the base")] = None,
    order: Order = "best",
    cursor: Annotated[str | None, Query(description="nextCursor of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    yanked: Annotated[bool, Query(description="with those that are yanked")] = False,
    facets: Annotated[bool, Query(description="count values too")] = False,
) -> SearchPage:
    """Versions by what they fit, by words and by values; only those that whoever asks may read.

    `fingerprint`, `space`, `tokenizerCore` and `tokenizerAdded` are those of a target, as `deltareg fingerprint` tells
    them: then each result says how it fits, and what does not is left out.
    """
    began = perf_counter()
    asked = Search(
        text=_clean(text),
        fingerprint=fingerprint,
        space=space,
        tokenizer_core=tokenizer_core,
        tokenizer_added=tokenizer_added,
        licence=_clean(licence),
        namespace=_clean(namespace),
        model_type=_clean(model_type),
        base=_clean(base),
        order=order,
        cursor=cursor,
        limit=limit,
        yanked=yanked,
        facets=facets,
    )
    with state_of(request).database.reading() as connection:
        found = search(connection, asking, asked)
    return SearchPage(
        results=[_shown(dict(row)) for row in found.rows],
        total=found.total,
        total_is_exact=found.total_is_exact,
        seconds=perf_counter() - began,
        next_cursor=found.next_cursor,
        facets=None if found.facets is None else _facets(found.facets, found.total),
    )


def _clean(text: str | None) -> str | None:
    # PostgreSQL takes no NUL in a text, and no value has one.
    return None if text is None else text.replace("\0", " ")


def _shown(row: dict[str, object]) -> FoundDelta:
    description = row["description"]
    if isinstance(description, str) and len(description) > _SHOWN:
        row["description"] = description[:_SHOWN] + "…"
    row["reference"] = f"{row['namespace']}/{row['name']}:{row['version']}"
    return FoundDelta.model_validate({name: row[name] for name in FoundDelta.model_fields if name in row}, by_name=True)


def _facets(counted: dict[str, list[Facet]], total: int) -> Facets:
    shown = {kind: [FacetCount(value=one.value, count=one.count) for one in found] for kind, found in counted.items()}
    return Facets(
        namespace=shown["namespace"],
        licence=shown["licence"],
        model_type=shown["model_type"],
        base=shown["base"],
        rows=total,
    )
