"""Search over both databases: what fits, what is found by words, and pages that nothing upsets."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, select, text

from deltareg.errors import InvalidArgument
from deltareg.names import parse_reference
from deltareg.store import Store
from deltareg_registry.access.principal import ANONYMOUS, Principal, Role
from deltareg_registry.database.tables import searchable, versions
from deltareg_registry.records.marks import set_mark
from deltareg_registry.records.publishing import publish
from deltareg_registry.records.searching import COUNTED, Found, Search, search
from deltareg_registry.state import State
from tests.cli.program import Workplace
from tests.deltas import add_delta
from tests.registry.deltas import OWNER, publish_delta, put_blobs
from tests.registry.rows import digest, put_versions
from tests.servers.deltareg_server import RunningServer


def put(state: State, *rows: Mapping[str, Any], public: bool = False) -> None:
    named = [{"namespace": "acme", "name": f"d{number}", "version": "1.0.0", **row} for number, row in enumerate(rows)]
    with state.database.writing() as connection:
        put_versions(connection, named, public=public)


def found(state: State, principal: Principal = OWNER, **asked: Any) -> Found:
    with state.database.reading() as connection:
        return search(connection, principal, Search(**asked))


def names(result: Found) -> list[str]:
    return [f"{row['namespace']}/{row['name']}:{row['version']}" for row in result.rows]


def short(state: State, principal: Principal = OWNER, **asked: Any) -> list[str]:
    return [name.removeprefix("acme/").removesuffix(":1.0.0") for name in names(found(state, principal, **asked))]


def test_published_delta_is_found_by_its_words_its_values_and_its_target(state: State, local: Store) -> None:
    manifest = add_delta(local, [b"\2\0\0\0\0\0\0\0{}"], description="Ärztliche Fragen, knapp beantwortet")
    put_blobs(state, "acme/search:1.0.0", local, manifest)
    publish_delta(state, "acme/other:1.0.0", local)
    fits: dict[str, Any] = {"fingerprint": digest("structure"), "space": digest("space")}
    assert names(found(state, text="arztliche")) == []
    publish(state.database, state.storage, OWNER, parse_reference("acme/search:1.0.0"), manifest)
    for words in ("arztliche frag", "SEARCH", "search:1.0"):
        assert names(found(state, text=words)) == ["acme/search:1.0.0"]
    values: list[dict[str, Any]] = [{"licence": "Apache-2.0"}, {"base": "hf://acme/base"}, {"model_type": "bert"}]
    values += [fits, {"text": "ba"}]
    for asked in values:
        assert names(found(state, **asked)) == ["acme/search:1.0.0", "acme/other:1.0.0"]
    assert [row["fit"] for row in found(state, **fits).rows] == ["homologous"] * 2


def test_fit_means_what_it_means_on_ones_own_machine(state: State) -> None:
    same, other = digest("structure"), digest("another structure")
    core, added = digest("core"), digest("added")
    put(
        state,
        {"tokenizer_core": core, "tokenizer_added": added},
        {"tokenizer_core": core, "tokenizer_added": digest("more")},
        {"tokenizer_core": digest("words"), "tokenizer_added": added},
        {},
        {"fingerprint": other, "tokenizer_core": core, "tokenizer_added": added},
        {"fingerprint": other, "space": digest("elsewhere")},
    )
    target: dict[str, Any] = {"fingerprint": same, "space": digest("space")}

    def fits(**asked: Any) -> list[tuple[str, str]]:
        return [(str(row["name"]), str(row["fit"])) for row in found(state, **asked).rows]

    assert fits(**target, tokenizer_core=core, tokenizer_added=added) == [
        ("d0", "identical"),
        ("d3", "homologous"),
        ("d1", "homologous"),
        ("d4", "adaptable"),
        ("d2", "adaptable"),
    ]
    homologous = [(f"d{number}", "homologous") for number in (3, 2, 1, 0)]
    assert fits(**target) == [*homologous, ("d4", "adaptable")]
    assert fits(fingerprint=same) == homologous
    assert fits(space=digest("space")) == [(f"d{number}", "adaptable") for number in (4, 3, 2, 1, 0)]
    assert fits(fingerprint=digest("unknown"), space=digest("unknown")) == []


def test_words_are_sought_where_they_stand_and_as_beginnings(state: State) -> None:
    put(
        state,
        {"description": "Chat, in French"},
        {"base": "hf://meta/Llama-3.1-8B"},
        {"description": "llama of the 8b kind, with 3 eyes"},
        {"description": "naïve Café"},
        {"description": "x_y 100%"},
    )
    cases: Mapping[str, Sequence[str]] = {
        "french": ["d0"],
        "FRE": ["d0"],
        "french chat": ["d0"],
        "rench": [],
        "llama": ["d2", "d1"],
        "llama-3.1": ["d1"],
        "llama-8b": [],
        "naive cafe": ["d3"],
        "d1": ["d1"],
        "acme/d2": ["d2"],
        "acme/d2:1.0.0": ["d2"],
        "x_y": ["d4"],
        "%": [],
        "— french": ["d0"],
        "'": [],
        "acme' & '": ["d4", "d3", "d2", "d1", "d0"],
        "hf:* | !x": ["d4"],
        '"': [],
        "NEAR(": [],
        "french\0chat": ["d0"],
        "": ["d4", "d3", "d2", "d1", "d0"],
    }
    assert {asked: short(state, text=asked) for asked in cases} == cases
    with pytest.raises(InvalidArgument, match="32"):
        found(state, text=" ".join(f"w{number}" for number in range(33)))


def test_only_readable_namespaces_are_searched_and_counted(state: State) -> None:
    for namespace in ("acme", "zoo"):
        put(state, {"namespace": namespace})
    put(state, {"namespace": "open"}, public=True)
    reader = Principal("rita", roles={"zoo": Role.READER})
    assert names(found(state, ANONYMOUS)) == ["open/d0:1.0.0"]
    assert names(found(state, reader)) == ["open/d0:1.0.0", "zoo/d0:1.0.0"]
    assert found(state, reader).total == 2
    assert names(found(state, reader, namespace="acme")) == []
    facets = found(state, reader, facets=True).facets
    assert facets is not None
    assert {one.value for one in facets["namespace"]} == {"open", "zoo"}


def test_yanked_versions_are_left_out_until_they_are_taken_back_or_asked_for(state: State) -> None:
    put(state, {}, {})

    def mark(reason: str | None) -> None:
        with state.database.writing() as connection:
            set_mark(connection, OWNER, parse_reference("acme/d1:1.0.0"), "yanked", reason)

    mark("wrong data")
    assert (short(state), found(state).total) == (["d0"], 1)
    assert short(state, yanked=True) == ["d1", "d0"]
    mark(None)
    assert short(state) == ["d1", "d0"]


def test_removed_versions_leave_the_index_of_words_too(state: State) -> None:
    put(state, {"description": "gone"}, {})
    with state.database.writing() as connection:
        connection.execute(delete(versions).where(versions.c.name == "d0"))
        assert connection.execute(select(func.count()).select_from(searchable)).scalar() == 1
        assert connection.execute(text("select count(*) from words")).scalar() == 1
    assert (short(state, text="gone"), short(state)) == ([], ["d1"])


@pytest.mark.parametrize("order", ["best", "newest", "oldest", "name", "size"])
def test_no_row_is_missed_or_shown_twice_while_others_come_and_go(state: State, order: str) -> None:
    draw = random.Random(3)

    def row(number: int) -> Mapping[str, Any]:
        kind = {"fingerprint": digest("f0")} if draw.random() < 0.5 else {"fingerprint": digest("f1")}
        return {"name": f"n{draw.randrange(5)}", "version": f"1.{number}.0", "size": draw.randrange(5), **kind}

    put(state, *(row(number) for number in range(60)))
    target: dict[str, Any] = {"fingerprint": digest("f0"), "space": digest("space")} if order == "best" else {}
    before = names(found(state, order=order, limit=1000, **target))
    seen: list[str] = []
    cursor: str | None = None
    for step in range(100):
        page = found(state, order=order, limit=7, cursor=cursor, **target)
        seen += names(page)
        cursor = page.next_cursor
        if cursor is None:
            break
        put(state, row(1000 + step))
        with state.database.writing() as connection:
            gone = seen[0].removeprefix("acme/").split(":")
            connection.execute(delete(versions).where(versions.c.name == gone[0], versions.c.version == gone[1]))
    assert len(seen) == len(set(seen))
    assert [name for name in seen if name in before] == before


def test_orders_are_what_they_are_called(state: State) -> None:
    put(state, {"name": "b", "size": 5}, {"name": "c", "size": 9}, {"name": "a", "size": 7}, {"name": "b-1", "size": 5})
    assert short(state, order="newest") == ["b-1", "a", "c", "b"]
    assert short(state, order="oldest") == ["b", "c", "a", "b-1"]
    assert short(state, order="name") == ["a", "b", "b-1", "c"]
    assert short(state, order="size") == ["c", "a", "b-1", "b"]


def test_cursor_of_another_order_is_refused(state: State) -> None:
    put(state, *({"size": number} for number in range(3)))
    cursor = found(state, order="newest", limit=1).next_cursor
    for order in ("oldest", "size", "name", "best"):
        with pytest.raises(InvalidArgument, match="cursor"):
            found(state, order=order, cursor=cursor)


def test_facets_count_values_among_what_was_found(state: State) -> None:
    put(state, {"licence": "mit"}, {"licence": "MIT", "model_type": None}, {"licence": "other"}, {"yanked": "bad"})
    facets, fewer = found(state, facets=True).facets, found(state, facets=True, licence="mit", limit=1)
    assert facets is not None and fewer.facets is not None
    told = {kind: [(one.value, one.count) for one in counted] for kind, counted in facets.items()}
    assert told == {
        "namespace": [("acme", 3)],
        "licence": [("mit", 2), ("other", 1)],
        "model_type": [("bert", 2)],
        "base": [("hf://acme/base", 3)],
    }
    assert [(one.value, one.count) for one in fewer.facets["licence"]] == [("mit", 2)]
    assert (fewer.total, len(fewer.rows)) == (2, 1)


def test_counting_ends_where_it_would_take_long(state: State) -> None:
    searches: list[dict[str, Any]] = [{}, {"facets": True}, {"text": "spring"}, {"text": "spring", "facets": True}]
    put(state, *({"description": "spring"} for _ in range(COUNTED)))
    for asked in searches:
        result = found(state, **asked)
        assert (result.total, result.total_is_exact) == (COUNTED, True)
    put(state, {"name": "more", "description": "spring", "licence": "mit"})
    for asked in searches:
        result = found(state, **asked)
        assert (result.total, result.total_is_exact, names(result)[0]) == (COUNTED, False, "acme/more:1.0.0")
    facets = found(state, facets=True).facets
    assert facets is not None
    assert [(one.value, one.count) for one in facets["licence"]] == [("apache-2.0", COUNTED - 1), ("mit", 1)]
    assert (found(state, licence="mit").total, found(state, licence="mit").total_is_exact) == (1, True)


def test_who_asks_for_many_is_told_that_there_are_more(server: RunningServer, tmp_path: Path) -> None:
    put(server.state, *({} for _ in range(COUNTED + 1)))
    with server.client() as client:
        told = client.get("/api/v1/search", params={"facets": "true"}).json()
        page = client.get("/").text
    assert (told["total"], told["totalIsExact"], told["facets"]["rows"]) == (10_000, False, 10_000)
    assert "More than 10,000 versions" in page and "Counted among the newest 10,000 versions." in page
    (tmp_path / "user").mkdir()
    workplace = Workplace(tmp_path / "user")
    done = workplace.ok("search", "--remote", server.url, DELTAREG_TOKEN=server.token)
    assert "more than 10000 were found; --limit N shows more" in done.err


def test_search_over_http(server: RunningServer) -> None:
    put(server.state, {"description": "d" * 5000}, {"licence": "mit", "base": "hf://other/base"}, {"yanked": "bad"})
    with server.client() as client:
        page = client.get("/api/v1/search", params={"limit": 1, "facets": "true"}).json()
        rest = client.get("/api/v1/search", params={"limit": 1, "cursor": page["nextCursor"]}).json()
        fits = client.get("/api/v1/search", params={"space": digest("space"), "modelType": "BERT"}).json()
        assert client.get("/api/v1/search", params={"yanked": "1"}).json()["total"] == 3
    assert (page["totalIsExact"], rest["totalIsExact"]) == (True, True)
    assert (page["total"], [one["reference"] for one in page["results"]]) == (2, ["acme/d1:1.0.0"])
    assert page["results"][0]["licence"] == "mit"
    assert page["facets"]["rows"] == 2
    assert (rest["nextCursor"], rest["facets"], len(rest["results"][0]["description"])) == (None, None, 2001)
    assert [one["fit"] for one in fits["results"]] == ["adaptable"] * 2
    with server.client(server.user("mallory")) as client:
        assert client.get("/api/v1/search").json()["total"] == 0


@pytest.mark.parametrize(
    "query",
    ["order=random", "limit=0", "limit=1001", "fingerprint=x", "cursor=x", "yanked=perhaps", "text=" + "a+" * 40],
)
def test_searches_that_make_no_sense_are_refused(server: RunningServer, query: str) -> None:
    if query.startswith("text"):
        query = "text=" + "+".join(f"w{number}" for number in range(40))
    with server.client() as client:
        answer = client.get(f"/api/v1/search?{query}")
    assert (answer.status_code, json.loads(answer.content)["code"]) == (400, "DR0101")
