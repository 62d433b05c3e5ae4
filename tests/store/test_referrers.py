"""Referrers in the store: manifests about a delta's manifest, kept as other OCI programs read and write them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deltareg.digest import Digest, sha256
from deltareg.errors import BadManifest, DigestMismatch, NotAllowed, NotFound
from deltareg.manifest import MANIFEST_TYPE, Index, Requirement, encode
from deltareg.names import parse_reference
from deltareg.store import REFERRERS_LIMIT, Store
from deltareg.store.index import write_index
from deltareg.store.referrers import SUBJECT, entry_of, parse_referrer
from tests.deltas import SCAN, add_delta, add_referrer, descriptor, flip, publish

NAME = "acme/search:1.0.0"
REPOSITORY = "acme/search"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def refer(store: Store, subject: Digest, layer: bytes = b"a scan", kind: str | None = SCAN) -> Digest:
    return store.put_referrer(REPOSITORY, add_referrer(store, subject, layer, kind=kind))


def digests(store: Store, subject: Digest, kind: str | None = None) -> list[str]:
    return [one.digest for one in store.referrers(REPOSITORY, subject, kind)]


def collect(store: Store) -> None:
    store.gc(grace_seconds=-1)


def test_referrers_are_found_by_their_subject_and_type(store: Store) -> None:
    one, two = publish(store, NAME), publish(store, "acme/search:2.0.0", [b"other"])
    first, second = refer(store, one), refer(store, one, b"a bill", "application/spdx+json")
    third = refer(store, two)
    assert digests(store, one) == sorted([first, second])
    assert digests(store, one, "application/spdx+json") == [second]
    assert digests(store, two) == [third]
    assert digests(store, sha256(b"nothing")) == []
    found = store.referrers(REPOSITORY, two)[0]
    assert (found.artifact_type, found.size, found.annotations) == (SCAN, store.size(third), None)
    assert [str(entry.reference.tag) for entry in Store(store.root).entries()] == ["1.0.0", "2.0.0"]
    assert store.fsck().ok


def test_type_of_a_referrer_without_one_is_its_configs(store: Store) -> None:
    digest = publish(store, NAME)
    refer(store, digest, kind=None)
    assert store.referrers(REPOSITORY, digest)[0].artifact_type == "application/vnd.oci.empty.v1+json"


def test_the_same_referrer_again_changes_nothing(store: Store) -> None:
    digest = publish(store, NAME)
    refer(store, digest)
    before = store.index_path.read_bytes()
    refer(store, digest)
    assert store.index_path.read_bytes() == before


def test_publishing_yanking_and_removing_leave_referrers_alone(store: Store) -> None:
    digest = publish(store, NAME)
    signature = refer(store, digest)
    publish(store, "acme/other:1.0.0", [b"more"])
    store.yank(parse_reference(NAME), "wrong")
    store.set_channel(REPOSITORY, "prod", digest, None)
    store.remove(parse_reference("acme/other:1.0.0"))
    collect(store)
    assert digests(Store(store.root), digest) == [signature]
    assert store.entry(parse_reference(NAME)).yanked == "wrong"
    assert store.fsck().ok


def test_referrer_goes_with_its_subject_and_not_before(store: Store) -> None:
    digest = publish(store, NAME)
    refer(store, digest)
    store.set_channel(REPOSITORY, "prod", digest, None)
    publish(store, "acme/search:1.0.1")  # the same bytes under a second name
    store.remove(parse_reference("acme/search:prod"))
    store.remove(parse_reference(NAME))
    collect(store)
    assert len(digests(store, digest)) == 1
    store.remove(parse_reference("acme/search:1.0.1"))
    assert store.gc(grace_seconds=-1, dry_run=True).kept_blobs == 0
    assert len(digests(store, digest)) == 1
    collect(store)
    assert digests(store, digest) == []
    assert list(store.blobs_path.iterdir()) == []
    assert store.fsck().ok


def test_referrer_of_a_referrer_is_kept_with_both(store: Store) -> None:
    digest = publish(store, NAME)
    first = refer(store, digest)
    manifest = add_referrer(store, first, b"about the scan")
    # Only another program writes these: here a referrer has to be about a version.
    with pytest.raises(NotFound):
        store.put_referrer(REPOSITORY, manifest)
    store.put(manifest)
    entry = entry_of(manifest, parse_referrer(manifest, what="test"))
    index = store.snapshot().index
    write_index(
        store.index_path,
        index.model_copy(update={"manifests": [entry, *index.manifests]}),
        temporary=store.scratch(),
    )
    collect(store)
    assert digests(store, first) == [sha256(manifest)]
    assert store.fsck().ok
    store.remove(parse_reference(NAME))
    collect(store)
    assert list(store.blobs_path.iterdir()) == []


def test_referrers_of_what_a_stacked_delta_requires_are_kept(store: Store) -> None:
    below = publish(store, "acme/below:1.0.0", [b"below"])
    signature = store.put_referrer("acme/below", add_referrer(store, below))
    required = Requirement(reference="acme/below", digest=below)
    store.publish(parse_reference(NAME), add_delta(store, requires=[required]))
    store.remove(parse_reference("acme/below:1.0.0"))
    collect(store)
    assert digests(store, below) == [signature]


def test_what_refers_to_nothing_here_is_refused(store: Store) -> None:
    digest = publish(store, NAME)
    store.put(b"no manifest of a version")
    for subject in (sha256(b"no manifest of a version"), digest):
        manifest = add_referrer(store, subject)
        with pytest.raises(NotFound):
            store.put_referrer("acme/other", manifest)
    assert digests(store, digest) == []


def test_referrer_whose_blobs_are_missing_or_cut_is_refused(store: Store) -> None:
    digest = publish(store, NAME)
    manifest = add_referrer(store, digest, b"a scan")
    store.path(sha256(b"a scan")).write_bytes(b"a sca")
    with pytest.raises(DigestMismatch):
        store.put_referrer(REPOSITORY, manifest)
    store.path(sha256(b"a scan")).unlink()
    with pytest.raises(NotFound) as caught:
        store.put_referrer(REPOSITORY, manifest)
    assert caught.value.data["missing"] == [sha256(b"a scan")]
    assert digests(store, digest) == []


@pytest.mark.parametrize("manifest", [b"{}", b"no JSON", b"[" * 300_000])
def test_what_is_no_referrer_is_refused(store: Store, manifest: bytes) -> None:
    publish(store, NAME)
    with pytest.raises(BadManifest):
        store.put_referrer(REPOSITORY, manifest)
    with pytest.raises(BadManifest):
        store.put_referrer(REPOSITORY, add_delta(store))


def test_nobody_fills_the_index_with_one_delta(store: Store) -> None:
    digest = publish(store, NAME)
    index = store.snapshot().index
    many = [
        descriptor(b"%d" % number, MANIFEST_TYPE).model_copy(update={"annotations": {SUBJECT: digest}})
        for number in range(REFERRERS_LIMIT)
    ]
    write_index(
        store.index_path, index.model_copy(update={"manifests": [*many, *index.manifests]}), temporary=store.scratch()
    )
    with pytest.raises(NotAllowed):
        refer(store, digest)


def test_damage_is_found(store: Store) -> None:
    digest = publish(store, NAME)
    signature = refer(store, digest)
    flip(store.path(sha256(b"a scan")))
    fault = store.fsck().faults[0]
    assert (fault.kind, fault.subject, fault.references) == ("corrupt", sha256(b"a scan"), [signature])
    store.path(sha256(b"a scan")).unlink()
    assert [fault.kind for fault in store.fsck().faults] == ["missing"]
    store.put(b"a scan")
    flip(store.path(signature))
    assert [fault.kind for fault in store.fsck().faults] == ["corrupt"]
    with pytest.raises(DigestMismatch):
        collect(store)


def test_index_that_lies_about_a_subject_is_found(store: Store) -> None:
    one, two = publish(store, NAME), publish(store, "acme/search:2.0.0", [b"other"])
    refer(store, one)
    index = store.snapshot().index
    changed = [
        entry.model_copy(update={"annotations": {SUBJECT: two}}) if SUBJECT in (entry.annotations or {}) else entry
        for entry in index.manifests
    ]
    write_index(store.index_path, index.model_copy(update={"manifests": changed}), temporary=store.scratch())
    assert [fault.kind for fault in store.fsck().faults] == ["bad-index"]


def test_referrer_that_another_program_attached_is_found_and_kept(store: Store) -> None:
    """As `oras attach --oci-layout` writes it: an entry without a name, and without our annotation."""
    digest = publish(store, NAME)
    manifest = add_referrer(store, digest)
    store.put(manifest)
    index = json.loads(store.index_path.read_bytes())
    index["manifests"].append({"mediaType": MANIFEST_TYPE, "digest": sha256(manifest), "size": len(manifest)})
    store.index_path.write_text(json.dumps(index))
    assert digests(store, digest, SCAN) == [sha256(manifest)]
    own = refer(store, digest, b"ours")
    collect(store)
    assert digests(store, digest) == sorted([sha256(manifest), own])
    store.remove(parse_reference(NAME))
    collect(store)
    assert list(store.blobs_path.iterdir()) == []


def test_other_programs_find_referrers_by_the_subject_in_the_manifest(store: Store) -> None:
    digest = publish(store, NAME)
    signature = refer(store, digest)
    listed = Index.model_validate_json(store.index_path.read_bytes(), by_name=False, by_alias=True).manifests
    untagged = [one for one in listed if one.digest == signature]
    assert [(one.media_type, one.artifact_type) for one in untagged] == [(MANIFEST_TYPE, SCAN)]
    manifest = json.loads(store.read(signature))
    assert manifest["subject"] == {"mediaType": MANIFEST_TYPE, "digest": digest, "size": store.size(digest)}


def test_store_of_before_referrers_opens_and_takes_them(store: Store) -> None:
    digest = publish(store, NAME)
    before = json.loads(store.index_path.read_bytes())
    assert all("org.opencontainers.image.ref.name" in one["annotations"] for one in before["manifests"])
    refer(Store(store.root, create=False), digest)
    assert len(digests(store, digest)) == 1


def test_killed_gc_leaves_no_entry_without_its_files(store: Store, tmp_path: Path) -> None:
    """Killed between the index and the files: what is left is unreferenced, and goes the next time."""
    digest = publish(store, NAME)
    refer(store, digest)
    store.remove(parse_reference(NAME))
    os.chmod(store.blobs_path, 0o500)
    try:
        if os.getuid() != 0:
            with pytest.raises(NotAllowed):
                collect(store)
            assert store.fsck().ok
    finally:
        os.chmod(store.blobs_path, 0o700)
    collect(store)
    assert list(store.blobs_path.iterdir()) == []
    assert store.fsck().ok


def test_referrer_needs_no_more_than_its_schema(store: Store) -> None:
    digest = publish(store, NAME)
    manifest = parse_referrer(add_referrer(store, digest), what="test")
    twice = manifest.model_copy(
        update={"layers": [*manifest.layers, manifest.layers[0].model_copy(update={"size": 9})]}
    )
    with pytest.raises(BadManifest, match="two sizes"):
        store.put_referrer(REPOSITORY, encode(twice))
