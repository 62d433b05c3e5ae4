"""Namespaces, members, users, tokens, quotas and the audit log, in both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, event

from deltareg.digest import Digest, sha256
from deltareg.errors import BadName, Conflict, InvalidArgument, NotFound, NotSignedIn, QuotaExceeded
from deltareg.store import Store
from deltareg_registry.access.principal import ANONYMOUS, Principal, Role, Scope
from deltareg_registry.access.tokens import expiry, list_tokens, principal_of
from deltareg_registry.database import now, parse_time
from deltareg_registry.records.audit import AuditQuery, find_records
from deltareg_registry.records.blobs import add_blob, mount_blob
from deltareg_registry.records.members import list_members, remove_member, set_member
from deltareg_registry.records.namespaces import (
    change_namespace,
    delete_namespace,
    list_namespaces,
    make_namespace,
    make_repository,
    namespace_named,
)
from deltareg_registry.records.pulls import PullCounter
from deltareg_registry.records.quotas import check_room, lock_quota, used_bytes
from deltareg_registry.records.statistics import count_namespaces, version_pulls
from deltareg_registry.records.tokens import issue_token, withdraw_token
from deltareg_registry.records.users import add_user, change_user, list_users
from deltareg_registry.state import State
from tests.registry.deltas import OWNER, publish_delta


def names(state: State, principal: Principal) -> list[str]:
    with state.database.reading() as connection:
        return [each.name for each in list_namespaces(connection, principal, after="", limit=10)]


def digest_of(text: str) -> Digest:
    return sha256(text.encode())


def test_everybody_sees_the_namespaces_that_they_may_read(any_state: State) -> None:
    with any_state.database.writing() as connection:
        for name in ("acme", "open", "other"):
            make_namespace(connection, name, OWNER, public=name == "open")
    member = Principal("rita", token="1", roles={"acme": Role.READER})
    limited = Principal("owner", admin=True, token="2", scopes=(Scope(namespace="other", action="read"),))
    assert names(any_state, OWNER) == ["acme", "open", "other"]
    assert names(any_state, ANONYMOUS) == ["open"]
    assert names(any_state, member) == ["acme", "open"]
    assert names(any_state, limited) == ["open", "other"]


def test_only_an_empty_namespace_is_removed(any_state: State, tmp_path: Path) -> None:
    publish_delta(any_state, "acme/search:1.0.0", Store(tmp_path / "local"))
    with (
        pytest.raises(Conflict, match="acme is not empty: it has versions"),
        any_state.database.writing() as connection,
    ):
        delete_namespace(connection, OWNER, "acme")
    with any_state.database.writing() as connection:
        make_namespace(connection, "empty", OWNER, public=False)
        make_repository(connection, "empty", "search")
        delete_namespace(connection, OWNER, "empty")
    assert names(any_state, OWNER) == ["acme"]
    with pytest.raises(NotFound), any_state.database.writing() as connection:
        delete_namespace(connection, OWNER, "empty")


def test_a_new_repository_has_no_number_of_one_that_was_removed(any_state: State) -> None:
    """An upload that still ran would give its blob to somebody else."""
    numbers: list[int] = []
    for name in ("first", "second"):
        with any_state.database.writing() as connection:
            make_namespace(connection, name, OWNER, public=False)
            numbers.append(make_repository(connection, name, "search"))
            delete_namespace(connection, OWNER, name)
    assert numbers[0] < numbers[1]


def test_the_last_owner_stays_however_many_leave_at_once(any_state: State) -> None:
    owners = [f"olga{number}" for number in range(8)]
    with any_state.database.writing() as connection:
        make_namespace(connection, "acme", OWNER, public=False)
        for owner in owners:
            add_user(connection, OWNER, owner)
            set_member(connection, OWNER, "acme", owner, Role.OWNER)
    together = threading.Barrier(9)

    def leave(owner: str) -> None:
        together.wait()
        try:
            with any_state.database.writing() as connection:
                remove_member(connection, OWNER, "acme", owner)
        except Conflict:
            pass

    with ThreadPoolExecutor(9) as pool:
        list(pool.map(leave, [*owners, "owner"]))
    with any_state.database.writing() as connection:
        (left,) = list_members(connection, "acme")
        with pytest.raises(Conflict, match="last owner"):
            set_member(connection, OWNER, "acme", left.user, Role.READER)
        with pytest.raises(NotFound):
            remove_member(connection, OWNER, "acme", "nobody")
        with pytest.raises(NotFound):
            set_member(connection, OWNER, "acme", "nobody", Role.READER)


def test_the_last_administrator_stays(any_state: State) -> None:
    with any_state.database.writing() as connection:
        with pytest.raises(Conflict, match="last administrator"):
            change_user(connection, OWNER, "owner", admin=False)
        with pytest.raises(Conflict, match="last administrator"):
            change_user(connection, OWNER, "owner", disabled=True)
        add_user(connection, OWNER, "anna", admin=True)
        assert not change_user(connection, OWNER, "owner", admin=False).admin
        assert [(user.name, user.admin) for user in list_users(connection)] == [("anna", True), ("owner", False)]
        with pytest.raises(Conflict):
            add_user(connection, OWNER, "anna")
        with pytest.raises(BadName, match="cannot be the name of a user"):
            add_user(connection, OWNER, "Anna Nym")


def test_tokens_of_a_user_who_is_shut_out_are_good_for_nothing(any_state: State) -> None:
    with any_state.database.writing() as connection:
        add_user(connection, OWNER, "rita")
        scopes = [Scope(namespace="acme", action="read")]
        kept, secret = issue_token(connection, OWNER, "rita", "laptop", scopes=scopes, expires=expiry(None, 1))
        assert principal_of(connection, secret)[0].scopes == tuple(scopes)
        change_user(connection, OWNER, "rita", disabled=True)
        with pytest.raises(NotSignedIn):
            principal_of(connection, secret)
        change_user(connection, OWNER, "rita", disabled=False)
        assert principal_of(connection, secret)[0].user == "rita"
        withdraw_token(connection, OWNER, kept)
        with pytest.raises(NotSignedIn, match="revoked"):
            principal_of(connection, secret)
        assert list_tokens(connection, "rita")[0].revoked is not None
        for name in ("", "a\nb", "x" * 101):
            with pytest.raises(InvalidArgument):
                issue_token(connection, OWNER, "rita", name)


def test_the_namespaces_of_a_user_are_found_by_an_index(state: State) -> None:
    asked: list[str] = []

    def note(_c: object, _u: object, statement: str, parameters: object, *_: object) -> None:
        asked.append(statement)

    with state.database.writing() as connection:
        _, secret = issue_token(connection, OWNER, "owner", "laptop")
        event.listen(connection, "before_cursor_execute", note)
        principal_of(connection, secret)
        (statement,) = [one for one in asked if "FROM members" in one]
        plan = connection.exec_driver_sql(f"explain query plan {statement}", ("owner",)).all()
    # Every request with a token asks this.
    assert "ix_members_user" in plan[0].detail


def test_ends_of_tokens_are_times_to_come() -> None:
    assert expiry("2100-01-01", None) == "2100-01-01T00:00:00.000000Z"
    assert expiry("2100-01-01T02:00:00+02:00", None) == "2100-01-01T00:00:00.000000Z"
    assert expiry(None, None) is None
    for expires, days in (
        ("2001-01-01", None),
        ("0999-01-01", None),
        ("soon", None),
        (None, 0),
        (None, 1e9),
        ("2100-01-01", 1),
    ):
        with pytest.raises(InvalidArgument):
            expiry(expires, days)
    with pytest.raises(InvalidArgument):
        parse_time("0001-01-01T00:00:00+23:00")


def add(connection: Connection, repository: int, text: str, size: int) -> None:
    """Add a blob to a repository of acme, as an upload does it."""
    lock_quota(connection, "acme")
    check_room(connection, "acme", digest_of(text), size)
    add_blob(connection, repository, digest_of(text), size)


def test_a_namespace_holds_no_more_than_its_quota(any_state: State) -> None:
    with any_state.database.writing() as connection:
        make_namespace(connection, "acme", OWNER, public=False)
        change_namespace(connection, OWNER, "acme", {"quota": 100})
        first, second = (make_repository(connection, "acme", name) for name in ("first", "second"))
        add(connection, first, "a", 60)
        add(connection, second, "a", 60)  # the same bytes count once
        assert used_bytes(connection, "acme") == 60
        for digest, size in ((digest_of("b"), 41), (None, 41)):
            with pytest.raises(QuotaExceeded, match="acme has room for 40 more bytes, not for 41") as caught:
                check_room(connection, "acme", digest, size)
            assert caught.value.data == {"room": 40}
        add(connection, second, "b", 40)
        change_namespace(connection, OWNER, "acme", {"quota": None})
        add(connection, second, "c", 1000)
        assert namespace_named(connection, "acme").quota is None


def test_what_a_namespace_has_already_goes_into_another_of_its_repositories_whatever_its_quota(
    any_state: State,
) -> None:
    with any_state.database.writing() as connection:
        make_namespace(connection, "acme", OWNER, public=False)
        first, second = (make_repository(connection, "acme", name) for name in ("first", "second"))
        add(connection, first, "a", 60)
        change_namespace(connection, OWNER, "acme", {"quota": 50})
        assert mount_blob(connection, first, second, "acme", digest_of("a"))
        assert used_bytes(connection, "acme") == 60


def test_an_upload_waits_for_another_one_that_shares_its_quota(any_state: State) -> None:
    with any_state.database.writing() as connection:
        make_namespace(connection, "acme", OWNER, public=False)
        change_namespace(connection, OWNER, "acme", {"quota": 15})
        repository = make_repository(connection, "acme", "search")

    def upload(text: str) -> None:
        with any_state.database.writing() as connection:
            add(connection, repository, text, 10)

    with ThreadPoolExecutor(1) as pool:
        with any_state.database.writing() as connection:
            add(connection, repository, "first", 10)
            second = pool.submit(upload, "second")
            # Without waiting it would count before the first is committed, and both would be too much.
            with pytest.raises(TimeoutError):
                second.result(0.5)
        with pytest.raises(QuotaExceeded):
            second.result(30)


def test_the_audit_log_is_found_by_what_is_known_of_a_change(any_state: State) -> None:
    with any_state.database.writing() as connection:
        make_namespace(connection, "acme", OWNER, public=False)
        make_namespace(connection, "other", OWNER, public=False, address="127.0.0.9")
        middle = now()
        change_namespace(connection, OWNER, "acme", {"public": True}, address="::1")

    def found(query: AuditQuery) -> list[tuple[str, str]]:
        with any_state.database.reading() as connection:
            return [(one.action, one.subject) for one in find_records(connection, query)]

    made, changed = ("namespace.create", "acme"), ("namespace.change", "acme")
    assert found(AuditQuery(namespaces=["acme"])) == [changed, made]
    assert found(AuditQuery(since=middle)) == [changed]
    assert found(AuditQuery(until=middle, actor="owner")) == [("namespace.create", "other"), made]
    assert found(AuditQuery(action="user.create")) == [("user.create", "owner")]
    assert found(AuditQuery(limit=2)) == [changed, ("namespace.create", "other")]
    assert found(AuditQuery(before=2)) == [("user.create", "owner")]
    with any_state.database.reading() as connection:
        last = find_records(connection, AuditQuery(limit=1))[0]
    assert (last.actor, last.address, last.detail) == ("owner", "::1", {"public": True})


def test_pulls_are_counted_in_memory_and_written_down_together(any_state: State, tmp_path: Path) -> None:
    digest = publish_delta(any_state, "acme/search:1.0.0", Store(tmp_path / "local"))
    with any_state.database.writing() as connection:
        repository = make_repository(connection, "acme", "search")
    counters = [PullCounter() for _ in range(3)]
    for counter in counters:
        for _ in range(5):
            counter.count(repository, digest)
        counter.count(repository + 100, digest)  # of a repository that is gone meanwhile
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda counter: counter.flush(any_state.database), counters))
    for counter in counters:
        counter.flush(any_state.database)
    with any_state.database.reading() as connection:
        (pulled,) = version_pulls(connection, "acme", limit=10)
        (counted,) = count_namespaces(connection, ["acme"])
    assert (pulled.name, pulled.version, pulled.count) == ("search", "1.0.0", 15)
    assert (counted.repositories, counted.versions, counted.pulls) == (1, 1, 15)
    assert counted.size > 0
