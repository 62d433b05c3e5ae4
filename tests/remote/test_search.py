"""Searching remotes: those that can are asked, of the others the documents are read, once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deltareg.catalog.search import Query, SearchReport
from deltareg.digest import Digest, sha256
from deltareg.errors import NotAllowed, NotFound, RemoteUnavailable
from deltareg.manifest import Descriptor, Fingerprint
from deltareg.names import Reference, parse_reference
from deltareg.remote import Capabilities, DirectoryRemote, Remote, RemoteEntry
from deltareg.remote.search import RemoteCatalog, search_remotes
from deltareg.store import Store
from tests.deltas import add_delta, publish, publish_unread

TARGET = Fingerprint(
    digest=sha256(b"structure"), space=sha256(b"space"), inventory=sha256(b"names and shapes"), model_type="bert"
)


class Counting(DirectoryRemote):
    """Counts the documents that are asked for."""

    def __init__(self, location: Path) -> None:
        super().__init__(location)
        self.asked = 0
        self.stale: list[RemoteEntry] | None = None

    def list(self, repository: str | None = None) -> list[RemoteEntry]:
        return super().list(repository) if self.stale is None else self.stale

    def get_manifest(self, repository: str, digest: Digest) -> bytes:
        self.asked += 1
        return super().get_manifest(repository, digest)

    def get_blob(self, repository: str, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        self.asked += 1
        return super().get_blob(repository, descriptor, offset)


class Searching(DirectoryRemote):
    """A remote that searches by itself."""

    def capabilities(self) -> Capabilities:
        return super().capabilities().model_copy(update={"search": True})

    def search(self, query: Query) -> SearchReport:
        return RemoteCatalog(DirectoryRemote(self.path)).search(query)

    def get_manifest(self, repository: str, digest: Digest) -> bytes:
        raise NotAllowed("nobody needs to read me")


class Gone(DirectoryRemote):
    """A remote that went away after it had told its names."""

    def get_manifest(self, repository: str, digest: Digest) -> bytes:
        raise RemoteUnavailable("the line was cut")


def stocked(place: Path, *names: str) -> Store:
    store = Store(place)
    for name in names:
        store.publish(parse_reference(name), add_delta(store, [name.encode()], description=f"about {name}"))
    return store


def references(report: SearchReport) -> list[str]:
    return [row.reference for row in report.results]


def test_a_remote_is_searched_like_the_local_registry(tmp_path: Path) -> None:
    stocked(tmp_path / "share", "acme/search:1.0.0", "acme/chat:1.0.0", "zeta/chat:1.0.0")
    catalog = RemoteCatalog(DirectoryRemote(tmp_path / "share"), tmp_path / "cache")
    assert catalog.search(Query()).total == 3
    assert sorted(references(catalog.search(Query(text="chat")))) == ["acme/chat:1.0.0", "zeta/chat:1.0.0"]
    assert references(catalog.search(Query(text="chat", namespace="Zeta"))) == ["zeta/chat:1.0.0"]
    report = catalog.search(Query(target=TARGET, limit=1))
    assert (report.total, len(report.results), report.results[0].fit) == (3, 1, "homologous")
    assert report.results[0].licence == "apache-2.0"
    assert (
        catalog.search(Query(target=TARGET.model_copy(update={"digest": sha256(b"a"), "space": sha256(b"b")}))).total
        == 0
    )
    assert references(catalog.search(Query(text="nothing"))) == []


def test_the_second_search_reads_no_document(tmp_path: Path) -> None:
    store = stocked(tmp_path / "share", "acme/search:1.0.0", "acme/chat:1.0.0")
    remote = Counting(tmp_path / "share")
    first = RemoteCatalog(remote, tmp_path / "cache").search(Query())
    assert remote.asked == 4
    again = RemoteCatalog(remote, tmp_path / "cache").search(Query())
    assert again.results == first.results
    assert remote.asked == 4
    store.publish(parse_reference("acme/chat:1.1.0"), add_delta(store, [b"new"]))
    assert RemoteCatalog(remote, tmp_path / "cache").search(Query()).total == 3
    assert remote.asked == 6, "only what is new"


def test_what_the_names_say_today_counts_though_the_documents_are_kept(tmp_path: Path) -> None:
    store = stocked(tmp_path / "share", "acme/search:1.0.0", "acme/chat:1.0.0")
    catalog = RemoteCatalog(DirectoryRemote(tmp_path / "share"), tmp_path / "cache")
    catalog.search(Query())
    store.yank(parse_reference("acme/chat:1.0.0"), "wrong")
    store.deprecate(parse_reference("acme/search:1.0.0"), "old")
    (row,) = catalog.search(Query()).results
    assert (row.reference, row.deprecated) == ("acme/search:1.0.0", "old")
    assert {row.yanked for row in catalog.search(Query(yanked=True)).results} == {None, "wrong"}
    store.unyank(parse_reference("acme/chat:1.0.0"))
    assert catalog.search(Query()).total == 2
    store.remove(parse_reference("acme/chat:1.0.0"))
    assert references(catalog.search(Query())) == ["acme/search:1.0.0"]


def test_other_bytes_under_a_name_are_read_anew(tmp_path: Path) -> None:
    stocked(tmp_path / "share", "acme/search:1.0.0")
    other = stocked(tmp_path / "other", "acme/chat:1.0.0")
    remote = Counting(tmp_path / "share")
    assert RemoteCatalog(remote, tmp_path / "cache").search(Query(text="acme/search")).total == 1
    moved = Counting(tmp_path / "other")
    moved.url = remote.url
    (entry,) = other.entries()
    moved.stale = [RemoteEntry(parse_reference("acme/search:1.0.0"), entry.digest, entry.size, "")]
    (row,) = RemoteCatalog(moved, tmp_path / "cache").search(Query()).results
    assert (row.digest, row.description) == (entry.digest, "about acme/chat:1.0.0")


def test_a_version_that_cannot_be_read_is_told_and_hides_no_other(tmp_path: Path) -> None:
    store = stocked(tmp_path / "share", "acme/search:1.0.0")
    publish_unread(store, "acme/odd:1.0.0", b"{}")
    digest = publish(store, "acme/damaged:1.0.0", [b"damaged"])
    store.path(digest).write_bytes(b"{}")
    report = RemoteCatalog(DirectoryRemote(tmp_path / "share"), tmp_path / "cache").search(Query())
    assert references(report) == ["acme/search:1.0.0"]
    (warning,) = report.warnings
    assert "and 1 more cannot be read" in warning
    rows = {row.reference: row for row in RemoteCatalog(DirectoryRemote(tmp_path / "share")).rows()}
    assert rows["acme/damaged:1.0.0"].fault and rows["acme/odd:1.0.0"].fault
    assert rows["acme/search:1.0.0"].fault is None


def test_a_damaged_cache_is_read_anew(tmp_path: Path) -> None:
    stocked(tmp_path / "share", "acme/search:1.0.0")
    remote = Counting(tmp_path / "share")
    RemoteCatalog(remote, tmp_path / "cache").search(Query())
    (database,) = (tmp_path / "cache").glob("*.db")
    database.write_bytes(b"no database" * 1000)
    assert RemoteCatalog(remote, tmp_path / "cache").search(Query()).total == 1
    asked = remote.asked
    assert RemoteCatalog(remote, tmp_path / "cache").search(Query()).total == 1
    assert remote.asked == asked, "it was mended"


def test_a_cache_that_cannot_be_made_hinders_nothing(tmp_path: Path) -> None:
    stocked(tmp_path / "share", "acme/search:1.0.0")
    (tmp_path / "file").write_text("in the way")
    assert RemoteCatalog(DirectoryRemote(tmp_path / "share"), tmp_path / "file").search(Query()).total == 1


def test_rows_tell_channels_and_read_only_so_many(tmp_path: Path) -> None:
    store = stocked(tmp_path / "share", "acme/search:1.0.0", "acme/search:1.10.0", "acme/search:1.9.0")
    store.set_channel("acme/search", "prod", store.resolve(parse_reference("acme/search:1.9.0")), None)
    remote = Counting(tmp_path / "share")
    rows = RemoteCatalog(remote, tmp_path / "cache").rows("acme/search", most=2)
    assert remote.asked == 0
    assert [(row.reference, row.size, row.channels) for row in rows] == [
        ("acme/search:1.0.0", None, []),
        ("acme/search:1.9.0", None, ["prod"]),
        ("acme/search:1.10.0", None, []),
    ]
    rows = RemoteCatalog(remote, tmp_path / "cache").rows("acme/search", most=3)
    assert all(row.size for row in rows)
    assert [row.channels for row in rows] == [[], ["prod"], []]


def test_several_remotes_are_asked_and_rows_say_which(tmp_path: Path) -> None:
    stocked(tmp_path / "one", "acme/search:1.0.0")
    stocked(tmp_path / "two", "acme/search:1.0.0", "acme/chat:1.0.0")
    remotes: dict[str, Remote] = {"one": DirectoryRemote(tmp_path / "one"), "two": Searching(tmp_path / "two")}
    report = search_remotes(remotes, Query())
    assert sorted((row.remote, row.reference) for row in report.results) == [
        ("one", "acme/search:1.0.0"),
        ("two", "acme/chat:1.0.0"),
        ("two", "acme/search:1.0.0"),
    ]
    assert (report.total, report.warnings) == (3, [])
    limited = search_remotes(remotes, Query(limit=2))
    assert (limited.total, len(limited.results)) == (3, 2)


def test_of_several_remotes_one_that_does_not_answer_is_a_warning(tmp_path: Path) -> None:
    stocked(tmp_path / "one", "acme/search:1.0.0")
    stocked(tmp_path / "cut", "acme/search:1.0.0")
    remotes: dict[str, Remote] = {
        "one": DirectoryRemote(tmp_path / "one"),
        "cut": Gone(tmp_path / "cut"),
        "absent": DirectoryRemote(tmp_path / "absent"),
    }
    report = search_remotes(remotes, Query())
    assert [(row.remote, row.reference) for row in report.results] == [("one", "acme/search:1.0.0")]
    assert report.warnings[0] == "cut did not answer: the line was cut"
    assert report.warnings[1].startswith("absent did not answer: ")
    del remotes["one"]
    with pytest.raises(RemoteUnavailable):
        search_remotes(remotes, Query())


def test_an_empty_remote_has_nothing(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    assert search_remotes({"empty": DirectoryRemote(tmp_path / "share")}, Query()).total == 0


def test_a_name_that_vanished_meanwhile_is_a_fault_of_its_own(tmp_path: Path) -> None:
    stocked(tmp_path / "share", "acme/search:1.0.0")
    remote = Counting(tmp_path / "share")
    absent = RemoteEntry(Reference("acme", "gone", "1.0.0"), sha256(b"gone"), 4, "")
    remote.stale = [*remote.list(), absent]
    report = RemoteCatalog(remote).search(Query())
    assert references(report) == ["acme/search:1.0.0"]
    assert report.warnings and "acme/gone:1.0.0 cannot be read" in report.warnings[0]
    with pytest.raises(NotFound):
        remote.get_manifest("acme/gone", absent.digest)
