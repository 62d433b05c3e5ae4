"""What other programs attach to a version of a static mirror."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltareg.digest import Digest
from deltareg.errors import RemoteUnavailable
from deltareg.remote import open_remote
from deltareg.store import Store
from tests.deltas import SCAN, add_referrer, publish
from tests.remote.site import IMPATIENT, Asked, say, serve_site
from tests.servers.object_store import Bucket

REPOSITORY = "acme/search"


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[Store, Digest, Digest]:
    """A registry to which another program attached something: the index does not say to what."""
    store = Store(tmp_path / "origin")
    digest = publish(store, "acme/search:1.0.0")
    scan = store.put_referrer(REPOSITORY, add_referrer(store, digest))
    index = json.loads(store.index_path.read_bytes())
    for entry in index["manifests"]:
        if entry["digest"] == scan:
            del entry["annotations"], entry["artifactType"]
    store.index_path.write_bytes(json.dumps(index).encode())
    return store, digest, scan


def test_referrers_of_other_programs_are_found_in_a_bucket(
    bucket: Bucket, foreign: tuple[Store, Digest, Digest]
) -> None:
    store, digest, scan = foreign
    (found,) = open_remote(bucket.upload(store.root, "m")).referrers(REPOSITORY, digest, SCAN)
    assert (found.digest, found.artifact_type) == (scan, SCAN)


def test_referrer_that_cannot_be_read_now_is_not_taken_for_none(foreign: tuple[Store, Digest, Digest]) -> None:
    store, digest, scan = foreign
    said = {"status": 200, "data": b""}

    def answer(asked: Asked, before: int) -> None:
        path = store.root / asked.path.lstrip("/")
        if asked.path.endswith(scan.removeprefix("sha256:")):
            say(asked, said["status"], said["data"] or path.read_bytes())
        elif path.is_file():
            say(asked, 200, path.read_bytes())
        else:
            say(asked, 404)

    with serve_site(answer) as site:
        mirror = open_remote(site.url, IMPATIENT)
        assert [one.digest for one in mirror.referrers(REPOSITORY, digest)] == [scan]
        said["status"] = 503
        with pytest.raises(RemoteUnavailable):
            mirror.referrers(REPOSITORY, digest)
        # Other bytes may tell of any subject.
        said.update(status=200, data=add_referrer(store, digest, b"another scan"))
        assert mirror.referrers(REPOSITORY, digest) == []
