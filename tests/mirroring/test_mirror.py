"""Mirroring: one remote holds what another has, and what is there is never replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import deltareg
from deltareg.digest import Digest
from deltareg.errors import Busy, DiskFull, InvalidArgument, NotAllowed, RemoteUnavailable
from deltareg.manifest import Descriptor
from deltareg.mirroring import MirrorReport, Scope, mirror
from deltareg.mirroring.staging import Staging
from deltareg.names import parse_reference
from deltareg.remote import Capabilities, DirectoryRemote, RemoteEntry
from deltareg.store import Store
from tests.contracts.remote_contract import Counted, Interrupted
from tests.deltas import add_delta, add_referrer, flip, noise, publish
from tests.disks import read_only, small_disk

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND, OTHER = "acme/search:1.0.0", "acme/search:1.1.0", "zeta/chat:1.0.0"


@pytest.fixture
def source(tmp_path: Path) -> Store:
    """A registry with three versions, a channel, a yank, a deprecation and a referrer."""
    store = Store(tmp_path / "source")
    digest = publish(store, FIRST, [noise(300_000, 1), b"shared"])
    publish(store, SECOND, [noise(300_000, 2), b"shared"])
    publish(store, OTHER, [noise(300_000, 3), b"shared"])
    store.set_channel("acme/search", "prod", digest, None)
    store.yank(parse_reference(SECOND), "wrong")
    store.deprecate(parse_reference(OTHER), "old")
    store.put_referrer("acme/search", add_referrer(store, digest))
    return store


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mirror").mkdir()
    return tmp_path / "mirror"


def entries(root: Path) -> list[RemoteEntry]:
    """What a directory has, without the times."""
    found = DirectoryRemote(root).list()
    return sorted(RemoteEntry(one.reference, one.digest, one.size, "", one.yanked, one.deprecated) for one in found)


def changes(report: MirrorReport) -> dict[str, str]:
    return {row.reference: row.change for row in report.rows if row.change != "referrer"}


class Counting(DirectoryRemote):
    """Remembers from which offsets blobs were asked for."""

    def __init__(self, location: Path) -> None:
        super().__init__(location)
        self.asked: list[tuple[str, int]] = []

    def get_blob(self, repository: str, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        self.asked.append((descriptor.digest, offset))
        return super().get_blob(repository, descriptor, offset)


class Full(DirectoryRemote):
    """A remote that has no room."""

    def put_blob(self, *arguments: object, **more: object) -> int:
        raise DiskFull("no room there")


class Keeping(DirectoryRemote):
    """A remote that removes nothing."""

    def capabilities(self) -> Capabilities:
        return super().capabilities().model_copy(update={"removal": False})


def test_a_mirror_holds_all_that_the_source_has(source: Store, place: Path) -> None:
    report = deltareg.mirror(str(source.root), str(place))
    assert changes(report) == {
        FIRST: "copied",
        SECOND: "copied",
        OTHER: "copied",
        "acme/search:prod": "moved",
    }
    assert (report.ok, report.unchanged, report.warnings) == (True, 0, [])
    assert entries(place) == entries(source.root)
    digest = source.resolve(parse_reference(FIRST))
    mirrored = Store(place)
    assert mirrored.referrers("acme/search", digest) == source.referrers("acme/search", digest) != []
    assert report.count("referrer") == 1
    assert mirrored.fsck().ok
    assert {path.name for path in mirrored.blobs_path.iterdir()} == {path.name for path in source.blobs_path.iterdir()}


def test_the_second_time_nothing_travels_and_later_what_is_new(source: Store, place: Path, tmp_path: Path) -> None:
    mirror(str(source.root), str(place))
    counting = Counting(source.root)
    report = mirror(counting, str(place), staging=tmp_path / "staging")
    assert (report.rows, report.unchanged, report.blobs, report.bytes, counting.asked) == ([], 3, 0, 0, [])
    publish(source, "acme/search:1.2.0", [noise(300_000, 1), b"new"])
    source.unyank(parse_reference(SECOND))
    source.set_channel(
        "acme/search", "prod", source.resolve(parse_reference(SECOND)), source.resolve(parse_reference(FIRST))
    )
    report = mirror(counting, str(place), staging=tmp_path / "staging")
    assert changes(report) == {
        "acme/search:1.2.0": "copied",
        SECOND: "marked",
        "acme/search:prod": "moved",
    }
    assert (report.blobs, report.bytes, report.unchanged) == (1, 3, 2)
    assert entries(place) == entries(source.root)
    assert [path for path in (tmp_path / "staging").rglob("*") if path.is_file() and "lock" not in path.name] == []


def test_a_referrer_that_came_later_follows(source: Store, place: Path) -> None:
    mirror(str(source.root), str(place))
    digest = source.resolve(parse_reference(FIRST))
    source.put_referrer("acme/search", add_referrer(source, digest, b"another scan"))
    report = mirror(str(source.root), str(place))
    assert [row.change for row in report.rows] == ["referrer"]
    assert len(Store(place).referrers("acme/search", digest)) == 2


def test_a_dry_run_tells_all_and_writes_nothing(source: Store, place: Path, tmp_path: Path) -> None:
    told = mirror(str(source.root), str(place), dry_run=True, staging=tmp_path / "staging")
    assert list(place.iterdir()) == []
    assert not (tmp_path / "staging").exists()
    done = mirror(str(source.root), str(place))
    assert (told.blobs, told.bytes) == (done.blobs, done.bytes)
    assert changes(told) == changes(done)


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        (Scope(namespaces=frozenset({"zeta"})), [OTHER]),
        (Scope(repositories=frozenset({"zeta/chat"})), [OTHER]),
        (Scope(namespaces=frozenset({"zeta"}), repositories=frozenset({"acme/none"})), [OTHER]),
        (Scope(repositories=frozenset({"acme/none"})), []),
        (Scope(since=datetime.now(UTC) + timedelta(days=1)), []),
        (Scope(since=datetime.now(UTC) - timedelta(days=1)), [FIRST, SECOND, "acme/search:prod", OTHER]),
    ],
)
def test_a_scope_chooses_names_and_times(source: Store, place: Path, scope: Scope, names: list[str]) -> None:
    report = mirror(str(source.root), str(place), scope=scope)
    assert [str(entry.reference) for entry in DirectoryRemote(place).list()] == names
    assert bool(report.warnings) == (scope.since is not None and not names), "the channel's version was left out"


def test_a_version_with_other_bytes_is_told_and_left_alone(source: Store, place: Path) -> None:
    mine = publish(Store(place), FIRST, [b"mine"])
    report = mirror(str(source.root), str(place))
    assert changes(report) == {FIRST: "refused", SECOND: "copied", OTHER: "copied"}
    assert not report.ok
    (row,) = [row for row in report.rows if row.change == "refused"]
    assert row.problem is not None and mine in row.problem
    assert DirectoryRemote(place).resolve(parse_reference(FIRST)) == mine
    assert "acme/search:prod stays as it is" in report.warnings[0]
    # Removed there, it is not free for other bytes either.
    Store(place).remove(parse_reference(FIRST))
    report = mirror(str(source.root), str(place))
    assert changes(report) == {FIRST: "refused"}


def test_a_damaged_version_hinders_no_other(source: Store, place: Path) -> None:
    manifest = source.manifest(source.resolve(parse_reference(SECOND)))
    flip(source.path(Digest(manifest.layers[1].digest)))
    source.path(source.resolve(parse_reference(OTHER))).write_bytes(b"{}")
    report = mirror(str(source.root), str(place))
    assert changes(report) == {
        FIRST: "copied",
        SECOND: "failed",
        OTHER: "failed",
        "acme/search:prod": "moved",
    }
    assert [str(entry.reference) for entry in DirectoryRemote(place).list()] == [FIRST, "acme/search:prod"]
    assert Store(place).fsck().ok


def test_what_is_gone_goes_with_delete_alone(source: Store, place: Path) -> None:
    mirror(str(source.root), str(place))
    source.remove_channel("acme/search", "prod")
    source.remove(parse_reference(FIRST))
    assert mirror(str(source.root), str(place)).rows == []
    told = mirror(str(source.root), str(place), delete=True, dry_run=True)
    assert changes(told) == {FIRST: "removed", "acme/search:prod": "removed"}
    assert len(DirectoryRemote(place).list()) == 4
    report = mirror(str(source.root), str(place), delete=True, scope=Scope(namespaces=frozenset({"zeta"})))
    assert report.rows == []
    assert changes(mirror(str(source.root), str(place), delete=True)) == changes(told)
    assert entries(place) == entries(source.root)


def test_version_that_a_channel_still_names_stays_and_is_told(source: Store, place: Path) -> None:
    mirror(str(source.root), str(place))
    digest = publish(source, "acme/search:2.0.0", [noise(1000, 4)])
    source.set_channel("acme/search", "prod", digest, source.resolve(parse_reference(FIRST)))
    source.remove(parse_reference(FIRST))
    source.remove(parse_reference(OTHER))
    flip(source.path(digest))
    report = mirror(str(source.root), str(place), delete=True)
    assert changes(report) == {"acme/search:2.0.0": "failed", FIRST: "failed", OTHER: "removed"}
    assert any("acme/search:prod points to it" in (row.problem or "") for row in report.rows)
    assert Store(place).fsck().ok


@pytest.mark.parametrize("name", ["lock/search:1.0.0", "tmp/blobs:1.0.0"])
def test_a_namespace_may_be_called_as_a_file_of_the_staging(tmp_path: Path, place: Path, name: str) -> None:
    store = Store(tmp_path / "odd")
    publish(store, name)
    assert changes(mirror(str(store.root), str(place), staging=tmp_path / "staging")) == {name: "copied"}


def test_an_empty_source_empties_no_mirror(source: Store, place: Path, tmp_path: Path) -> None:
    mirror(str(source.root), str(place))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgument, match="all 3 of"):
        mirror(str(tmp_path / "empty"), str(place), delete=True)
    source.remove(parse_reference(OTHER))
    with pytest.raises(InvalidArgument, match="removes no versions"):
        mirror(str(source.root), Keeping(place), delete=True)
    assert len(DirectoryRemote(place).list()) == 4


def test_a_blob_that_was_cut_off_is_continued(source: Store, place: Path, tmp_path: Path) -> None:
    publish(source, "acme/large:1.0.0", [noise(6_000_000)])
    scope = Scope(repositories=frozenset({"acme/large"}))
    with pytest.raises(Interrupted):
        mirror(
            str(source.root), str(place), scope=scope, staging=tmp_path / "s", threads=1, progress=Counted(3_000_000)
        )
    assert DirectoryRemote(place).list() == []
    counting = Counting(source.root)
    assert mirror(counting, str(place), scope=scope, staging=tmp_path / "s").ok
    assert any(offset >= 2_000_000 for _, offset in counting.asked)
    assert Store(place).fsck().ok


KILLED = """
import sys, time
from pathlib import Path
from deltareg.mirroring import mirror
from deltareg.progress import Progress

