"""What every remote must do. A test class of a remote inherits from this and says how to make one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deltareg.digest import Digest, sha256
from deltareg.errors import (
    BadManifest,
    BadName,
    ChannelMoved,
    DeltaregError,
    DigestMismatch,
    InvalidArgument,
    NotAllowed,
    NotFound,
    VersionExists,
)
from deltareg.manifest import MANIFEST_TYPE, Descriptor, Manifest, ReferrerManifest, encode, parse
from deltareg.names import parse_reference
from deltareg.progress import Progress
from deltareg.remote import PROTOCOL_VERSION, Remote, is_removing
from deltareg.store import Store
from tests.deltas import SCAN, add_delta, add_referrer, descriptor, flip, noise, pack_of

__all__ = ["REPOSITORY", "Counted", "Interrupted", "RemoteContract"]


REPOSITORY = "acme/search"


class Interrupted(Exception):
    """The user pressed a key."""


class Counted(Progress):
    """Counts the bytes; interrupts once more than `limit` were sent."""

    def __init__(self, limit: int | None = None) -> None:
        self.total = 0
        self._limit = limit

    def advance(self, count: int) -> None:
        self.total += count
        if self._limit is not None and self.total > self._limit:
            raise Interrupted


class RemoteContract:
    """Subclasses define the fixture `remote`: an empty one that may be written."""

    @pytest.fixture
    def remote(self, tmp_path: Path) -> Iterator[Remote]:
        raise NotImplementedError

    def another(self, remote: Remote) -> Remote:
        """A second client of the same remote."""
        raise NotImplementedError

    def shown(self, remote: Remote, local: Store, blob: Descriptor) -> None:
        """Let a blob that was sent be read, where a remote has it seen only once a version names it."""

    @pytest.fixture
    def local(self, tmp_path: Path) -> Store:
        return Store(tmp_path / "local")

    # --- an empty one ---

    def test_new_remote_is_empty(self, remote: Remote) -> None:
        assert remote.list() == []
        assert remote.list("acme/search") == []
        assert remote.missing(REPOSITORY, [sha256(b"x"), sha256(b"y")]) == {sha256(b"x"), sha256(b"y")}
        assert remote.missing(REPOSITORY, []) == set()
        for name in ("acme/search:1.0.0", "acme/search", "acme/search:prod", f"acme/search@{sha256(b'x')}"):
            with pytest.raises(NotFound):
                remote.resolve(parse_reference(name))

    def test_capabilities_name_the_protocol(self, remote: Remote) -> None:
        capabilities = remote.capabilities()
        assert capabilities.protocol_version == PROTOCOL_VERSION
        assert capabilities.writable

    def test_url_says_where_it_is(self, remote: Remote) -> None:
        assert "://" in remote.url
        assert self.another(remote).url == remote.url

    # --- blobs ---

    @pytest.mark.parametrize("size", [0, 1, 5_000_000])
    def test_blob_arrives_as_it_was_sent(self, remote: Remote, local: Store, size: int) -> None:
        blob = stored(local, noise(size))
        counted = Counted()
        assert send(remote, local, blob, counted) == size
        assert counted.total == size
        assert remote.missing(REPOSITORY, [Digest(blob.digest), sha256(b"other")]) == {sha256(b"other")}
        self.shown(remote, local, blob)
        assert received(self.another(remote), blob) == noise(size)

    def test_blob_is_read_from_any_offset(self, remote: Remote, local: Store) -> None:
        data = noise(3_000_000)
        blob = stored(local, data)
        send(remote, local, blob)
        self.shown(remote, local, blob)
        for offset in (0, 1, 1 << 20, len(data) - 1, len(data)):
            assert received(remote, blob, offset) == data[offset:]

    def test_sending_a_blob_again_is_no_error(self, remote: Remote, local: Store) -> None:
        blob = stored(local, b"bytes")
        send(remote, local, blob)
        send(remote, local, blob)
        self.shown(remote, local, blob)
        assert received(remote, blob) == b"bytes"

    def test_one_blob_from_several_threads_is_no_error(self, remote: Remote, local: Store) -> None:
        data = noise(2_000_000)
        blob = stored(local, data)
        clients = [remote, remote, self.another(remote), self.another(remote)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda client: send(client, local, blob), clients))
        self.shown(remote, local, blob)
        assert received(remote, blob) == data

    @pytest.mark.parametrize("damage", ["flipped", "shorter", "longer"])
    def test_damaged_source_is_refused_and_stays_missing(self, remote: Remote, local: Store, damage: str) -> None:
        data = noise(1_500_000)
        blob = stored(local, data)
        path = local.path(Digest(blob.digest))
        if damage == "flipped":
            flip(path, 8 * 1_400_000)
        else:
            path.write_bytes(data[:-1] if damage == "shorter" else data + b"\0")
        with pytest.raises(DigestMismatch) as caught:
            send(remote, local, blob)
        assert caught.value.exit_code == 5
        assert remote.missing(REPOSITORY, [Digest(blob.digest)]) == {blob.digest}
        path.write_bytes(data)
        send(remote, local, blob)
        self.shown(remote, local, blob)
        assert received(remote, blob) == data

    def test_interrupted_blob_stays_missing_and_is_sent_on(self, remote: Remote, local: Store) -> None:
        data = noise(6_000_000)
        blob = stored(local, data)
        with pytest.raises(Interrupted):
            send(remote, local, blob, Counted(3_000_000))
        assert remote.missing(REPOSITORY, [Digest(blob.digest)]) == {blob.digest}
        counted = Counted()
        sent = send(self.another(remote), local, blob, counted)
        assert counted.total == len(data)
        if remote.capabilities().resumable:
            assert sent < 4_000_000
        self.shown(remote, local, blob)
        assert received(remote, blob) == data

    def test_absent_blob_is_not_found(self, remote: Remote, local: Store) -> None:
        with pytest.raises(NotFound):
            received(remote, descriptor(b"absent"))
        publish(remote, local, "acme/search:1.0.0")
        with pytest.raises(NotFound):
            received(remote, descriptor(b"absent"))

    @pytest.mark.parametrize("text", ["sha256:../../../../etc/passwd", "sha256:" + "F" * 64, ""])
    def test_what_is_no_digest_is_refused(self, remote: Remote, local: Store, text: str) -> None:
        publish(remote, local, "acme/search:1.0.0")
        hostile = descriptor(b"").model_copy(update={"digest": text})
        for ask in (
            lambda: remote.missing(REPOSITORY, [Digest(text)]),
            lambda: remote.get_manifest(REPOSITORY, Digest(text)),
            lambda: received(remote, hostile),
            lambda: remote.put_blob(REPOSITORY, hostile, local.path(local.put(b"")), Progress()),
        ):
            with pytest.raises(BadName):
                ask()

    # --- names ---

    def test_published_artifact_is_found_by_every_name(self, remote: Remote, local: Store) -> None:
        digest, manifest = publish(remote, local, "acme/search:1.0.0")
        client = self.another(remote)
        for name in ("acme/search:1.0.0", "acme/search", "acme/search:latest", f"acme/search@{digest}"):
            assert client.resolve(parse_reference(name)) == digest
        assert client.get_manifest(REPOSITORY, digest) == manifest
        (entry,) = client.list()
        assert (str(entry.reference), entry.digest, entry.size) == ("acme/search:1.0.0", digest, len(manifest))

    def test_list_takes_one_repository_or_all(self, remote: Remote, local: Store) -> None:
        for name in ("acme/search:1.0.0", "acme/search:1.1.0", "acme/searching:1.0.0", "zeta/search:1.0.0"):
            publish(remote, local, name)
        assert [str(entry.reference) for entry in remote.list("acme/search")] == [
            "acme/search:1.0.0",
            "acme/search:1.1.0",
        ]
        assert len(remote.list()) == 4

    def test_absent_manifest_is_not_found(self, remote: Remote, local: Store) -> None:
        publish(remote, local, "acme/search:1.0.0")
        with pytest.raises(NotFound):
            remote.get_manifest(REPOSITORY, sha256(b"absent"))
        with pytest.raises(NotFound):
            remote.resolve(parse_reference("acme/search:1.0.1"))

    def test_same_bytes_again_are_no_error(self, remote: Remote, local: Store) -> None:
        assert publish(remote, local, "acme/search:1.0.0") == publish(remote, local, "acme/search:1.0.0")
        assert len(remote.list()) == 1

    def test_other_bytes_under_a_version_are_refused(self, remote: Remote, local: Store) -> None:
        digest, _ = publish(remote, local, "acme/search:1.0.0")
        with pytest.raises(VersionExists):
            publish(self.another(remote), local, "acme/search:1.0.0", [b"other"])
        assert remote.resolve(parse_reference("acme/search:1.0.0")) == digest

    def test_versions_are_not_replaced_on_request_either(self, remote: Remote, local: Store) -> None:
        digest, _ = publish(remote, local, "acme/search:1.0.0")
        other = add_delta(local, [pack_of(b"other")])
        for blob in parse(Manifest, other, what="test").blobs:
            send(remote, local, blob)
        with pytest.raises(NotAllowed):
            remote.put_manifest(parse_reference("acme/search:1.0.0"), other, if_absent=False)
        assert remote.resolve(parse_reference("acme/search:1.0.0")) == digest

    def test_of_two_writers_of_one_version_exactly_one_wins(self, remote: Remote, local: Store) -> None:
        if not remote.capabilities().conditional_put:
            pytest.skip("the remote has no conditional put")

        def attempt(number: int) -> Digest | None:
            try:
                return publish(self.another(remote), local, "acme/search:1.0.0", [str(number).encode()])[0]
            except VersionExists:
                return None

        with ThreadPoolExecutor(4) as pool:
            results = [result for result in pool.map(attempt, range(4)) if result is not None]
        assert results == [remote.resolve(parse_reference("acme/search:1.0.0"))]

    def test_manifest_whose_blobs_are_missing_is_not_named(self, remote: Remote, local: Store) -> None:
        manifest = add_delta(local, [pack_of(b"never sent")])
        publish(remote, local, "acme/other:1.0.0")
        with pytest.raises(NotFound):
            remote.put_manifest(parse_reference("acme/search:1.0.0"), manifest)
        assert remote.list("acme/search") == []

    def test_manifest_that_breaks_a_rule_is_not_named(self, remote: Remote, local: Store) -> None:
        manifest = add_delta(local, [pack_of(b"a pack")])
        for blob in parse(Manifest, manifest, what="test").blobs:
            send(remote, local, blob)
        good = parse(Manifest, manifest, what="test")
        larger = good.layers[-1].model_copy(update={"size": 7})
        for hostile in (
            b"{",
            b"[]",
            manifest.replace(b"sha256:", b"sha256:../"),
            encode(good.model_copy(update={"layers": [*good.layers, larger]})),
        ):
            with pytest.raises(BadManifest):
                remote.put_manifest(parse_reference("acme/search:1.0.0"), hostile)
        with pytest.raises(DigestMismatch):
            remote.put_manifest(
                parse_reference("acme/search:1.0.0"), encode(good.model_copy(update={"layers": [larger]}))
            )
        assert remote.list() == []

    @pytest.mark.parametrize("name", ["acme/search", "acme/search:prod", "acme/search:latest"])
    def test_only_versions_are_published(self, remote: Remote, local: Store, name: str) -> None:
        with pytest.raises(BadName):
            publish(remote, local, name)

    # --- yanking ---

    def test_yanked_version_is_listed_as_such_and_skipped_by_latest(self, remote: Remote, local: Store) -> None:
        first, _ = publish(remote, local, "acme/search:1.0.0")
        second, manifest = publish(remote, local, "acme/search:1.1.0", [b"other"])
        remote.yank(parse_reference("acme/search:1.1.0"), "its tokenizer is wrong: take 1.0.0 – or none")
        client = self.another(remote)
        assert [entry.yanked for entry in client.list("acme/search")] == [
            None,
            "its tokenizer is wrong: take 1.0.0 – or none",
        ]
        assert client.resolve(parse_reference("acme/search")) == first
        for name in ("acme/search:1.1.0", f"acme/search@{second}"):
            assert client.resolve(parse_reference(name)) == second
        assert client.get_manifest(REPOSITORY, second) == manifest
        assert (
            client.missing(REPOSITORY, [Digest(blob.digest) for blob in parse(Manifest, manifest, what="test").blobs])
            == set()
        )
        client.unyank(parse_reference("acme/search:1.1.0"))
        assert [entry.yanked for entry in remote.list("acme/search")] == [None, None]
        assert remote.resolve(parse_reference("acme/search")) == second

    def test_where_all_are_yanked_latest_is_the_highest(self, remote: Remote, local: Store) -> None:
        for version in ("1.0.0", "1.1.0"):
            digest, _ = publish(remote, local, f"acme/search:{version}", [version.encode()])
            remote.yank(parse_reference(f"acme/search:{version}"), "wrong")
        assert remote.resolve(parse_reference("acme/search:latest")) == digest

    def test_publishing_a_yanked_version_again_does_not_unyank_it(self, remote: Remote, local: Store) -> None:
        publish(remote, local, "acme/search:1.0.0")
        remote.yank(parse_reference("acme/search:1.0.0"), "wrong")
        publish(self.another(remote), local, "acme/search:1.0.0")
        assert [entry.yanked for entry in remote.list()] == ["wrong"]

    def test_another_reason_takes_the_place_of_the_first(self, remote: Remote, local: Store) -> None:
        publish(remote, local, "acme/search:1.0.0")
        for reason in ("first", "first", "second"):
            remote.yank(parse_reference("acme/search:1.0.0"), reason)
        assert [entry.yanked for entry in remote.list()] == ["second"]
        remote.unyank(parse_reference("acme/search:1.0.0"))
        remote.unyank(parse_reference("acme/search:1.0.0"))
        assert [entry.yanked for entry in remote.list()] == [None]

    @pytest.mark.parametrize("reason", ["", " ", "two\nlines", "\x1b[31m", "x" * 1001])
    def test_what_is_no_reason_is_refused(self, remote: Remote, local: Store, reason: str) -> None:
        publish(remote, local, "acme/search:1.0.0")
        with pytest.raises(InvalidArgument):
            remote.yank(parse_reference("acme/search:1.0.0"), reason)
        assert [entry.yanked for entry in remote.list()] == [None]

    def test_only_versions_that_are_there_are_yanked(self, remote: Remote, local: Store) -> None:
        with pytest.raises(NotFound):
            remote.yank(parse_reference("acme/search:1.0.0"), "wrong")
        digest, _ = publish(remote, local, "acme/search:1.0.0")
        remote.set_channel("acme/search", "prod", digest, None)
        for name in ("acme/search:1.0.1", "acme/other:1.0.0"):
            with pytest.raises(NotFound):
                remote.yank(parse_reference(name), "wrong")
            with pytest.raises(NotFound):
                remote.unyank(parse_reference(name))
        for name in ("acme/search", "acme/search:prod", f"acme/search@{digest}"):
            with pytest.raises(BadName):
                remote.yank(parse_reference(name), "wrong")
            with pytest.raises(BadName):
                remote.unyank(parse_reference(name))
        assert {entry.yanked for entry in remote.list()} == {None}

    def test_of_several_that_yank_at_once_none_is_lost(self, remote: Remote, local: Store) -> None:
        names = [f"acme/search:1.0.{number}" for number in range(6)]
        for name in names:
            publish(remote, local, name)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda name: self.another(remote).yank(parse_reference(name), name), names))
        assert [entry.yanked for entry in remote.list()] == names

    # --- removing ---

    def test_removed_version_is_gone_and_never_free_for_other_bytes(self, remote: Remote, local: Store) -> None:
        if not is_removing(remote):
            pytest.skip("the remote removes no versions")
        digest, _ = publish(remote, local, "acme/search:1.0.0")
        remote.set_channel("acme/search", "prod", digest, None)
        with pytest.raises(NotAllowed):
            remote.remove(parse_reference("acme/search:1.0.0"))
        for name in ("acme/search", "acme/search:prod", f"acme/search@{digest}"):
            with pytest.raises(BadName):
                remote.remove(parse_reference(name))
        remote.remove_channel("acme/search", "prod")
        remote.remove(parse_reference("acme/search:1.0.0"))
        assert self.another(remote).list() == []
        with pytest.raises(NotFound):
            remote.remove(parse_reference("acme/search:1.0.0"))
        with pytest.raises(VersionExists):
            publish(remote, local, "acme/search:1.0.0", [b"other"])
        assert publish(remote, local, "acme/search:1.0.0")[0] == digest

    # --- deprecating ---

    def test_deprecated_version_is_listed_as_such_and_resolves_as_before(self, remote: Remote, local: Store) -> None:
        publish(remote, local, "acme/search:1.0.0")
        second, manifest = publish(remote, local, "acme/search:1.1.0", [b"other"])
        remote.set_channel("acme/search", "prod", second, None)
        remote.deprecate(parse_reference("acme/search:1.1.0"), "slow: take acme/find – or none")
        client = self.another(remote)
        found = {str(entry.reference): entry.deprecated for entry in client.list("acme/search")}
        assert found == {
            "acme/search:1.0.0": None,
            "acme/search:1.1.0": "slow: take acme/find – or none",
            "acme/search:prod": None,
        }
        for name in ("acme/search", "acme/search:latest", "acme/search:prod", "acme/search:1.1.0"):
            assert client.resolve(parse_reference(name)) == second
        assert client.get_manifest(REPOSITORY, second) == manifest
        client.undeprecate(parse_reference("acme/search:1.1.0"))
        assert {entry.deprecated for entry in remote.list()} == {None}

    def test_a_version_may_be_yanked_and_deprecated(self, remote: Remote, local: Store) -> None:
        publish(remote, local, "acme/search:1.0.0")
        remote.yank(parse_reference("acme/search:1.0.0"), "wrong")
        remote.deprecate(parse_reference("acme/search:1.0.0"), "old")
        assert [(entry.yanked, entry.deprecated) for entry in remote.list()] == [("wrong", "old")]
        remote.unyank(parse_reference("acme/search:1.0.0"))
        assert [(entry.yanked, entry.deprecated) for entry in remote.list()] == [(None, "old")]
        remote.yank(parse_reference("acme/search:1.0.0"), "wrong")
        remote.undeprecate(parse_reference("acme/search:1.0.0"))
        assert [(entry.yanked, entry.deprecated) for entry in remote.list()] == [("wrong", None)]

    def test_publishing_a_deprecated_version_again_changes_nothing(self, remote: Remote, local: Store) -> None:
        publish(remote, local, "acme/search:1.0.0")
        remote.deprecate(parse_reference("acme/search:1.0.0"), "old")
        publish(self.another(remote), local, "acme/search:1.0.0")
        assert [entry.deprecated for entry in remote.list()] == ["old"]

    def test_another_reason_to_deprecate_takes_the_place_of_the_first(self, remote: Remote, local: Store) -> None:
        publish(remote, local, "acme/search:1.0.0")
        for reason in ("first", "first", "second"):
            remote.deprecate(parse_reference("acme/search:1.0.0"), reason)
        assert [entry.deprecated for entry in remote.list()] == ["second"]
        remote.undeprecate(parse_reference("acme/search:1.0.0"))
        remote.undeprecate(parse_reference("acme/search:1.0.0"))
        assert [entry.deprecated for entry in remote.list()] == [None]

    @pytest.mark.parametrize("reason", ["", " ", "two\nlines", "\x1b[31m", "x" * 1001])
    def test_what_is_no_reason_deprecates_nothing(self, remote: Remote, local: Store, reason: str) -> None:
        publish(remote, local, "acme/search:1.0.0")
        with pytest.raises(InvalidArgument):
            remote.deprecate(parse_reference("acme/search:1.0.0"), reason)
        assert [entry.deprecated for entry in remote.list()] == [None]

    def test_only_versions_that_are_there_are_deprecated(self, remote: Remote, local: Store) -> None:
        with pytest.raises(NotFound):
            remote.deprecate(parse_reference("acme/search:1.0.0"), "old")
        digest, _ = publish(remote, local, "acme/search:1.0.0")
        remote.set_channel("acme/search", "prod", digest, None)
        for name in ("acme/search:1.0.1", "acme/other:1.0.0"):
            with pytest.raises(NotFound):
                remote.deprecate(parse_reference(name), "old")
            with pytest.raises(NotFound):
                remote.undeprecate(parse_reference(name))
        for name in ("acme/search", "acme/search:prod", f"acme/search@{digest}"):
            with pytest.raises(BadName):
                remote.deprecate(parse_reference(name), "old")
            with pytest.raises(BadName):
                remote.undeprecate(parse_reference(name))
        assert {entry.deprecated for entry in remote.list()} == {None}

    # --- channels ---

    def test_channel_is_set_moved_and_removed(self, remote: Remote, local: Store) -> None:
        first, _ = publish(remote, local, "acme/search:1.0.0")
        second, _ = publish(remote, local, "acme/search:2.0.0", [b"other"])
        client = self.another(remote)
        client.set_channel("acme/search", "prod", first, None)
        assert remote.resolve(parse_reference("acme/search:prod")) == first
        client.set_channel("acme/search", "prod", second, first)
        assert remote.resolve(parse_reference("acme/search:prod")) == second
        assert {str(entry.reference): entry.digest for entry in remote.list()} == {
            "acme/search:1.0.0": first,
            "acme/search:2.0.0": second,
            "acme/search:prod": second,
        }
        client.remove_channel("acme/search", "prod")
        with pytest.raises(NotFound):
            remote.resolve(parse_reference("acme/search:prod"))
        with pytest.raises(NotFound):
            remote.remove_channel("acme/search", "prod")
        assert remote.resolve(parse_reference("acme/search")) == second

    def test_channel_that_somebody_else_moved_is_not_moved(self, remote: Remote, local: Store) -> None:
        first, _ = publish(remote, local, "acme/search:1.0.0")
        second, _ = publish(remote, local, "acme/search:2.0.0", [b"other"])
        remote.set_channel("acme/search", "prod", first, None)
        for expected in (None, second, sha256(b"x")):
            with pytest.raises(ChannelMoved):
                self.another(remote).set_channel("acme/search", "prod", second, expected)
        with pytest.raises(ChannelMoved):
            remote.set_channel("acme/search", "other", first, second)
        assert remote.resolve(parse_reference("acme/search:prod")) == first

    def test_of_several_that_move_a_channel_exactly_one_wins(self, remote: Remote, local: Store) -> None:
        if not remote.capabilities().conditional_put:
            pytest.skip("the remote has no conditional put")
        digests = [publish(remote, local, f"acme/search:1.0.{number}", [bytes([number])])[0] for number in range(5)]
        remote.set_channel("acme/search", "prod", digests[0], None)

        def attempt(digest: Digest) -> Digest | None:
            try:
                self.another(remote).set_channel("acme/search", "prod", digest, digests[0])
            except ChannelMoved:
                return None
            return digest

        with ThreadPoolExecutor(4) as pool:
            moved = [digest for digest in pool.map(attempt, digests[1:]) if digest is not None]
        assert moved == [remote.resolve(parse_reference("acme/search:prod"))]

    def test_channel_names_a_version_that_is_there(self, remote: Remote, local: Store) -> None:
        digest, _ = publish(remote, local, "acme/search:1.0.0")
        for repository, wanted in (("acme/search", sha256(b"absent")), ("acme/other", digest)):
            with pytest.raises(NotFound):
                remote.set_channel(repository, "prod", wanted, None)

    @pytest.mark.parametrize("channel", ["latest", "1.0.0", "Prod", "a b", "", "../x", "prod@sha256:0"])
    def test_what_is_no_channel_is_neither_set_nor_removed(self, remote: Remote, local: Store, channel: str) -> None:
        digest, _ = publish(remote, local, "acme/search:1.0.0")
        with pytest.raises(BadName):
            remote.set_channel("acme/search", channel, digest, None)
        with pytest.raises(BadName):
            remote.remove_channel("acme/search", channel)
        assert len(remote.list()) == 1

    # --- referrers ---

    def test_referrers_are_found_by_subject_and_type(self, remote: Remote, local: Store) -> None:
        one, _ = publish(remote, local, "acme/search:1.0.0")
        two, _ = publish(remote, local, "acme/search:2.0.0", [b"other"])
        assert remote.referrers(REPOSITORY, one) == []
        first = refer(remote, local, one)
        second = refer(remote, local, one, "application/spdx+json")
        third = refer(remote, local, two)
        again = self.another(remote)
        assert {found.digest for found in again.referrers(REPOSITORY, one)} == {first, second}
        assert [found.digest for found in again.referrers(REPOSITORY, one, SCAN)] == [first]
        found = again.referrers(REPOSITORY, two)[0]
        assert (found.digest, found.artifact_type, found.media_type) == (third, SCAN, MANIFEST_TYPE)
        assert found.size == len(again.get_manifest(REPOSITORY, third))
        assert [str(entry.reference) for entry in again.list(REPOSITORY)] == ["acme/search:1.0.0", "acme/search:2.0.0"]

    def test_referrer_comes_back_as_it_was_put(self, remote: Remote, local: Store) -> None:
        digest, _ = publish(remote, local, "acme/search:1.0.0")
        manifest = add_referrer(local, digest)
        send_blobs(remote, local, manifest)
        assert remote.put_referrer(REPOSITORY, manifest) == sha256(manifest)
        assert remote.put_referrer(REPOSITORY, manifest) == sha256(manifest)
        assert remote.get_manifest(REPOSITORY, sha256(manifest)) == manifest
        assert received(remote, descriptor(b"a scan")) == b"a scan"
        assert len(remote.referrers(REPOSITORY, digest)) == 1

    def test_nothing_refers_to_what_is_not_there(self, remote: Remote, local: Store) -> None:
        assert remote.referrers(REPOSITORY, sha256(b"nothing")) == []
        publish(remote, local, "acme/search:1.0.0")
        assert remote.referrers(REPOSITORY, sha256(b"nothing")) == []

    def test_referrer_whose_blobs_are_missing_is_refused(self, remote: Remote, local: Store) -> None:
        digest, _ = publish(remote, local, "acme/search:1.0.0")
        with pytest.raises(NotFound):
            remote.put_referrer(REPOSITORY, add_referrer(local, digest, b"never sent"))
        assert remote.referrers(REPOSITORY, digest) == []

    @pytest.mark.parametrize("manifest", [b"{}", b"no JSON"])
    def test_what_has_no_subject_is_no_referrer(self, remote: Remote, local: Store, manifest: bytes) -> None:
        publish(remote, local, "acme/search:1.0.0")
        with pytest.raises(BadManifest):
            remote.put_referrer(REPOSITORY, manifest)
        with pytest.raises(BadManifest):
            remote.put_referrer(REPOSITORY, add_delta(local))

    def test_errors_are_those_of_deltareg(self, remote: Remote, local: Store) -> None:
        with pytest.raises(DeltaregError):
            remote.put_blob(REPOSITORY, descriptor(b"x"), local.root / "absent", Progress())


def stored(local: Store, data: bytes) -> Descriptor:
    local.put(data)
    return descriptor(data)


def send(
    remote: Remote, local: Store, blob: Descriptor, progress: Progress | None = None, repository: str = REPOSITORY
) -> int:
    return remote.put_blob(repository, blob, local.path(Digest(blob.digest)), progress or Progress())


def received(remote: Remote, blob: Descriptor, offset: int = 0) -> bytes:
    return b"".join(remote.get_blob(REPOSITORY, blob, offset))


def publish(remote: Remote, local: Store, name: str, packs: list[bytes] | None = None) -> tuple[Digest, bytes]:
    """Send an artifact whose packs hold these bytes, and name it; return its digest and manifest."""
    return publish_manifest(remote, local, name, add_delta(local, [pack_of(pack) for pack in packs or [b"a pack"]]))


def publish_manifest(remote: Remote, local: Store, name: str, manifest: bytes) -> tuple[Digest, bytes]:
    """Send the blobs of a manifest and name it; return its digest and the manifest."""
    for blob in parse(Manifest, manifest, what="test").blobs:
        send(remote, local, blob, repository=parse_reference(name).repository)
    local.put(manifest)
    return remote.put_manifest(parse_reference(name), manifest), manifest


def refer(remote: Remote, local: Store, subject: Digest, kind: str = SCAN) -> Digest:
    """Send a referrer of a published manifest; return its digest."""
    manifest = add_referrer(local, subject, kind=kind)
    send_blobs(remote, local, manifest)
    return remote.put_referrer(REPOSITORY, manifest)


def send_blobs(remote: Remote, local: Store, referrer: bytes) -> None:
    for blob in parse(ReferrerManifest, referrer, what="test").blobs:
        send(remote, local, blob)
