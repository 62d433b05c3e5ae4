"""Which published deltas fit a checkpoint: a first look, from digests alone."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from deltareg.catalog.words import EVERY, YANKED, key, words_in
from deltareg.errors import InvalidArgument
from deltareg.manifest import Document, Fingerprint

if TYPE_CHECKING:
    from deltareg.catalog.tables import Tables

__all__ = ["Fit", "Query", "SearchReport", "SearchRow", "ask"]

Fit = Literal["identical", "homologous", "adaptable"]
"""`identical`: fingerprint, tokenizer and added tokens are the same. `homologous`: the fingerprint is the same, and the
tokenizer is the same but for its added tokens, or not known on one side. `adaptable`: only the parameter space is the
same, or the tokenizer is another one."""


class SearchRow(Document):
    """One delta that was found."""

    reference: str
    digest: str
    size: int | None = Field(description="bytes of the artifact: manifest, config and layers")
    base: str | None = Field(description="id of the base")
    licence: str | None
    description: str | None
    created: str = Field(description="RFC 3339")
    yanked: str | None = Field(default=None, description="why it was yanked; null where it was not")
    deprecated: str | None = Field(default=None, description="why it was deprecated; null where it was not")
    remote: str | None = Field(default=None, description="name or URL of the remote that has it; null for this machine")
    fit: Fit | None = Field(default=None, description="how it fits the target, by digests; null without a target")


class SearchReport(Document):
    """What a search found."""

    results: list[SearchRow] = Field(description="best fit first, then newest first")
    total: int = Field(description="deltas that were found; the results are the first of them")
    total_is_exact: bool = Field(default=True, description="false where there are more than total")
    seconds: float = Field(description="time that the query took")
    warnings: list[str] = Field(default=[], description="remotes that did not answer, versions that cannot be read")


@dataclass(frozen=True)
class Query:
    """What is asked for; None asks for nothing. Yanked versions are left out unless `yanked` is set."""

    text: str | None = None
    target: Fingerprint | None = None
    licence: str | None = None
    namespace: str | None = None
    model_type: str | None = None
    limit: int = 20
    yanked: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.limit < 2**31:
            raise InvalidArgument(f"the limit is {self.limit}; it has to be 1 at least, and below 2^31")
        words_in(self.text or "")


def ask(tables: Tables, query: Query) -> SearchReport:
    """Put the query to the tables, which are in step with the store."""
    began = perf_counter()
    given = {"licence": query.licence, "namespace": query.namespace, "model_type": query.model_type}
    filters = [key(kind, value) for kind, value in given.items() if value is not None]
    if (words := words_in(query.text or "")) is not None:
        filters.append(words)
    classes = _classes(query.target)
    asked = (" AND ".join([f"({fits})", *filters]) for fits in classes.values())
    found, total = tables.search([one if query.yanked else f"({one}) NOT {YANKED}" for one in asked], query.limit)
    names = set(SearchRow.model_fields) - {"fit", "remote"}
    results = [
        SearchRow(**row.model_dump(by_alias=False, include=names), fit=fit)
        for fit, rows in zip(classes, found, strict=True)
        for row in rows
    ]
    return SearchReport(results=results, total=total, seconds=perf_counter() - began)


def _classes(target: Fingerprint | None) -> dict[Fit | None, str]:
    """The expressions of the classes, which exclude one another, the best first."""
    if target is None:
        return {None: EVERY}
    same, space = key("fingerprint", target.digest), key("space", target.space)
    if target.tokenizer is None:
        return {"homologous": same, "adaptable": f"{space} NOT {same}"}
    core, added = key("tokenizer_core", target.tokenizer.core), key("tokenizer_added", target.tokenizer.added)
    compatible = f"({same} AND ({core} OR {key('tokenizer_core', None)}))"
    identical = f"({same} AND {core} AND {added})"
    return {
        "identical": identical,
        "homologous": f"{compatible} NOT {identical}",
        "adaptable": f"({space} OR {same}) NOT {compatible}",
    }
