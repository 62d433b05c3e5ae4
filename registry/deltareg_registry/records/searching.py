"""Search: which versions fit a checkpoint, by digests alone, and what else is asked of them.

What a fit is, `deltareg.catalog.search` says: the registry on a machine and the shared one mean the same by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, RowMapping, and_, case, false, func, not_, or_, select, tuple_

from deltareg.catalog.search import Fit
from deltareg.errors import InvalidArgument
from deltareg_registry.access.principal import Principal
from deltareg_registry.database.tables import searchable, terms, versions
from deltareg_registry.records.cursors import read_cursor, write_cursor
from deltareg_registry.records.fulltext import matching
from deltareg_registry.records.readable import readable
from deltareg_registry.records.searchable import term_numbers

__all__ = ["COUNTED", "FACETS", "Facet", "Found", "Order", "Search", "search"]

Order = Literal["best", "newest", "oldest", "name", "size"]
"""`best`: the best fit first, of these the newest. `size`: the largest first."""

FACETS = ("namespace", "licence", "model_type", "base")
COUNTED = 10_000
"""The most versions that are counted, and the newest that facets are counted among: all would take too long."""

_FITS: Sequence[Fit] = ("identical", "homologous", "adaptable")
_SHOWN_FACETS = 20


@dataclass(frozen=True)
class Search:
    """What is asked for; None asks for nothing. The four digests are of the target; with one of the first two there is
    a target, and what does not fit it is left out."""

    text: str | None = None
    fingerprint: str | None = None
    space: str | None = None
    tokenizer_core: str | None = None
    tokenizer_added: str | None = None
    licence: str | None = None
    namespace: str | None = None
    model_type: str | None = None
    base: str | None = None
    order: Order = "best"
    cursor: str | None = None
    limit: int = 20
    yanked: bool = False
    facets: bool = False


@dataclass(frozen=True)
class Facet:
    """How many of the versions that were found have a value; those without one are not counted."""

    value: str
    count: int


@dataclass(frozen=True)
class Found:
    """A page of versions, each as its row in `versions`, with `fit`; `total` counts those of all pages.

    It ends at COUNTED: there are more unless `total_is_exact`.

    `facets` are the most frequent values of each of FACETS among the newest COUNTED; None where not asked for.
    """

    rows: list[Mapping[str, Any]]
    total: int
    total_is_exact: bool
    next_cursor: str | None
    facets: dict[str, list[Facet]] | None


@dataclass(frozen=True)
class _Plan:
    """A search as conditions of SQL."""

    conditions: list[ColumnElement[bool]]
    rank: ColumnElement[int] | None = None
    """The number of the fit, 0 the best; None without a target."""


def search(connection: Connection, principal: Principal, asked: Search) -> Found:
    """The versions that are asked for, as far as `principal` may read them.

    Pages hold what was there when each was asked for: what comes in between moves nothing from page to page. Raises
    InvalidArgument for a cursor of another search, and for a text of too many words.
    """
    plan = _planned(connection, principal, asked)
    counted = _newest(connection, plan) if asked.facets else None
    total = _count(connection, plan) if counted is None else len(counted)
    columns: list[ColumnElement[Any]] = [searchable.c.version, searchable.c.namespace, searchable.c.name]
    columns += [searchable.c.size] if plan.rank is None else [searchable.c.size, plan.rank.label("rank")]
    wanted = select(*columns).where(*plan.conditions)
    if asked.cursor is not None:
        wanted = wanted.where(_after(plan, asked))
    rows = connection.execute(wanted.order_by(*_sorting(plan, asked.order)).limit(asked.limit + 1)).mappings().all()
    shown = rows[: asked.limit]
    following = write_cursor([asked.order, *_place(asked.order, shown[-1])]) if len(rows) > len(shown) else None
    facets = None if counted is None else _facets(connection, counted[:COUNTED])
    return Found(_details(connection, shown), min(total, COUNTED), total <= COUNTED, following, facets)


def _count(connection: Connection, plan: _Plan) -> int:
    """How many there are, COUNTED + 1 for more."""
    some = select(searchable.c.version).where(*plan.conditions).limit(COUNTED + 1).subquery()
    return connection.execute(select(func.count()).select_from(some)).scalar_one()


def _newest(connection: Connection, plan: _Plan) -> Sequence[Row[Any]]:
    """What facets are counted among, and one more where there is."""
    columns = [searchable.c[kind] for kind in FACETS]
    wanted = select(*columns).where(*plan.conditions).order_by(searchable.c.version.desc()).limit(COUNTED + 1)
    return connection.execute(wanted).all()


def _facets(connection: Connection, rows: Sequence[Row[Any]]) -> dict[str, list[Facet]]:
    counted = {
        kind: Counter(row[place] for row in rows if row[place] is not None).most_common(_SHOWN_FACETS)
        for place, kind in enumerate(FACETS)
    }
    numbers = [number for kind in FACETS[1:] for number, _ in counted[kind]]
    known = connection.execute(select(terms.c.id, terms.c.value).where(terms.c.id.in_(numbers)))
    values: dict[Any, str] = {row.id: row.value for row in known}
    return {
        kind: [Facet(value if kind == "namespace" else values[value], count) for value, count in found]
        for kind, found in counted.items()
    }


# --- conditions ---------------------------------------------------------------------------------------------------


def _planned(connection: Connection, principal: Principal, asked: Search) -> _Plan:
    columns = searchable.c
    given = {
        "fingerprint": asked.fingerprint,
        "space": asked.space,
        "tokenizer_core": asked.tokenizer_core,
        "tokenizer_added": asked.tokenizer_added,
        "licence": asked.licence,
        "model_type": asked.model_type,
        "base": asked.base,
    }
    numbers = term_numbers(connection, {kind: value for kind, value in given.items() if value is not None})
    conditions: list[ColumnElement[bool]] = [readable(principal, columns.namespace)]
    if not asked.yanked:
        conditions.append(not_(columns.yanked))
    if asked.namespace is not None:
        conditions.append(columns.namespace == asked.namespace.casefold())
    for kind in ("licence", "model_type", "base"):
        if given[kind] is not None:
            conditions.append(_is(kind, numbers))
    if (words := matching(connection, columns.version, asked.text or "")) is not None:
        conditions.append(words)
    if asked.fingerprint is None and asked.space is None:
        return _Plan(conditions)
    same, space = _is("fingerprint", numbers), _is("space", numbers)
    # Of the three classes together: then the database takes an index for it.
    return _Plan([*conditions, or_(same, space)], _rank(same, asked, numbers))


def _rank(same: ColumnElement[bool], asked: Search, numbers: Mapping[str, int]) -> ColumnElement[int]:
    """The number of the fit of a version whose fingerprint or space is the target's."""
    if asked.tokenizer_core is None:
        return case((same, 1), else_=2)
    core, added = _is("tokenizer_core", numbers), _is("tokenizer_added", numbers)
    unknown = searchable.c.tokenizer_core.is_(None)
    return case((and_(same, core, added), 0), (and_(same, or_(core, unknown)), 1), else_=2)


