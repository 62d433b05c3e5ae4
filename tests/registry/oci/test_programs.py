"""The programs of the OCI world: skopeo and oras push, pull, list and delete."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import oras.client
import pytest

from deltareg.digest import Digest
from deltareg.manifest import Manifest, parse
from deltareg.store import Store
from deltareg_registry.database.tables import namespaces
from tests.deltas import noise, publish
from tests.registry.deltas import pack_of
from tests.registry.oci.repository import Repository
from tests.servers.deltareg_server import RunningServer

NAME = "acme/search:1.0.0"


def skopeo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["skopeo", *arguments], capture_output=True, text=True, timeout=60)


def copy(server: RunningServer, local: Store, tag: str = "1.0.0", token: str | None = None) -> str:
    done = skopeo(
        "copy",
        "--preserve-digests",
        "--dest-tls-verify=false",
        f"--dest-creds=anyone:{token or server.token}",
        f"oci:{local.root}:{NAME}",
        f"docker://{server.url.removeprefix('http://')}/acme/search:{tag}",
    )
    return done.stderr if done.returncode else ""


def test_skopeo_copies_a_registry_of_this_machine_to_the_server_and_back(
    either: RunningServer, local: Store, tmp_path: Path
) -> None:
    digest = publish(local, NAME, [pack_of("x" * 100), pack_of("y" * 100_000)])
    assert copy(either, local) == ""
    assert copy(either, local, "prod") == ""
    place = f"docker://{either.url.removeprefix('http://')}/acme/search"
    credentials = ["--tls-verify=false", f"--creds=anyone:{either.token}"]
    assert json.loads(skopeo("list-tags", *credentials, place).stdout)["Tags"] == ["1.0.0", "latest", "prod"]
    found = skopeo("inspect", "--raw", *credentials, f"{place}:latest")
    assert found.stdout.encode() == local.read(digest)
    back = skopeo(
        "copy",
        "--preserve-digests",
        "--src-tls-verify=false",
        f"--src-creds=anyone:{either.token}",
        f"{place}:prod",
        f"oci:{tmp_path / 'back'}:{NAME}",
    )
    assert back.returncode == 0, back.stderr
    for blob in parse(Manifest, local.read(digest), what="test").blobs:
        name = blob.digest.removeprefix("sha256:")
        assert (tmp_path / "back" / "blobs" / "sha256" / name).read_bytes() == local.read(Digest(blob.digest))


def test_skopeo_cannot_push_what_it_may_not(server: RunningServer, local: Store) -> None:
    publish(local, NAME, [pack_of("x")])
    server.user("paul")
    assert copy(server, local) == ""
    assert "unauthorized" in copy(server, local, "1.0.1", "drt_wrong")
    assert "reader of acme" in copy(server, local, "1.0.1", server.user("rita", acme="reader"))


def test_public_namespace_is_read_by_skopeo_without_a_token(server: RunningServer, local: Store) -> None:
    digest = publish(local, NAME, [pack_of("x")])
    assert copy(server, local) == ""
    source = f"docker://{server.url.removeprefix('http://')}/{NAME}"
    assert skopeo("inspect", "--raw", "--tls-verify=false", source).returncode != 0
    with server.state.database.writing() as connection:
        connection.execute(namespaces.update().values(public=True))
    assert skopeo("inspect", "--raw", "--tls-verify=false", source).stdout.encode() == local.read(digest)
    # Credentials are sent also where they are not needed for everything.
    assert copy(server, local, "prod") == ""


def test_skopeo_deletes_an_image_and_not_a_version(server: RunningServer, local: Store) -> None:
    publish(local, NAME, [pack_of("x")])
    assert copy(server, local) == ""
    credentials = ["--tls-verify=false", f"--creds=anyone:{server.token}"]
    place = f"docker://{server.url.removeprefix('http://')}/acme/search"
    with server.client() as client:
        repository = Repository(client, "acme/search")
        repository.push_image("docs")
        assert skopeo("delete", *credentials, f"{place}:docs").returncode == 0
        assert repository.tags() == ["1.0.0", "latest"]
        refused = skopeo("delete", *credentials, f"{place}:1.0.0")
        assert refused.returncode != 0
        assert repository.tags() == ["1.0.0", "latest"]


def test_private_and_public_are_read_and_written_by_oras_with_docker_tokens(
    server: RunningServer, tmp_path: Path
) -> None:
    (tmp_path / "card.md").write_text("a card")
    host = server.url.removeprefix("http://")
    with server.client() as client:
        for name, public in (("acme", False), ("open", True)):
            assert client.post("/api/v1/namespaces", json={"name": name, "public": public}).status_code == 201

    def known(token: str | None) -> oras.client.OrasClient:
        client = oras.client.OrasClient(insecure=True, auth_backend="token")
        if token is not None:
            client.auth.set_basic_auth("rita", token)
        return client

    rita = server.user("rita", acme="publisher", open="publisher")
    for name in ("acme", "open"):
        target = f"{host}/{name}/cards:draft"
        answer = known(rita).push(target, files=[str(tmp_path / "card.md")], disable_path_validation=True)
        assert answer.status_code == 201
        found = known(rita).pull(target, outdir=str(tmp_path / f"{name} of rita"))
        assert Path(found[0]).read_text() == "a card"
    found = known(None).pull(f"{host}/open/cards:draft", outdir=str(tmp_path / "of nobody"))
    assert Path(found[0]).read_text() == "a card"
    with pytest.raises(ValueError, match="Unauthorized"):
        known(None).pull(f"{host}/acme/cards:draft", outdir=str(tmp_path / "refused"))


def test_oras_pushes_and_pulls_files(either: RunningServer, tmp_path: Path) -> None:
    data = noise(10 << 20)
    (tmp_path / "card.bin").write_bytes(data)
    client = oras.client.OrasClient(insecure=True, auth_backend="basic")
    host = either.url.removeprefix("http://")
    client.login(username="anyone", password=either.token, hostname=host, config_path=str(tmp_path / "docker.json"))
    target = f"{host}/acme/cards:draft"
    answer = client.push(target, files=[str(tmp_path / "card.bin")], disable_path_validation=True)
    assert answer.status_code == 201
    client.push(target, files=[str(tmp_path / "card.bin")], disable_path_validation=True, do_chunked=True)
    assert client.get_tags(target) == ["draft"]
    found = client.pull(target, outdir=str(tmp_path / "pulled"))
    assert Path(found[0]).read_bytes() == data