class Slow(Progress):
    def advance(self, count):
        print(count, flush=True)
        time.sleep(0.05)

mirror(sys.argv[1], sys.argv[2], staging=Path(sys.argv[3]), threads=2, progress=Slow())
"""


def test_a_mirroring_that_was_killed_leaves_a_sound_mirror_and_goes_on(
    source: Store, place: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(source.root), str(place), str(tmp_path / "staging")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for _ in range(4):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
    report = mirror(str(source.root), str(place), staging=tmp_path / "staging")
    assert report.ok
    assert entries(place) == entries(source.root)
    assert Store(place).fsck().ok


def test_two_do_not_share_a_staging_directory(source: Store, place: Path, tmp_path: Path) -> None:
    with Staging(tmp_path / "staging").held(), pytest.raises(Busy):
        mirror(str(source.root), str(place), staging=tmp_path / "staging")


def test_a_remote_without_room_or_that_is_gone_ends_it(source: Store, place: Path, tmp_path: Path) -> None:
    with pytest.raises(DiskFull):
        mirror(str(source.root), Full(place))
    assert DirectoryRemote(place).list() == []
    with pytest.raises(RemoteUnavailable):
        mirror(str(source.root), str(tmp_path / "absent"))
    with pytest.raises(InvalidArgument):
        mirror(str(source.root), str(place), threads=0)


def test_full_and_read_only_disks_are_told(source: Store, place: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 400) as small:
        with pytest.raises(DiskFull):
            mirror(str(source.root), str(small), threads=1)
        assert Store(small).fsck().ok
        with pytest.raises(DiskFull):
            mirror(str(source.root), str(place), staging=small / "staging", threads=4)
    mirror(str(source.root), str(place), scope=Scope(repositories=frozenset({"zeta/chat"})))
    with read_only(place), pytest.raises(NotAllowed):
        mirror(str(source.root), str(place))
    assert mirror(str(source.root), str(place)).ok


def test_many_versions_are_named_group_by_group(tmp_path: Path, place: Path) -> None:
    store = Store(tmp_path / "many")
    for number in range(120):
        store.publish(parse_reference(f"acme/search:1.0.{number}"), add_delta(store, [b"shared"]))
    begun = time.monotonic()
    report = mirror(str(store.root), str(place))
    assert report.count("copied") == 120
    assert report.blobs == 3
    assert time.monotonic() - begun < 60