def _is(kind: str, numbers: Mapping[str, int]) -> ColumnElement[bool]:
    """Whether a version has a value; none has one that is no term."""
    return searchable.c[kind] == numbers[kind] if kind in numbers else false()


# --- order --------------------------------------------------------------------------------------------------------


def _sorting(plan: _Plan, order: Order) -> list[ColumnElement[Any]]:
    columns = searchable.c
    newest = columns.version.desc()
    if order == "oldest":
        return [columns.version.asc()]
    if order == "name":
        return [columns.namespace.asc(), columns.name.asc(), newest]
    if order == "size":
        return [columns.size.desc(), newest]
    return [plan.rank.asc(), newest] if order == "best" and plan.rank is not None else [newest]


def _place(order: Order, row: RowMapping) -> list[str | int]:
    """The sort key of a row, as `_after` takes it."""
    if order == "name":
        return [row["namespace"], row["name"], row["version"]]
    if order == "size":
        return [row["size"], row["version"]]
    return [row.get("rank", 0), row["version"]] if order == "best" else [row["version"]]


def _after(plan: _Plan, asked: Search) -> ColumnElement[bool]:
    """Whether a row comes after the place of the cursor."""
    columns, order = searchable.c, asked.order
    like: dict[Order, list[str | int]] = {"name": ["", "", "", 0], "size": ["", 0, 0], "best": ["", 0, 0]}
    made_for, *place = read_cursor(asked.cursor or "", like.get(order, ["", 0]))
    if made_for != order:
        raise InvalidArgument(
            f"the cursor is of a search in another order: {made_for!s:.20}", hint="take nextCursor of the page before"
        )
    number = place[-1]
    older = columns.version < number
    if order == "oldest":
        return columns.version > number
    if order == "name":
        names = tuple_(columns.namespace, columns.name)
        here = and_(columns.namespace == place[0], columns.name == place[1])
        return or_(names > tuple_(*place[:2]), and_(here, older))
    if order == "size":
        return tuple_(columns.size, columns.version) < tuple_(*place)
    if order == "best" and plan.rank is not None:
        return or_(plan.rank > place[0], and_(plan.rank == place[0], older))
    return older


def _details(connection: Connection, rows: Sequence[RowMapping]) -> list[Mapping[str, Any]]:
    numbers = [row["version"] for row in rows]
    found = {
        row["id"]: row for row in connection.execute(select(versions).where(versions.c.id.in_(numbers))).mappings()
    }
    return [{**found[row["version"]], "fit": _FITS[row["rank"]] if "rank" in row else None} for row in rows]
