"""Signatures and other referrers travel with a delta, verified, and only so many of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltareg import referrers
from deltareg.catalog import Registry
from deltareg.digest import Digest, sha256
from deltareg.errors import NotFound
from deltareg.manifest import MANIFEST_TYPE, Descriptor, ReferrerManifest, encode, parse
from deltareg.names import parse_reference
from deltareg.remote import DirectoryRemote
from deltareg.signatures import sign, verify_signed
from deltareg.signing import SIGNATURE_TYPE, KeySigner, trusted
from deltareg.store import Store
from deltareg.transfer import pull, push
from tests.deltas import SCAN, add_referrer, flip, noise, publish
from tests.keys import make_key

NAME = "acme/search:1.0.0"
REPOSITORY = "acme/search"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "home")
    publish(registry.store, NAME)
    return registry


@pytest.fixture
def other(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "other")


@pytest.fixture
def remote(tmp_path: Path) -> DirectoryRemote:
    (tmp_path / "shared").mkdir()
    return DirectoryRemote(tmp_path / "shared")


def refer(store: Store, layer: bytes = b"a scan", kind: str = SCAN) -> Digest:
    digest = store.resolve(parse_reference(NAME))
    return store.put_referrer(REPOSITORY, add_referrer(store, digest, layer, kind=kind))


def kept(store: Store) -> set[str]:
    return {one.digest for one in store.referrers(REPOSITORY, store.resolve(parse_reference(NAME)))}


def test_signature_goes_from_publisher_to_user(
    registry: Registry, other: Registry, remote: DirectoryRemote, tmp_path: Path
) -> None:
    acme = make_key(tmp_path, "acme")
    sign(registry, NAME, KeySigner(acme.private))
    scan = refer(registry.store)
    assert push(registry, NAME, remote, dry_run=True).referrers == 2
    assert remote.referrers(REPOSITORY, registry.resolve(NAME)) == []
    assert push(registry, NAME, remote).referrers == 2
    assert pull(other, NAME, remote, dry_run=True).referrers == 2
    report = pull(other, NAME, remote)
    assert (report.referrers, report.warnings) == (2, [])
    assert kept(other.store) == kept(registry.store)
    assert scan in kept(other.store)
    assert other.store.read(sha256(b"a scan")) == b"a scan"
    assert verify_signed(other, NAME, [trusted(str(acme.public))]).signatures[0].trusted == str(acme.public)
    assert other.fsck().ok
    assert pull(other, NAME, remote).referrers == 0
    assert push(registry, NAME, remote).referrers == 0


def test_what_was_signed_later_comes_with_the_next_pull(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    push(registry, NAME, remote)
    pull(other, NAME, remote)
    late = refer(registry.store)
    assert push(registry, NAME, remote).moved == 0
    assert pull(other, NAME, remote).referrers == 1
    assert kept(other.store) == {late}


def test_lost_layer_is_told_and_the_delta_comes(registry: Registry, other: Registry, remote: DirectoryRemote) -> None:
    refer(registry.store)
    push(registry, NAME, remote)
    (remote.path / "blobs" / "sha256" / sha256(b"a scan").removeprefix("sha256:")).unlink()
    report = pull(other, NAME, remote)
    assert report.referrers == 0
    assert "was not taken along" in report.warnings[0]
    assert kept(other.store) == set()
    assert other.fsck().ok


@pytest.mark.parametrize("what", ["layer", "manifest"])
def test_damaged_referrer_is_told_and_not_stored(
    registry: Registry, other: Registry, remote: DirectoryRemote, what: str
) -> None:
    digest = refer(registry.store)
    push(registry, NAME, remote)
    flip(remote.path / "blobs" / "sha256" / (sha256(b"a scan") if what == "layer" else digest)[7:])
    report = pull(other, NAME, remote)
    assert report.referrers == 0
    assert len(report.warnings) == 1
    assert kept(other.store) == set()
    assert other.fsck().ok


def test_large_referrers_stay_where_they_are(registry: Registry, other: Registry, remote: DirectoryRemote) -> None:
    large = refer(registry.store, noise(referrers.SIZE_LIMIT + 1))
    small = refer(registry.store)
    told = push(registry, NAME, remote)
    assert told.referrers == 1
    assert [large in warning and "at most" in warning for warning in told.warnings] == [False, True]
    pull(other, NAME, remote)
    assert kept(other.store) == {small}


class Flood(DirectoryRemote):
    """A remote that tells of very many referrers, each of which is small and sound."""

    asked = 0

    def referrers(self, repository: str, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        own = super().referrers(repository, digest, artifact_type)
        return [*(self._told(digest, number) for number in range(20_000)), *own]

    def get_manifest(self, repository: str, digest: Digest) -> bytes:
        self.asked += 1
        return super().get_manifest(repository, digest)

    def _told(self, digest: Digest, number: int) -> Descriptor:
        return Descriptor(
            media_type=MANIFEST_TYPE, digest=f"sha256:{number:064x}", size=100, artifact_type="application/x"
        )


def test_flood_of_referrers_is_not_taken(registry: Registry, other: Registry, remote: DirectoryRemote) -> None:
    signature = refer(registry.store, b"a bundle", SIGNATURE_TYPE)
    push(registry, NAME, remote)
    flood = Flood(remote.path)
    report = pull(other, NAME, flood)
    # The signature comes first, whatever else there is.
    assert kept(other.store) == {signature}
    assert flood.asked <= referrers.MOST_REFERRERS + 1
    assert "20001 referrers" in report.warnings[-1]


class Liar(DirectoryRemote):
    """A remote that hangs the referrers of one delta on another."""

    def referrers(self, repository: str, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        return super().referrers(repository, self.resolve(parse_reference(NAME)), artifact_type)


def test_referrer_of_something_else_is_not_taken(registry: Registry, other: Registry, remote: DirectoryRemote) -> None:
    refer(registry.store)
    publish(registry.store, "acme/search:2.0.0", [b"other"])
    push(registry, NAME, remote)
    push(registry, "acme/search:2.0.0", remote)
    report = pull(other, "acme/search:2.0.0", Liar(remote.path))
    assert report.referrers == 0
    assert "refers to" in report.warnings[0]


def test_push_that_was_killed_before_the_signature_sends_it_again(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    signature = refer(registry.store, b"a bundle", SIGNATURE_TYPE)
    blobs = registry.artifact(NAME).manifest.blobs
    from deltareg.progress import SILENT

    for blob in blobs:
        remote.put_blob(REPOSITORY, blob, registry.store.path(Digest(blob.digest)), SILENT)
    remote.put_manifest(parse_reference(NAME), registry.store.read(registry.resolve(NAME)))
    assert push(registry, NAME, remote).referrers == 1
    pull(other, NAME, remote)
    assert kept(other.store) == {signature}


def test_killed_while_signatures_are_stored_leaves_a_sound_registry(tmp_path: Path) -> None:
    """A process that stores referrers is killed at any moment: what is listed is whole."""
    store = Store(tmp_path / "store")
    publish(store, NAME)
    program = """
