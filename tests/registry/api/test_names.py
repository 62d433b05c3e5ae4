"""What there is under which name, and what is changed of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import insert, select, update

from deltareg.digest import Digest, sha256
from deltareg.errors import BadName, ChannelMoved, InvalidArgument, NotFound
from deltareg.names import parse_reference
from deltareg.store import Store
from deltareg_registry.access.principal import ANONYMOUS, Principal, Role, Scope
from deltareg_registry.database import now
from deltareg_registry.database.tables import audit, namespaces, tags
from deltareg_registry.records.channels import remove_channel, set_channel
from deltareg_registry.records.marks import set_mark
from deltareg_registry.records.names import Page, entries_of, entry_of, list_deltas
from deltareg_registry.records.namespaces import repository_id
from deltareg_registry.state import State
from tests.registry.deltas import OWNER, publish_delta

PROD = parse_reference("acme/search:prod")


def page(state: State, principal: Principal = OWNER, namespace: str | None = None, **more: object) -> Page:
    asked = {"cursor": None, "limit": 100, **more}
    with state.database.reading() as connection:
        return list_deltas(connection, principal, namespace=namespace, **asked)  # type: ignore[arg-type]


def shown(found: Page) -> list[str]:
    return [f"{delta.namespace}/{delta.name}" for delta in found.deltas]


def resolved(state: State, name: str) -> str:
    wanted = parse_reference(name)
    with state.database.reading() as connection:
        repository = repository_id(connection, wanted.namespace, wanted.name)
        return str(entry_of(entries_of(connection, repository, wanted), wanted).reference)


def mark(state: State, name: str, kind: str, reason: str | None) -> None:
    with state.database.writing() as connection:
        set_mark(connection, OWNER, parse_reference(name), kind, reason)  # type: ignore[arg-type]


def move(state: State, digest: Digest, expected: Digest | None) -> bool:
    with state.database.writing() as connection:
        return set_channel(connection, OWNER, PROD, digest, expected)


def actions(state: State) -> list[str]:
    with state.database.reading() as connection:
        rows = connection.execute(select(audit.c.action, audit.c.subject).order_by(audit.c.id)).all()
    return [f"{row.action} {row.subject}" for row in rows if row.action.startswith(("version", "channel"))]


def test_deltas_are_listed_page_by_page_and_none_twice_when_some_come_in_between(state: State, local: Store) -> None:
    for name in ("acme/b", "acme/d", "zoo/a", "acme/c-1", "acme/c.1"):
        publish_delta(state, f"{name}:1.0.0", local)
    first = page(state, limit=2)
    assert shown(first) == ["acme/b", "acme/c-1"]
    publish_delta(state, "acme/a:1.0.0", local)
    publish_delta(state, "acme/cc:1.0.0", local)
    second = page(state, limit=3, cursor=first.next_cursor)
    third = page(state, limit=3, cursor=second.next_cursor)
    assert shown(second) + shown(third) == ["acme/c.1", "acme/cc", "acme/d", "zoo/a"]
    assert third.next_cursor is None
    assert shown(page(state, namespace="zoo")) == ["zoo/a"]


def test_deltas_are_listed_with_their_latest_version(state: State, local: Store) -> None:
    for version in ("1.10.0", "1.9.0", "2.0.0-rc.1"):
        publish_delta(state, f"acme/search:{version}", local, version)
    assert [(one.latest, one.versions) for one in page(state).deltas] == [("1.10.0", 3)]
    mark(state, "acme/search:1.10.0", "yanked", "wrong data")
    assert [one.latest for one in page(state).deltas] == ["1.9.0"]


def test_cursors_that_the_registry_never_gave_are_refused(state: State) -> None:
    for cursor in ("x", "", "é", "WzEsMl0", "WyJhIl0", "WyJhXHUwMDAwIiwiYiJd", "A" * 5000):
        with pytest.raises(InvalidArgument, match="cursor"):
            page(state, cursor=cursor)


def test_only_what_one_may_read_is_listed(state: State, local: Store) -> None:
    for namespace in ("acme", "open", "zoo"):
        publish_delta(state, f"{namespace}/x:1.0.0", local)
    with state.database.writing() as connection:
        connection.execute(update(namespaces).where(namespaces.c.name == "open").values(public=True))
    reader = Principal("rita", roles={"acme": Role.READER, "zoo": Role.PUBLISHER})
    limited = Principal("rita", roles=reader.roles, scopes=(Scope(namespace="zoo", action="read"),))
    admin = Principal("ada", admin=True, scopes=(Scope(namespace="acme", action="own"),))
    everywhere = Principal("ada", admin=True, scopes=(Scope(namespace="*", action="read"),))
    assert shown(page(state, ANONYMOUS)) == ["open/x"]
    assert shown(page(state, reader)) == ["acme/x", "open/x", "zoo/x"]
    assert shown(page(state, limited)) == ["open/x", "zoo/x"]
    assert shown(page(state, admin)) == ["acme/x", "open/x"]
    assert shown(page(state, everywhere)) == ["acme/x", "open/x", "zoo/x"]
    assert shown(page(state, limited, namespace="acme")) == []


def test_names_lead_to_versions(state: State, local: Store) -> None:
    first = publish_delta(state, "acme/search:1.0.0", local, "1")
    publish_delta(state, "acme/search:1.1.0", local, "2")
    move(state, first, None)
    assert resolved(state, "acme/search") == "acme/search:1.1.0"
    assert resolved(state, "acme/search:latest") == "acme/search:1.1.0"
    assert resolved(state, "acme/search:prod") == "acme/search:prod"
    mark(state, "acme/search:1.1.0", "yanked", "wrong data")
    assert resolved(state, "acme/search") == "acme/search:1.0.0"
    assert resolved(state, "acme/search:1.1.0") == "acme/search:1.1.0"
    with pytest.raises(NotFound) as caught:
        resolved(state, "acme/search:2.0.0")
    assert caught.value.cause == "acme/search has 1.0.0, 1.1.0, prod"


def test_tags_of_other_programs_are_no_channels(state: State, local: Store) -> None:
    digest = publish_delta(state, "acme/search:1.0.0", local)
    with state.database.writing() as connection:
        repository = repository_id(connection, "acme", "search")
        for tag, led in (("latest", digest), ("V1_x", digest), ("lost", sha256(b"x")), ("prod", digest)):
            values = {"repository": repository, "tag": tag, "digest": led, "updated": now()}
            connection.execute(insert(tags).values(values))
        found = entries_of(connection, repository, PROD)
    assert [entry.reference.tag for entry in found] == ["1.0.0", "prod"]


def test_marks_are_set_changed_and_taken_back_and_each_change_is_noted(state: State, local: Store) -> None:
    publish_delta(state, "acme/search:1.0.0", local)
    for kind in ("yanked", "deprecated"):
        for reason in ("first", "first", " second ", None, None):
            mark(state, "acme/search:1.0.0", kind, reason)
    assert actions(state)[1:] == [
        "version.yank acme/search:1.0.0",
        "version.yank acme/search:1.0.0",
        "version.unyank acme/search:1.0.0",
        "version.deprecate acme/search:1.0.0",
        "version.deprecate acme/search:1.0.0",
        "version.undeprecate acme/search:1.0.0",
    ]


def test_only_versions_that_are_there_are_marked_and_with_a_reason(state: State, local: Store) -> None:
    publish_delta(state, "acme/search:1.0.0", local)
    cases: list[tuple[str, str, type[Exception]]] = [
        ("acme/search:prod", "x", BadName),
        ("acme/search:1.0.1", "x", NotFound),
        ("acme/other:1.0.0", "x", NotFound),
        ("acme/search:1.0.0", " ", InvalidArgument),
        ("acme/search:1.0.0", "two\nlines", InvalidArgument),
    ]
    for name, reason, error in cases:
        with pytest.raises(error):
            mark(state, name, "yanked", reason)
    assert len(actions(state)) == 1


def test_channel_moves_only_from_where_it_is_thought_to_be(state: State, local: Store) -> None:
    first, second = (publish_delta(state, f"acme/search:1.{n}.0", local, f"{n}") for n in range(2))
    assert move(state, first, None)
    assert not move(state, first, None)
    with pytest.raises(ChannelMoved) as caught:
        move(state, second, None)
    assert caught.value.data == {"found": first, "expected": None}
    assert move(state, second, first)
    with pytest.raises(NotFound):
        move(state, sha256(b"no version"), second)
    with state.database.writing() as connection:
        remove_channel(connection, OWNER, PROD)
        with pytest.raises(NotFound):
            remove_channel(connection, OWNER, PROD)
    assert actions(state)[2:] == ["channel.set acme/search:prod"] * 2 + ["channel.remove acme/search:prod"]


def test_what_is_no_channel_is_not_set(state: State, local: Store) -> None:
    digest = publish_delta(state, "acme/search:1.0.0", local)
    for name in ("latest", "1.0.0"):
        wanted = parse_reference(f"acme/search:{name}")
        with state.database.writing() as connection, pytest.raises(BadName):
            set_channel(connection, OWNER, wanted, digest, None)
        with state.database.writing() as connection, pytest.raises(BadName):
            remove_channel(connection, OWNER, wanted)


def test_of_many_who_move_a_channel_at_once_one_wins(state: State, local: Store) -> None:
    digests = [publish_delta(state, f"acme/search:1.{number}.0", local, f"{number}") for number in range(9)]
    for expected, rivals in ((None, digests[:4]), ("now", digests[4:])):
        with state.database.reading() as connection:
            before = connection.execute(select(tags.c.digest)).scalar_one_or_none()
        assert (before is None) == (expected is None)

        def attempt(digest: Digest, before: Digest | None = before) -> bool:
            try:
                return move(state, digest, before)
            except ChannelMoved:
                return False

        with ThreadPoolExecutor(len(rivals)) as pool:
            assert sum(pool.map(attempt, rivals)) == 1
    assert actions(state)[9:] == ["channel.set acme/search:prod"] * 2
