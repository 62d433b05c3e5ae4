"""The directory remote: a registry at a path."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deltareg.catalog import Registry
from deltareg.digest import Digest, sha256
from deltareg.errors import (
    DeltaregError,
    DiskFull,
    InvalidArgument,
    NotAllowed,
    NotFound,
    RemoteUnavailable,
    UnsupportedFormat,
    UsageError,
    VersionExists,
)
from deltareg.names import parse_reference
from deltareg.progress import Progress
from deltareg.remote import DirectoryRemote, Remote
from deltareg.store import Store
from tests.contracts.remote_contract import REPOSITORY, Counted, Interrupted, RemoteContract, publish, send, stored
from tests.deltas import add_referrer, blob_files, descriptor, noise
from tests.disks import read_only, small_disk


class TestDirectoryRemote(RemoteContract):
    @pytest.fixture
    def remote(self, tmp_path: Path) -> Iterator[Remote]:
        (tmp_path / "shared disk").mkdir()
        yield DirectoryRemote(tmp_path / "shared disk")

    def another(self, remote: Remote) -> Remote:
        return DirectoryRemote(remote.url)


@pytest.fixture
def remote(tmp_path: Path) -> DirectoryRemote:
    (tmp_path / "shared").mkdir()
    return DirectoryRemote(tmp_path / "shared")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(tmp_path / "local")


def calls(remote: DirectoryRemote, local: Store) -> list[tuple[str, object]]:
    """One call of each method."""
    blob = stored(local, b"bytes")
    reference = parse_reference("acme/search:1.0.0")
    return [
        ("capabilities", remote.capabilities),
        ("missing", lambda: remote.missing(REPOSITORY, [sha256(b"x")])),
        ("put_blob", lambda: send(remote, local, blob)),
        ("get_blob", lambda: list(remote.get_blob(REPOSITORY, blob, 0))),
        ("put_manifest", lambda: remote.put_manifest(reference, b"{}")),
        ("get_manifest", lambda: remote.get_manifest(REPOSITORY, sha256(b"x"))),
        ("put_referrer", lambda: remote.put_referrer(REPOSITORY, add_referrer(local, local.put(b"x")))),
        ("referrers", lambda: remote.referrers(REPOSITORY, sha256(b"x"))),
        ("resolve", lambda: remote.resolve(reference)),
        ("list", remote.list),
        ("yank", lambda: remote.yank(reference, "wrong")),
        ("unyank", lambda: remote.unyank(reference)),
        ("deprecate", lambda: remote.deprecate(reference, "old")),
        ("undeprecate", lambda: remote.undeprecate(reference)),
        ("set_channel", lambda: remote.set_channel("acme/search", "prod", sha256(b"x"), None)),
        ("remove_channel", lambda: remote.remove_channel("acme/search", "prod")),
    ]


def test_absent_directory_is_unavailable_and_not_made(tmp_path: Path, local: Store) -> None:
    for name, call in calls(DirectoryRemote(tmp_path / "unmounted"), local):
        with pytest.raises(RemoteUnavailable, match="is not there") as caught:
            call()  # type: ignore[operator]
        assert caught.value.exit_code == 6, name
    assert not (tmp_path / "unmounted").exists()


def test_directory_that_goes_away_is_unavailable(remote: DirectoryRemote, local: Store) -> None:
    publish(remote, local, "acme/search:1.0.0")
    remote.path.rename(remote.path.with_name("elsewhere"))
    for _, call in calls(remote, local):
        with pytest.raises(RemoteUnavailable):
            call()  # type: ignore[operator]


def test_disk_that_fails_is_unavailable(remote: DirectoryRemote, local: Store) -> None:
    publish(remote, local, "acme/search:1.0.0")
    (remote.path / "index.json").unlink()
    (remote.path / "index.json").mkdir()
    with pytest.raises(RemoteUnavailable, match=r"index\.json"):
        remote.list()


def test_directory_of_something_else_is_refused_and_left_alone(remote: DirectoryRemote, local: Store) -> None:
    (remote.path / "photos").mkdir()
    for name, call in calls(remote, local):
        if name != "capabilities":
            with pytest.raises((RemoteUnavailable, UsageError)):
                call()  # type: ignore[operator]
    assert [path.name for path in remote.path.iterdir()] == ["photos"]


def test_asking_an_empty_directory_writes_nothing(remote: DirectoryRemote, local: Store) -> None:
    remote.capabilities()
    assert remote.list() == []
    assert remote.missing(REPOSITORY, [sha256(b"x")]) == {sha256(b"x")}
    with pytest.raises(NotFound):
        remote.resolve(parse_reference("acme/search"))
    assert list(remote.path.iterdir()) == []
    send(remote, local, stored(local, b"bytes"))
    assert (remote.path / "oci-layout").exists()


def test_remote_is_a_store_without_a_database(remote: DirectoryRemote, local: Store) -> None:
    digest, _ = publish(remote, local, "acme/search:1.0.0")
    store = Store(remote.path, create=False)
    assert store.resolve(parse_reference("acme/search")) == digest
    assert store.fsck().ok
    assert sorted(path.name for path in remote.path.iterdir()) == ["blobs", "index.json", "lock", "oci-layout", "tmp"]


def test_channels_of_the_store_are_resolved(remote: DirectoryRemote, local: Store) -> None:
    digest, _ = publish(remote, local, "acme/search:1.0.0")
    Store(remote.path).set_channel("acme/search", "prod", digest, None)
    assert remote.resolve(parse_reference("acme/search:prod")) == digest


def test_version_that_was_removed_there_is_not_free(remote: DirectoryRemote, local: Store) -> None:
    publish(remote, local, "acme/search:1.0.0")
    Store(remote.path).remove(parse_reference("acme/search:1.0.0"))
    with pytest.raises(VersionExists, match="was removed"):
        publish(remote, local, "acme/search:1.0.0", [b"other"])


def test_remote_of_another_layout_version_is_refused(remote: DirectoryRemote) -> None:
    (remote.path / "oci-layout").write_text('{"imageLayoutVersion": "9.0.0"}')
    with pytest.raises(UnsupportedFormat):
        remote.list()


def test_read_only_remote_is_read_and_not_written(remote: DirectoryRemote, local: Store) -> None:
    digest, manifest = publish(remote, local, "acme/search:1.0.0")
    with read_only(remote.path):
        reader = DirectoryRemote(remote.path)
        assert not reader.capabilities().writable
        assert reader.resolve(parse_reference("acme/search")) == digest
        assert reader.get_manifest(REPOSITORY, digest) == manifest
        assert reader.missing(REPOSITORY, [digest, sha256(b"x")]) == {sha256(b"x")}
        with pytest.raises(NotAllowed) as caught:
            send(reader, local, stored(local, b"new"))
        assert caught.value.exit_code == 4
        with pytest.raises(NotAllowed):
            publish(reader, local, "acme/search:2.0.0")
        with pytest.raises(NotAllowed):
            reader.yank(parse_reference("acme/search:1.0.0"), "wrong")
        with pytest.raises(NotAllowed):
            reader.set_channel("acme/search", "prod", digest, None)


def test_read_only_empty_directory_is_not_allowed(remote: DirectoryRemote, local: Store) -> None:
    with read_only(remote.path):
        assert remote.list() == []
        with pytest.raises(NotAllowed):
            send(remote, local, stored(local, b"new"))


def test_full_remote_is_told_and_keeps_nothing_of_the_blob(tmp_path: Path, local: Store) -> None:
    with small_disk(tmp_path / "disk", 512) as disk:
        remote = DirectoryRemote(disk)
        blob = stored(local, noise(1 << 20))
        with pytest.raises(DiskFull, match="No space left"):
            send(remote, local, blob)
        assert remote.missing(REPOSITORY, [Digest(blob.digest)]) == {blob.digest}
        assert blob_files(disk) == []
        assert list((disk / "tmp").iterdir()) == []
        publish(remote, local, "acme/search:1.0.0")


def test_local_file_that_cannot_be_read_is_not_the_remotes_fault(remote: DirectoryRemote, local: Store) -> None:
    blob = stored(local, b"bytes")
    with pytest.raises(DeltaregError) as caught:
        remote.put_blob(REPOSITORY, blob, local.root, Progress())
    assert type(caught.value) is DeltaregError


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "file://localhost{path}"])
def test_path_and_url_name_the_same_directory(tmp_path: Path, form: str) -> None:
    remote = DirectoryRemote(form.format(path=tmp_path))
    assert remote.path == tmp_path
    assert remote.url == tmp_path.as_uri()


def test_relative_path_is_taken_from_where_the_user_is(tmp_path: Path) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert DirectoryRemote("shared").path == tmp_path / "shared"
    finally:
        os.chdir(before)


@pytest.mark.parametrize("location", ["", "file://server/share", "file:relative", "a\0b", "file:///a%00b"])
def test_what_names_no_directory_is_a_usage_error(location: str) -> None:
    with pytest.raises(UsageError):
        DirectoryRemote(location)


@pytest.fixture
def open_disk() -> Iterator[Path]:
    """A directory that every user of the machine may enter and write."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user takes root")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def as_nobody(call: Callable[[], object]) -> str:
    """Do something as the user nobody, in a forked process; return the name of the error, or nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            call()
        except BaseException as error:
            os.write(writing, type(error).__name__.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, encoding="utf-8") as file:
        return file.read()


def test_remote_that_others_own_is_read_and_not_written(open_disk: Path, local: Store) -> None:
    remote = DirectoryRemote(open_disk / "shared")
    remote.path.mkdir(mode=0o755)
    digest, _ = publish(remote, local, "acme/search:1.0.0")
    source = open_disk / "source"
    source.write_bytes(b"new")
    assert as_nobody(lambda: DirectoryRemote(remote.path).get_manifest(REPOSITORY, digest)) == ""
    assert as_nobody(lambda: DirectoryRemote(remote.path).missing(REPOSITORY, [digest])) == ""
    sent = as_nobody(lambda: DirectoryRemote(remote.path).put_blob(REPOSITORY, descriptor(b"new"), source, Progress()))
    assert sent == "NotAllowed"


def test_part_that_another_user_left_is_not_in_the_way(open_disk: Path, local: Store) -> None:
    remote = DirectoryRemote(open_disk / "shared")
    remote.path.mkdir()
    publish(remote, local, "acme/search:1.0.0")
    data = noise(2_000_000)
    with pytest.raises(Interrupted):
        send(remote, local, stored(local, data), Counted(1_000_000))
    for path in [remote.path, *remote.path.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    (part,) = remote.path.glob("tmp/*.part")
    part.chmod(0o600)
    source = open_disk / "source"
    source.write_bytes(data)
    assert (
        as_nobody(lambda: DirectoryRemote(remote.path).put_blob(REPOSITORY, descriptor(data), source, Progress())) == ""
    )
    assert Store(remote.path).read(sha256(data)) == data


def test_home_that_is_taken_for_a_remote_leads_to_its_registry(tmp_path: Path) -> None:
    Registry(tmp_path / "home").list()
    with pytest.raises(RemoteUnavailable, match="no registry") as raised:
        DirectoryRemote(tmp_path / "home").list()
    assert "DELTAREG_HOME" in (raised.value.hint or "")
    assert str(tmp_path / "home" / "registry") in (raised.value.hint or "")
    assert DirectoryRemote(tmp_path / "home" / "registry").list() == []


def test_directory_in_the_home_of_nobody_is_a_wrong_argument() -> None:
    with pytest.raises(InvalidArgument, match="nobody's home"):
        DirectoryRemote("~nosuch-user/shared")


def test_empty_directory_is_vacant_until_the_first_push(tmp_path: Path) -> None:
    remote = DirectoryRemote(tmp_path)
    assert remote.capabilities().vacant
    Store(tmp_path)
    assert not remote.capabilities().vacant