import sys
from pathlib import Path
from deltareg.names import parse_reference
from deltareg.store import Store
from tests.deltas import add_referrer
store = Store(Path(sys.argv[1]))
digest = store.resolve(parse_reference("acme/search:1.0.0"))
print("ready", flush=True)
for number in range(900):
    store.put_referrer("acme/search", add_referrer(store, digest, b"%d" % number))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", program, str(store.root)], stdout=subprocess.PIPE, env=environment)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        deadline = time.monotonic() + 30
        while len(kept(store)) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    assert len(kept(store)) >= 5
    assert store.fsck().ok
    store.remove(parse_reference(NAME))
    store.gc(grace_seconds=-1)
    assert store.fsck().ok
    assert list(store.blobs_path.iterdir()) == []


def test_referrer_of_an_absent_delta_is_not_sent(registry: Registry, remote: DirectoryRemote) -> None:
    refer(registry.store)
    (going,) = referrers.sendable(registry.store, remote, parse_reference(NAME), registry.resolve(NAME)).carried
    publish(registry.store, "acme/other:1.0.0", [b"x"])
    push(registry, "acme/other:1.0.0", remote)
    with pytest.raises(NotFound):
        referrers.send(registry.store, remote, REPOSITORY, [going])


def test_manifest_of_a_referrer_keeps_what_others_wrote_into_it(registry: Registry) -> None:
    raw = json.loads(add_referrer(registry.store, registry.resolve(NAME)))
    raw["annotations"] = {"org.acme.note": "kept"}
    raw["more"] = [1]
    manifest = parse(ReferrerManifest, json.dumps(raw).encode(), what="test")
    assert json.loads(encode(manifest)) == raw
