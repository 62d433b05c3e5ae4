"""Names: versions never change, channels move by compare-and-set, and every name leads to a whole artifact."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from deltareg.digest import Digest, sha256
from deltareg.errors import (
    BadManifest,
    BadName,
    ChannelMoved,
    DigestMismatch,
    DiskFull,
    InvalidArgument,
    NotAllowed,
    NotFound,
    UnsupportedFormat,
    UsageError,
    VersionExists,
)
from deltareg.manifest import CONFIG_TYPE, Descriptor, Manifest, encode, parse
from deltareg.names import Reference, parse_reference
from deltareg.store import MANIFEST_LIMIT, Store
from deltareg.store.index import DEPRECATED, REF_NAME, YANKED, write_index
from tests.deltas import add_delta, blob_files, descriptor, publish, with_config
from tests.disks import fill, read_only, small_disk


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def names(store: Store) -> list[str]:
    return [str(entry.reference) for entry in store.entries()]


def resolve(store: Store, text: str) -> Digest:
    return store.resolve(parse_reference(text))


# --- the layout ---


def test_new_store_is_an_oci_image_layout(store: Store) -> None:
    assert json.loads((store.root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    publish(store, "acme/search:1.0.0")
    index = json.loads((store.root / "index.json").read_text())
    assert index["schemaVersion"] == 2
    assert index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    (entry,) = index["manifests"]
    assert entry["artifactType"] == "application/vnd.deltareg.delta.v1+json"
    assert entry["annotations"][REF_NAME] == "acme/search:1.0.0"
    assert sha256((store.root / "blobs" / entry["digest"].replace(":", "/")).read_bytes()) == entry["digest"]


def test_store_that_must_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no registry"):
        Store(tmp_path / "absent", create=False)
    assert not (tmp_path / "absent").exists()


def test_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("dear …")
    with pytest.raises(UsageError, match="not empty and no registry"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letters"]


def test_store_whose_making_was_cut_off_is_completed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    publish(store, "acme/search:1.0.0")
    (store.root / "oci-layout").unlink()
    assert names(Store(store.root)) == ["acme/search:1.0.0"]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ('{"imageLayoutVersion": "2.0.0"}', UnsupportedFormat),
        ("{}", UnsupportedFormat),
        ("[]", UnsupportedFormat),
        ("", BadManifest),
        ("\0\0", BadManifest),
    ],
)
def test_other_layout_version_is_refused(store: Store, content: str, error: type[Exception]) -> None:
    (store.root / "oci-layout").write_text(content)
    with pytest.raises(error, match="oci-layout"):
        Store(store.root)


def test_lost_index_is_told_and_never_replaced_by_an_empty_one(store: Store) -> None:
    publish(store, "acme/search:1.0.0")
    store.index_path.unlink()
    with pytest.raises(BadManifest, match="is missing"):
        Store(store.root).entries()
    with pytest.raises(BadManifest, match="is missing"):
        publish(store, "acme/search:2.0.0")
    assert not store.index_path.exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"schemaVersion": 1, "manifests": []}',
        '{"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": "sha256:../../x", "size": 1}]}',
        '{"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": "sha256:' + "0" * 64 + '", "size": -1}]}',
        '{"schemaVersion": 2, "manifests": [], "manifests": []}',
        '{"schemaVersion": 2, "manifests": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
)
def test_index_that_is_none_is_refused(store: Store, content: str) -> None:
    store.index_path.write_text(content)
    with pytest.raises(BadManifest, match=r"index\.json"):
        store.entries()


def test_entries_and_fields_of_other_programs_are_kept(store: Store) -> None:
    index = json.loads(store.index_path.read_text())
    foreign = {"mediaType": "application/x", "digest": sha256(b"x"), "size": 1, "platform": {"os": "linux"}}
    index["manifests"] = [foreign, {**foreign, "annotations": {REF_NAME: "Some Name"}}]
    index["subject"] = {"kept": True}
    store.index_path.write_text(json.dumps(index))
    publish(store, "acme/search:1.0.0")
    after = json.loads(store.index_path.read_text())
    assert names(store) == ["acme/search:1.0.0"]
    assert foreign in after["manifests"]
    assert len(after["manifests"]) == 3
    assert after["subject"] == {"kept": True}


# --- publishing ---


def test_published_version_resolves_by_every_kind_of_name(store: Store) -> None:
    digest = publish(store, "acme/search:1.0.0")
    store.set_channel("acme/search", "prod", digest, None)
    for text in ("acme/search:1.0.0", "acme/search:prod", "acme/search:latest", "acme/search", f"acme/search@{digest}"):
        assert resolve(store, text) == digest
    assert store.manifest(digest) == parse(Manifest, store.read(digest), what="test")
    assert [entry.size for entry in store.entries()] == [store.size(digest)] * 2
    assert all(entry.created.endswith("Z") for entry in store.entries())


def test_latest_is_the_highest_release(store: Store) -> None:
    digests = {
        version: publish(store, f"acme/search:{version}", [version.encode()])
        for version in ("1.9.0", "1.10.0", "2.0.0-rc.1")
    }
    assert resolve(store, "acme/search") == digests["1.10.0"]


def test_unknown_names_are_answered_with_what_there_is(store: Store) -> None:
    with pytest.raises(NotFound) as caught:
        resolve(store, "acme/search:1.0.0")
    assert caught.value.cause == "the registry is empty"
    digest = publish(store, "acme/search:1.0.0")
    with pytest.raises(NotFound) as caught:
        resolve(store, "acme/search:1.0.1")
    assert caught.value.cause == "acme/search has 1.0.0"
    with pytest.raises(NotFound) as caught:
        resolve(store, f"acme/other@{digest}")
    assert caught.value.cause == "there are acme/search"
    with pytest.raises(NotFound):
        resolve(store, f"acme/search@{sha256(b'other')}")


def test_same_bytes_again_are_no_error_and_change_nothing(store: Store) -> None:
    digest = publish(store, "acme/search:1.0.0")
    before = store.index_path.read_bytes(), store.index_path.stat().st_mtime_ns
    assert publish(store, "acme/search:1.0.0") == digest
    assert before == (store.index_path.read_bytes(), store.index_path.stat().st_mtime_ns)


def test_other_bytes_under_a_published_version_are_refused(store: Store) -> None:
    digest = publish(store, "acme/search:1.0.0")
    with pytest.raises(VersionExists) as caught:
        publish(store, "acme/search:1.0.0", [b"other"])
    assert caught.value.exit_code == 4
    assert resolve(store, "acme/search:1.0.0") == digest


def test_removed_version_is_never_free_for_other_bytes(store: Store) -> None:
    digest = publish(store, "acme/search:1.0.0")
    store.remove(parse_reference("acme/search:1.0.0"))
    assert names(store) == []
    with pytest.raises(VersionExists, match="was removed"):
        publish(Store(store.root), "acme/search:1.0.0", [b"other"])
    publish(store, "acme/search:1.0.1", [b"other"])
    assert publish(store, "acme/search:1.0.0") == digest
    with pytest.raises(VersionExists):
        publish(store, "acme/search:1.0.0", [b"other"])


@pytest.mark.parametrize(
    "text", ["acme/search", "acme/search:prod", "acme/search:latest", "acme/search@sha256:" + "0" * 64]
)
def test_only_versions_are_published(store: Store, text: str) -> None:
    with pytest.raises(BadName, match="does not name a version"):
        store.publish(parse_reference(text), add_delta(store))


def test_artifact_with_a_missing_blob_is_not_published(store: Store) -> None:
    manifest = add_delta(store, [b"first", b"second"])
    store.path(sha256(b"first")).unlink()
    store.path(sha256(b"second")).unlink()
    with pytest.raises(NotFound, match="2 of its blobs are missing") as caught:
        store.publish(parse_reference("acme/search:1.0.0"), manifest)
    assert caught.value.data["missing"] == [sha256(b"first"), sha256(b"second")]
    assert names(store) == []


def test_artifact_with_a_truncated_blob_is_not_published(store: Store) -> None:
    manifest = add_delta(store, [b"a pack"])
    os.truncate(store.path(sha256(b"a pack")), 3)
    with pytest.raises(DigestMismatch, match="3 bytes instead of 6"):
        store.publish(parse_reference("acme/search:1.0.0"), manifest)
    assert names(store) == []


def test_manifests_that_break_a_rule_are_not_published(store: Store) -> None:
    good = parse(Manifest, add_delta(store), what="test")
    twice = good.model_copy(update={"layers": [*good.layers, descriptor(b"a pack").model_copy(update={"size": 7})]})
    absurd = encode(good).replace(b'"size":6', b'"size":1152921504606846976')
    for manifest, fault in [
        (b"", "not valid JSON"),
        (b"{}", "not a valid Manifest"),
        (encode(twice), "two sizes"),
        (absurd, "layers.1.size"),
        (encode(good).replace(b"sha256:", b"sha256:../"), "not a valid Manifest"),
        (encode(good).replace(b"delta.v1", b"delta.v9"), "artifactType"),
        (b" " * (MANIFEST_LIMIT + 1), "at most"),
    ]:
        with pytest.raises(BadManifest, match=fault):
            store.publish(parse_reference("acme/search:1.0.0"), manifest)
    assert names(store) == []


def test_absurd_size_that_the_schema_allows_is_refused_by_comparison(store: Store) -> None:
    good = parse(Manifest, add_delta(store), what="test")
    absurd = Descriptor(media_type="x", digest=sha256(b"a pack"), size=2**53 - 1)
    with pytest.raises(DigestMismatch, match="instead of 9007199254740991"):
        store.publish(parse_reference("acme/search:1.0.0"), encode(good.model_copy(update={"layers": [absurd]})))


def test_store_sees_what_another_one_published(store: Store) -> None:
    other = Store(store.root)
    assert names(store) == []
    for number in range(20):
        publish(other, f"acme/search:1.0.{number}", [str(number % 2).encode()])
        assert len(names(store)) == number + 1


def test_full_disk_while_naming_leaves_the_names_as_they_were(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        store = Store(disk / "store")
        digest = publish(store, "acme/search:1.0.0")
        manifest = add_delta(store, [b"other"])
        before = store.index_path.read_bytes()
        ballast = fill(disk)
        with pytest.raises(DiskFull):
            store.publish(parse_reference("acme/search:2.0.0"), manifest)
        assert store.index_path.read_bytes() == before
        assert names(Store(store.root)) == ["acme/search:1.0.0"]
        ballast.unlink()
        store.publish(parse_reference("acme/search:2.0.0"), manifest)
        assert resolve(store, "acme/search:1.0.0") == digest
        assert store.fsck().ok


def test_read_only_store_resolves_and_does_not_publish(store: Store) -> None:
    digest = publish(store, "acme/search:1.0.0")
    with read_only(store.root):
        again = Store(store.root)
        assert resolve(again, "acme/search") == digest
        assert again.fsck().ok
        for change in (
            lambda: again.publish(parse_reference("acme/search:2.0.0"), again.read(digest)),
            lambda: again.set_channel("acme/search", "prod", digest, None),
            lambda: again.remove(parse_reference("acme/search:1.0.0")),
            lambda: again.gc(),
        ):
            with pytest.raises(NotAllowed):
                change()


def test_twenty_thousand_names_are_no_burden(store: Store) -> None:
    manifest = add_delta(store)
    digest = store.put(manifest)
    entries = [
        Descriptor(
            media_type="application/vnd.oci.image.manifest.v1+json",
            digest=digest,
            size=len(manifest),
            annotations={REF_NAME: f"acme/model-{number % 500}:1.{number // 500}.0"},
        )
        for number in range(20_000)
    ]
    index = store.snapshot().index.model_copy(update={"manifests": entries})
    write_index(store.index_path, index, temporary=store.scratch())
    again = Store(store.root)
    begun = time.monotonic()
    assert resolve(again, "acme/model-3") == digest
    publish(again, "acme/model-3:2.0.0", [b"other"])
    assert resolve(again, "acme/model-3") != digest
    assert len(again.entries()) == 20_001
    assert time.monotonic() - begun < 20


# --- channels ---


def test_channel_moves_when_it_is_where_it_was_expected(store: Store) -> None:
    first, second = publish(store, "acme/search:1.0.0"), publish(store, "acme/search:2.0.0", [b"other"])
    store.set_channel("acme/search", "prod", first, None)
    store.set_channel("acme/search", "prod", second, first)
    assert resolve(store, "acme/search:prod") == second
    with pytest.raises(ChannelMoved, match=f"points to {second}"):
        store.set_channel("acme/search", "prod", first, first)
    with pytest.raises(ChannelMoved):
        store.set_channel("acme/search", "prod", first, None)
    store.set_channel("acme/search", "prod", second, None)
    assert resolve(store, "acme/search:prod") == second


@pytest.mark.parametrize("channel", ["latest", "1.0.0", "Prod", "a b", ""])
def test_what_is_no_channel_is_not_set(store: Store, channel: str) -> None:
    digest = publish(store, "acme/search:1.0.0")
    with pytest.raises(BadName):
        store.set_channel("acme/search", channel, digest, None)


def test_channel_points_to_published_versions_only(store: Store) -> None:
    publish(store, "acme/other:1.0.0")
    for digest in (sha256(b"absent"), resolve(store, "acme/other")):
        with pytest.raises(NotFound):
            store.set_channel("acme/search", "prod", digest, None)


# --- removal ---


def test_version_that_a_channel_points_to_stays(store: Store) -> None:
    digest = publish(store, "acme/search:1.0.0")
    store.set_channel("acme/search", "prod", digest, None)
    with pytest.raises(NotAllowed, match="acme/search:prod points to it"):
        store.remove(parse_reference("acme/search:1.0.0"))
    store.remove(parse_reference("acme/search:prod"))
    store.remove(parse_reference("acme/search:1.0.0"))
    assert names(store) == []
    assert len(blob_files(store.root)) == 4


@pytest.mark.parametrize("text", ["acme/search", "acme/search:latest", "acme/search@sha256:" + "0" * 64])
def test_only_stored_names_are_removed(store: Store, text: str) -> None:
    publish(store, "acme/search:1.0.0")
    with pytest.raises(BadName):
        store.remove(parse_reference(text))


def test_absent_name_is_not_removed(store: Store) -> None:
    with pytest.raises(NotFound):
        store.remove(Reference("acme", "search", "1.0.0"))


@pytest.mark.parametrize(
    ("config", "media_type", "error"),
    [
        (b"no JSON", CONFIG_TYPE, BadManifest),
        (b"{}", CONFIG_TYPE, BadManifest),
        (b'{"formatVersion":2}', CONFIG_TYPE, UnsupportedFormat),
        (b"{}", "application/x", UnsupportedFormat),
    ],
)
def test_config_that_cannot_be_read_is_not_published(
    store: Store, config: bytes, media_type: str, error: type[Exception]
) -> None:
    manifest = with_config(store, config, media_type)
    with pytest.raises(error, match=r"config"):
        store.publish(parse_reference("acme/search:1.0.0"), manifest)
    assert names(store) == []
    assert store.gc(0).kept_blobs == 0, "one bad artifact does not keep the others' garbage"


def test_siblings_are_the_names_of_one_repository(store: Store) -> None:
    digest = publish(store, "acme/search:1.0.0")
    publish(store, "acme/other:1.0.0", [b"other"])
    store.set_channel("acme/search", "prod", digest, None)
    found = {str(entry.reference) for entry in store.siblings(parse_reference("acme/search:9.9.9"))}
    assert found == {"acme/search:1.0.0", "acme/search:prod"}
    assert store.siblings(parse_reference("acme/nothing")) == []


# --- yanking ---


def yanked(store: Store) -> dict[str, str | None]:
    return {str(entry.reference): entry.yanked for entry in store.entries()}


def test_yanked_version_is_skipped_by_latest_and_stays(store: Store) -> None:
    first = publish(store, "acme/search:1.0.0")
    second = publish(store, "acme/search:1.1.0", [b"other"])
    store.yank(parse_reference("acme/search:1.1.0"), "  answers nonsense; take 1.0.0 ")
    assert yanked(store) == {"acme/search:1.0.0": None, "acme/search:1.1.0": "answers nonsense; take 1.0.0"}
    assert resolve(store, "acme/search") == resolve(store, "acme/search:latest") == first
    assert resolve(store, "acme/search:1.1.0") == resolve(store, f"acme/search@{second}") == second
    assert store.gc(0).blobs == 0
    assert store.fsck().ok
    store.unyank(parse_reference("acme/search:1.1.0"))
    assert yanked(store) == {"acme/search:1.0.0": None, "acme/search:1.1.0": None}
    assert resolve(Store(store.root), "acme/search") == second


def test_latest_is_the_highest_of_all_where_all_are_yanked(store: Store) -> None:
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        publish(store, f"acme/search:{version}", [version.encode()])
        store.yank(parse_reference(f"acme/search:{version}"), "wrong")
    assert store.entry(parse_reference("acme/search")).reference.tag == "1.10.0"
    store.unyank(parse_reference("acme/search:1.0.0"))
    assert store.entry(parse_reference("acme/search")).reference.tag == "1.0.0"


def test_a_channel_still_leads_to_a_yanked_version(store: Store) -> None:
    digest = publish(store, "acme/search:1.0.0")
    store.set_channel("acme/search", "prod", digest, None)
    store.yank(parse_reference("acme/search:1.0.0"), "wrong")
    assert resolve(store, "acme/search:prod") == digest
    assert yanked(store) == {"acme/search:1.0.0": "wrong", "acme/search:prod": None}


def test_publishing_again_does_not_unyank(store: Store) -> None:
    digest = publish(store, "acme/search:1.0.0")
    store.yank(parse_reference("acme/search:1.0.0"), "wrong")
    assert publish(Store(store.root), "acme/search:1.0.0") == digest
    publish(store, "acme/search:1.1.0", [b"other"])
    store.set_channel("acme/search", "prod", digest, None)
    assert yanked(store)["acme/search:1.0.0"] == "wrong"


def test_version_may_be_yanked_from_the_start(store: Store) -> None:
    reference, manifest = parse_reference("acme/search:1.0.0"), add_delta(store)
    with pytest.raises(InvalidArgument):
        store.publish(reference, manifest, yanked="")
    assert names(store) == []
    store.publish(reference, manifest, yanked="wrong")
    assert yanked(store) == {"acme/search:1.0.0": "wrong"}
    store.publish(reference, manifest, yanked="another")
    store.publish(reference, manifest)
    assert yanked(store) == {"acme/search:1.0.0": "wrong"}, "it was published before"


def test_yanking_twice_changes_nothing_and_another_reason_replaces_it(store: Store) -> None:
    publish(store, "acme/search:1.0.0")
    reference = parse_reference("acme/search:1.0.0")
    store.unyank(reference)
    store.yank(reference, "a  b")
    before = store.index_path.stat().st_ino, store.index_path.stat().st_mtime_ns
    store.yank(reference, "a  b")
    assert before == (store.index_path.stat().st_ino, store.index_path.stat().st_mtime_ns)
    store.yank(reference, "another")
    assert yanked(store) == {"acme/search:1.0.0": "another"}


@pytest.mark.parametrize(
    "reason", ["", "  ", "\n", "one\ntwo", "a\tb", "\x1b[31mred", "a\u2028b", "\ud800", "x" * 1001]
)
def test_what_is_no_reason_is_refused(store: Store, reason: str) -> None:
    publish(store, "acme/search:1.0.0")
    with pytest.raises(InvalidArgument, match="reason") as caught:
        store.yank(parse_reference("acme/search:1.0.0"), reason)
    assert caught.value.hint
    assert yanked(store) == {"acme/search:1.0.0": None}


def test_a_reason_may_be_any_line_of_text(store: Store) -> None:
    publish(store, "acme/search:1.0.0")
    for reason in ("x" * 1000, "Θ = NaN – „falsch“ \U0001f4a5", '","vnd.deltareg.checksum":"'):
        store.yank(parse_reference("acme/search:1.0.0"), reason)
        assert yanked(Store(store.root)) == {"acme/search:1.0.0": reason}
        assert store.fsck().ok


@pytest.mark.parametrize(
    "text", ["acme/search", "acme/search:prod", "acme/search:latest", "acme/search@sha256:" + "0" * 64]
)
def test_only_versions_are_yanked(store: Store, text: str) -> None:
    publish(store, "acme/search:1.0.0")
    for change in (lambda name: store.yank(name, "wrong"), store.unyank):
        with pytest.raises(BadName, match="does not name a version"):
            change(parse_reference(text))


def test_absent_version_is_not_yanked(store: Store) -> None:
    publish(store, "acme/search:1.0.0")
    for change in (lambda name: store.yank(name, "wrong"), store.unyank):
        with pytest.raises(NotFound, match=r"acme/search:2\.0\.0"):
            change(parse_reference("acme/search:2.0.0"))


def test_yank_of_another_program_is_believed_and_its_reason_tamed(store: Store) -> None:
    publish(store, "acme/search:1.0.0")
    for told, kept in [("", ""), ("plain", "plain"), ("a\nb\x1b[2J", "a b [2J"), ("y" * 1_000_000, "y" * 1000)]:
        index = json.loads(store.index_path.read_text())
        index["manifests"][0]["annotations"][YANKED] = told
        index["annotations"] = {}
        store.index_path.write_text(json.dumps(index))
        assert yanked(store) == {"acme/search:1.0.0": kept}
    store.unyank(parse_reference("acme/search:1.0.0"))
    assert yanked(store) == {"acme/search:1.0.0": None}


def test_a_channel_is_not_yanked_by_another_program(store: Store) -> None:
    digest = publish(store, "acme/search:1.0.0")
    store.set_channel("acme/search", "prod", digest, None)
    index = json.loads(store.index_path.read_text())
    for entry in index["manifests"]:
        entry["annotations"][YANKED] = "all of it"
    store.index_path.write_text(json.dumps(index))
    assert yanked(store) == {"acme/search:1.0.0": "all of it", "acme/search:prod": None}


@pytest.mark.parametrize("value", [True, 1, None, [], {"reason": "x"}])
def test_yank_that_is_no_text_is_a_damaged_index(store: Store, value: object) -> None:
    publish(store, "acme/search:1.0.0")
    index = json.loads(store.index_path.read_text())
    index["manifests"][0]["annotations"][YANKED] = value
    store.index_path.write_text(json.dumps(index))
    with pytest.raises(BadManifest, match=r"index\.json.*vnd\.deltareg\.yanked"):
        store.entries()
    with pytest.raises(BadManifest):
        store.yank(parse_reference("acme/search:1.0.0"), "wrong")


def test_deprecated_version_resolves_as_before_and_says_so(store: Store) -> None:
    reference = parse_reference("acme/search:1.0.0")
    digest = store.publish(reference, add_delta(store), deprecated="old")
    assert store.entry(reference).deprecated == "old"
    assert resolve(store, "acme/search") == digest
    store.yank(reference, "wrong")
    store.deprecate(reference, "older")
    assert (store.entry(reference).yanked, store.entry(reference).deprecated) == ("wrong", "older")
    before = store.signature()
    store.deprecate(reference, "older")
    assert store.signature() == before
    store.undeprecate(reference)
    assert (store.entry(reference).yanked, store.entry(reference).deprecated) == ("wrong", None)
    assert store.fsck().ok
    with pytest.raises(BadName, match="does not name a version") as caught:
        store.deprecate(parse_reference("acme/search"), "old")
    assert "deprecated" in str(caught.value.hint)


def test_deprecation_of_another_program_is_believed_for_versions_and_its_reason_tamed(store: Store) -> None:
    digest = publish(store, "acme/search:1.0.0")
    store.set_channel("acme/search", "prod", digest, None)
    index = json.loads(store.index_path.read_text())
    for entry in index["manifests"]:
        entry["annotations"][DEPRECATED] = "a\nb\x1b[2J"
    store.index_path.write_text(json.dumps(index))
    found = {str(entry.reference): entry.deprecated for entry in store.entries()}
    assert found == {"acme/search:1.0.0": "a b [2J", "acme/search:prod": None}


def test_read_only_store_is_not_yanked_in(store: Store) -> None:
    publish(store, "acme/search:1.0.0")
    with read_only(store.root), pytest.raises(NotAllowed):
        Store(store.root).yank(parse_reference("acme/search:1.0.0"), "wrong")


# --- removing channels ---


def test_a_removed_channel_leaves_its_version(store: Store) -> None:
    digest = publish(store, "acme/search:1.0.0")
    store.set_channel("acme/search", "prod", digest, None)
    store.remove_channel("acme/search", "prod")
    assert names(store) == ["acme/search:1.0.0"]
    with pytest.raises(NotFound):
        store.remove_channel("acme/search", "prod")
    for channel in ("latest", "1.0.0", "Prod", ""):
        with pytest.raises(BadName):
            store.remove_channel("acme/search", channel)
    assert names(store) == ["acme/search:1.0.0"]
