"""The client of OCI registries, before this server: what it does at any of them, it does here."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltareg.digest import Digest, sha256
from deltareg.errors import VersionExists
from deltareg.manifest import Manifest, parse
from deltareg.names import parse_reference
from deltareg.progress import Progress
from deltareg.remote.oci_remote import OciRemote
from deltareg.store import Store
from tests.deltas import add_delta, descriptor
from tests.registry.deltas import pack_of
from tests.registry.oci.repository import Repository
from tests.servers.deltareg_server import RunningServer

REPOSITORY = "acme/search"


@pytest.fixture
def remote(server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OciRemote]:
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "state"))
    host = server.url.removeprefix("http://")
    login = base64.b64encode(f"anyone:{server.token}".encode()).decode()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": login}}}))
    yield OciRemote(f"oci+http://{host}")


def publish(remote: OciRemote, local: Store, name: str, text: str) -> Digest:
    manifest = add_delta(local, [pack_of(text)])
    for blob in parse(Manifest, manifest, what="test").blobs:
        remote.put_blob(REPOSITORY, blob, local.path(Digest(blob.digest)), Progress())
    return remote.put_manifest(parse_reference(name), manifest)


def test_versions_and_channels_are_published_and_found(remote: OciRemote, local: Store) -> None:
    first = publish(remote, local, "acme/search:1.0.0", "x")
    second = publish(remote, local, "acme/search:1.1.0", "y")
    remote.set_channel(REPOSITORY, "prod", first, None)
    remote.set_channel(REPOSITORY, "prod", second, first)
    for name, digest in (("1.0.0", first), ("prod", second), ("latest", second)):
        assert remote.resolve(parse_reference(f"acme/search:{name}")) == digest
    with pytest.raises(VersionExists):
        publish(remote, local, "acme/search:1.0.0", "z")
    remote.yank(parse_reference("acme/search:1.1.0"), "broken")
    assert {str(one.reference): one.yanked for one in remote.list(REPOSITORY)}["acme/search:1.1.0"] == "broken"
    remote.unyank(parse_reference("acme/search:1.1.0"))
    remote.remove_channel(REPOSITORY, "prod")
    assert "acme/search:prod" not in {str(one.reference) for one in remote.list(REPOSITORY)}


def test_blob_is_read_from_any_byte_on(remote: OciRemote, local: Store) -> None:
    data = bytes(range(256)) * 10_000
    local.put(data)
    blob = descriptor(data)
    assert remote.missing(REPOSITORY, [sha256(data)]) == {sha256(data)}
    remote.put_blob(REPOSITORY, blob, local.path(sha256(data)), Progress())
    assert remote.missing(REPOSITORY, [sha256(data)]) == set()
    for offset in (0, 1, len(data) - 1, len(data)):
        assert b"".join(remote.get_blob(REPOSITORY, blob, offset)) == data[offset:]


def test_what_refers_to_a_version_is_found(remote: OciRemote, local: Store, server: RunningServer) -> None:
    digest = publish(remote, local, "acme/search:1.0.0", "x")
    with server.client() as client:
        signature = Repository(client, REPOSITORY).push_image(subject=digest, artifact_type="application/a")
    assert [one.digest for one in remote.referrers(REPOSITORY, digest, "application/a")] == [signature]
    assert remote.referrers(REPOSITORY, digest, "application/b") == []
