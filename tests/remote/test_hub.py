"""The remote on the Hugging Face Hub, over a hub on loopback."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deltareg.catalog import Registry
from deltareg.checkpoint import Hub
from deltareg.digest import Digest, sha256
from deltareg.errors import (
    BadManifest,
    BadName,
    DigestMismatch,
    HubUnavailable,
    InvalidArgument,
    NotAllowed,
    NotFound,
    RemoteUnavailable,
    UnsupportedFormat,
    UsageError,
    VersionExists,
)
from deltareg.manifest import DeltaConfig, Descriptor, Manifest, encode, parse
from deltareg.names import Reference, parse_reference
from deltareg.remote import DirectoryRemote, Remote, RemoteEntry, open_remote
from deltareg.remote.bandwidth import Bandwidth
from deltareg.remote.hub import HubRemote
from deltareg.remote.hub.card import card
from deltareg.remote.hub.names import parse_place
from deltareg.store import Store
from deltareg.transfer import pull, push
from tests.contracts.remote_contract import (
    REPOSITORY,
    Counted,
    Interrupted,
    RemoteContract,
    publish,
    publish_manifest,
    send,
    stored,
)
from tests.deltas import add_delta, noise
from tests.deltas import publish as publish_here
from tests.servers.hub_server import READER, WRITER, HubServer, Model, serve_hub

NAME = "acme/search:1.0.0"
PACKS = [noise(900_000, 1), noise(800_000, 2), b"small"]


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serve_hub() as running:
        yield running


@pytest.fixture
def remote(server: HubServer) -> HubRemote:
    return HubRemote("hf://acme", Hub(endpoint=server.url, token=WRITER))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry with acme/search:1.0.0."""
    made = Registry(tmp_path / "home")
    publish_here(made.store, NAME, PACKS)
    return made


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(tmp_path / "local")


def model_of(server: HubServer, name: str = "acme/search") -> Model:
    return server.models[name]


def front_matter(model: Model) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", model.files["README.md"].decode(), re.DOTALL)
    assert found is not None
    return yaml.safe_load(found[1])


def with_token(server: HubServer, token: str | None) -> HubRemote:
    return HubRemote("hf://acme", Hub(endpoint=server.url, token=token))


class TestHubRemote(RemoteContract):
    @pytest.fixture
    def remote(self, server: HubServer) -> Iterator[Remote]:
        self.hub = Hub(endpoint=server.url, token=WRITER)
        yield HubRemote("hf://Team", self.hub)

    def another(self, remote: Remote) -> Remote:
        return HubRemote(remote.url, self.hub)

    def shown(self, remote: Remote, local: Store, blob: Descriptor) -> None:
        publish_manifest(remote, local, "acme/search:0.0.1", add_delta(local, [local.read(Digest(blob.digest))]))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "delta", "repository"),
    [
        ("hf://acme", "acme/search", "acme/search"),
        ("hf://Acme", "acme/search", "Acme/search"),
        ("hf://team", "acme/search", "team/acme__search"),
        ("hf://team", "a.b/c_d-e", "team/a.b__c_d-e"),
        ("hf://acme/deltas", "acme/search", "acme/deltas__acme__search"),
        ("hf://team/deltas", "acme/search", "team/deltas__acme__search"),
    ],
)
def test_delta_has_one_repository_and_that_leads_back(url: str, delta: str, repository: str) -> None:
    place = parse_place(url)
    assert place.repository_of(delta) == repository
    assert place.delta_of(repository) == delta


@pytest.mark.parametrize(
    ("url", "repository"),
    [
        ("hf://acme", "acme/acme__search"),  # its own namespace is not written
        ("hf://acme", "acme/deltas__acme__search"),  # another remote's, with a prefix
        ("hf://acme", "acme/Search"),
        ("hf://acme", "other/search"),
        ("hf://acme/deltas", "acme/search"),
        ("hf://acme/deltas", "acme/other__acme__search"),
    ],
)
def test_repository_of_something_else_is_nobodys_delta(url: str, repository: str) -> None:
    assert parse_place(url).delta_of(repository) is None


@pytest.mark.parametrize(
    "url",
    ["hf://", "hf:///x", "hf://a b", "hf://a--b", "hf://acme/a/b", "hf://acme/A", "hf://acme?x=1", "hf://acme#main"],
)
def test_what_is_no_place_on_the_hub_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no remote on the Hub") as caught:
        open_remote(url)
    assert "hf://owner/prefix" in str(caught.value.hint)


def test_name_that_is_too_long_for_the_hub_is_refused(remote: HubRemote) -> None:
    with pytest.raises(BadName, match="the Hub does not take the name"):
        remote.list(f"{'n' * 60}/{'m' * 60}")
    with pytest.raises(BadName, match=r"ends in \.git|does not take"):
        remote.list("acme/search.git")


# --- what lies in a repository ----------------------------------------------------------------------------------------


def test_publish_is_one_commit_of_an_image_layout_and_a_model_card(
    server: HubServer, remote: HubRemote, registry: Registry
) -> None:
    push(registry, NAME, remote)
    model = model_of(server)
    assert len(model.commits) == 3  # the Hub's own, the founding, the version
    files = model.files
    manifest = parse(Manifest, registry.store.read(registry.resolve(NAME)), what="test")
    blobs = {f"blobs/sha256/{digest[7:]}" for digest in [registry.resolve(NAME), *(b.digest for b in manifest.blobs)]}
    assert files.keys() == blobs | {".gitattributes", "README.md", "index.json", "oci-layout"}
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (named,) = json.loads(files["index.json"])["manifests"]
    assert named["annotations"]["org.opencontainers.image.ref.name"] == NAME
    assert b"*.safetensors filter=lfs" in files[".gitattributes"]
    assert front_matter(model) == {
        "base_model": "acme/base",
        "base_model_relation": "finetune",
        "library_name": "deltareg",
        "license": "apache-2.0",
        "tags": ["deltareg"],
    }
    card = files["README.md"].decode()
    assert f"deltareg pull {NAME} --remote hub" in card and "deltareg remote add hub hf://acme" in card


def test_pushed_delta_is_pulled_by_another(
    server: HubServer, remote: HubRemote, registry: Registry, tmp_path: Path
) -> None:
    push(registry, NAME, remote)
    other = Registry(tmp_path / "other")
    report = pull(other, "acme/search", with_token(server, READER))
    assert report.reference == NAME
    assert other.resolve(NAME) == registry.resolve(NAME)
    assert other.store.fsck().faults == []


def test_new_repositories_are_private_unless_the_url_says_otherwise(server: HubServer, local: Store) -> None:
    hub = Hub(endpoint=server.url, token=WRITER)
    publish(HubRemote("hf://acme", hub), local, "acme/hidden:1.0.0")
    publish(HubRemote("hf://acme?visibility=public", hub), local, "acme/shown:1.0.0")
    assert {name: model.private for name, model in server.models.items()} == {
        "acme/hidden": True,
        "acme/shown": False,
    }
    assert [str(entry.reference) for entry in with_token(server, None).list()] == ["acme/shown:1.0.0"]
    with pytest.raises(NotFound):
        with_token(server, None).resolve(parse_reference("acme/hidden"))


def test_repository_of_another_model_is_left_alone(server: HubServer, remote: HubRemote, registry: Registry) -> None:
    model = server.models["acme/search"] = Model(private=False)
    model.commit({"README.md": b"mine", "model.safetensors": b"weights"})
    with pytest.raises(NotAllowed, match="no delta's repository") as caught:
        push(registry, NAME, remote)
    assert "hf://owner/prefix" in str(caught.value.hint)
    assert model.files == {"README.md": b"mine", "model.safetensors": b"weights"}
    push(registry, NAME, HubRemote("hf://acme/deltas", Hub(endpoint=server.url, token=WRITER)))
    assert "acme/deltas__acme__search" in server.models


def test_model_card_of_its_owners_own_is_kept(server: HubServer, remote: HubRemote, local: Store) -> None:
    publish(remote, local, NAME)
    model = model_of(server)
    model.commit({**model.files, "README.md": b"---\ntags: [deltareg]\n---\nMine."})
    publish(remote, local, "acme/search:1.1.0", [b"other"])
    assert model.files["README.md"] == b"---\ntags: [deltareg]\n---\nMine."
    assert len(remote.list()) == 2


def test_model_card_tells_of_the_latest_version_that_is_not_yanked(
    server: HubServer, remote: HubRemote, local: Store
) -> None:
    publish(remote, local, NAME)
    publish(remote, local, "acme/search:1.1.0", [b"other"])
    publish(remote, local, "acme/search:0.9.0", [b"old"])
    model = model_of(server)
    assert b"| version | `1.1.0` |" in model.files["README.md"]
    remote.yank(parse_reference("acme/search:1.1.0"), "wrong | tokenizer")
    assert b"| version | `1.0.0` |" in model.files["README.md"]
    remote.yank(parse_reference("acme/search:0.9.0"), "old")
    remote.yank(parse_reference(NAME), "wrong too")
    assert "**This version is yanked:** wrong · tokenizer" in model.files["README.md"].decode()


def test_files_lie_beside_the_latest_version_alone(
    server: HubServer, remote: HubRemote, local: Store, tmp_path: Path
) -> None:
    def files(version: str, *names: str) -> None:
        made = {name: tmp_path / name for name in names}
        for path in made.values():
            path.write_text(version)
        remote.put_files(parse_reference(f"acme/search:{version}"), made)
        publish(remote, local, f"acme/search:{version}", [version.encode()])

    model = lambda: model_of(server)  # noqa: E731
    files("1.0.0", "adapter_config.json", "adapter_model.safetensors")
    assert model().files["adapter_config.json"] == b"1.0.0"
    assert front_matter(model())["base_model_relation"] == "adapter"
    assert "peft" in front_matter(model())["tags"]
    files("0.9.0", "adapter_config.json")
    assert model().files["adapter_config.json"] == b"1.0.0"
    files("1.1.0", "adapter_config.json")
    assert model().files["adapter_config.json"] == b"1.1.0" and "adapter_model.safetensors" not in model().files
    publish(remote, local, "acme/search:2.0.0", [b"2"])
    assert "adapter_config.json" not in model().files
    assert front_matter(model())["base_model_relation"] == "finetune"


def test_files_beside_are_made_once_and_only_where_they_are_shown(
    server: HubServer, remote: HubRemote, registry: Registry, tmp_path: Path
) -> None:
    made: list[str] = []

    def beside(name: Reference, folder: Path) -> dict[str, Path]:
        made.append(str(name))
        (folder / "adapter_config.json").write_text("{}")
        return {"adapter_config.json": folder / "adapter_config.json"}

    (tmp_path / "shared").mkdir()
    push(registry, NAME, DirectoryRemote(tmp_path / "shared"), beside=beside)
    push(registry, NAME, remote, beside=beside, dry_run=True)
    assert made == []
    for _ in range(2):
        push(registry, NAME, remote, beside=beside)
    assert made == [NAME]
    assert model_of(server).files["adapter_config.json"] == b"{}"


@pytest.mark.parametrize(
    ("base", "linked"),
    [("hf://acme/base", "acme/base"), ("my-base", None), ("hf://a b", None), ("hf://x/y\n- z", None)],
)
def test_card_links_only_to_a_base_that_can_be_on_the_hub(local: Store, base: str, linked: str | None) -> None:
    manifest = parse(Manifest, add_delta(local), what="test")
    config = parse(DeltaConfig, local.read(Digest(manifest.config.digest)), what="test")
    config = config.model_copy(update={"base": config.base.model_copy(update={"id": base})})
    entry = RemoteEntry(parse_reference(NAME), sha256(b"x"), 1, "")
    text = card(entry, manifest, config, "hf://acme", [])
    front = yaml.safe_load(text.decode().split("---\n")[1])
    assert front.get("base_model") == linked


@pytest.mark.parametrize("name", ["index.json", "README.md", "blobs/x", "../x", ".gitattributes"])
def test_file_beside_a_version_takes_no_place_of_the_layout(remote: HubRemote, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InvalidArgument, match="beside a version"):
        remote.put_files(parse_reference(NAME), {name: tmp_path / "file"})


# --- two at once ------------------------------------------------------------------------------------------------------


def test_commit_that_came_first_is_kept(server: HubServer, remote: HubRemote, local: Store) -> None:
    publish(remote, local, NAME)
    other = with_token(server, WRITER)
    server.before_commit = lambda: publish(other, local, "acme/search:1.1.0", [b"other"])
    publish(remote, local, "acme/search:1.2.0", [b"third"])
    assert [entry.reference.tag for entry in remote.list("acme/search")] == ["1.0.0", "1.1.0", "1.2.0"]


def test_of_two_that_publish_one_version_the_second_is_refused(
    server: HubServer, remote: HubRemote, local: Store
) -> None:
    publish(remote, local, NAME)
    other = with_token(server, WRITER)
    server.before_commit = lambda: publish(other, local, "acme/search:1.1.0", [b"other"])
    with pytest.raises(VersionExists, match="at hf://acme"):
        publish(remote, local, "acme/search:1.1.0", [b"third"])


def test_endless_changes_by_others_end_in_an_error(server: HubServer, registry: Registry, local: Store) -> None:
    pauses: list[float] = []
    remote = HubRemote("hf://acme", Hub(endpoint=server.url, token=WRITER), pause=pauses.append)
    publish(remote, local, NAME)
    server.refuse = ("POST .*/commit/", 412, {})
    with pytest.raises(RemoteUnavailable, match="changed by others all the time"):
        remote.yank(parse_reference(NAME), "wrong")
    assert 5 < len(pauses) < 20 and max(pauses) <= 5


# --- transfers that break ---------------------------------------------------------------------------------------------


def test_cut_push_sends_only_the_blobs_that_are_missing(
    server: HubServer, remote: HubRemote, registry: Registry
) -> None:
    with pytest.raises(Interrupted):
        push(registry, NAME, remote, threads=1, progress=Counted(1_000_000))
    assert remote.list() == []
    before = server.count("PUT")
    report = push(registry, NAME, with_token(server, WRITER), threads=1)
    assert report.bytes < 900_000
    assert server.count("PUT") - before < report.blobs


def test_upload_that_breaks_off_is_made_anew(server: HubServer, remote: HubRemote, local: Store) -> None:
    blob = stored(local, noise(3_000_000))
    server.cut_uploads = 1
    counted = Counted()
    assert send(remote, local, blob, counted) == 3_000_000
    assert counted.total == 3_000_000
    assert model_of(server).large[blob.digest[7:]] == noise(3_000_000)


def test_large_blob_goes_in_parts(server: HubServer, remote: HubRemote, local: Store) -> None:
    server.part_size = 1_000_000
    blob = stored(local, noise(2_500_000))
    counted = Counted()
    assert send(remote, local, blob, counted) == counted.total == 2_500_000
    assert server.count(r"PUT .*/[123]$") == 3
    assert model_of(server).large[blob.digest[7:]] == noise(2_500_000)


def test_blobs_that_the_hub_lost_before_the_commit_are_sent_again(
    server: HubServer, remote: HubRemote, registry: Registry
) -> None:
    remote.put_blob(REPOSITORY, stored(registry.store, b"x"), registry.store.path(sha256(b"x")), Counted())
    server.before_commit = lambda: model_of(server).large.clear()
    report = push(registry, NAME, remote)
    assert report.moved == 2 * report.blobs
    assert [str(entry.reference) for entry in remote.list()] == [NAME]


def test_blob_of_other_bytes_in_its_place_counts_as_missing(server: HubServer, remote: HubRemote, local: Store) -> None:
    _, manifest = publish(remote, local, NAME)
    model = model_of(server)
    one, two = (f"blobs/sha256/{blob.digest[7:]}" for blob in parse(Manifest, manifest, what="test").blobs[:2])
    model.commit({**model.files, one: model.files[two]})
    assert remote.missing(REPOSITORY, [Digest(f"sha256:{one[13:]}")]) == {f"sha256:{one[13:]}"}


def test_wrong_bytes_from_the_cdn_are_refused(
    server: HubServer, remote: HubRemote, registry: Registry, tmp_path: Path
) -> None:
    push(registry, NAME, remote)
    server.cdn.damage = True
    other = Registry(tmp_path / "other")
    with pytest.raises(DigestMismatch):
        pull(other, NAME, remote)
    assert other.store.entries() == []


def test_download_that_breaks_off_goes_on_where_it_was(server: HubServer, remote: HubRemote, local: Store) -> None:
    data = noise(2_000_000)
    publish_manifest(remote, local, NAME, add_delta(local, [data]))
    server.cdn.cuts = 2
    blob = stored(local, data)
    assert b"".join(remote.get_blob(REPOSITORY, blob, 5)) == data[5:]


def test_token_is_shown_to_the_hub_and_not_to_the_cdn(
    server: HubServer, remote: HubRemote, registry: Registry, tmp_path: Path
) -> None:
    push(registry, NAME, remote)
    pull(Registry(tmp_path / "other"), NAME, remote)
    assert server.cdn.authorised and set(server.cdn.authorised) == {None}
    assert f"Bearer {WRITER}" in server.authorised


def test_branch_that_is_forced_elsewhere_does_not_change_what_was_resolved(
    server: HubServer, remote: HubRemote, local: Store
) -> None:
    digest, manifest = publish(remote, local, NAME, [b"first"])
    client = with_token(server, READER)
    assert client.resolve(parse_reference("acme/search")) == digest
    model = model_of(server)
    model.rewrite({".gitattributes": model.files[".gitattributes"]})
    assert client.get_manifest(REPOSITORY, digest) == manifest
    for blob in parse(Manifest, manifest, what="test").blobs:
        assert b"".join(client.get_blob(REPOSITORY, blob, 0)) == local.read(Digest(blob.digest))
    with pytest.raises(NotFound):
        with_token(server, READER).get_manifest(REPOSITORY, digest)


def test_blob_that_came_after_what_was_resolved_is_found(server: HubServer, remote: HubRemote, local: Store) -> None:
    publish(remote, local, NAME)
    client = with_token(server, READER)
    client.resolve(parse_reference(NAME))
    second, manifest = publish(remote, local, "acme/search:1.1.0", [b"other"])
    assert client.get_manifest(REPOSITORY, second) == manifest


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [READER, None, "hf_wrong"])
def test_token_that_may_not_write_is_refused_with_what_to_do(
    server: HubServer, remote: HubRemote, registry: Registry, token: str | None, tmp_path: Path
) -> None:
    client = with_token(server, token)
    with pytest.raises(NotAllowed) as caught:
        push(registry, NAME, client)
    assert caught.value.exit_code == 4
    assert "hf auth login" in str(caught.value.hint)
    assert server.models == {}


def test_capabilities_tell_who_may_write(server: HubServer) -> None:
    assert with_token(server, WRITER).capabilities().writable
    assert not with_token(server, READER).capabilities().writable
    assert not with_token(server, None).capabilities().writable
    assert not HubRemote("hf://someone", Hub(endpoint=server.url, token=WRITER)).capabilities().writable
    with pytest.raises(NotAllowed, match="does not let you"):
        with_token(server, "hf_wrong").capabilities()


def test_published_version_is_not_changed_by_a_reader(server: HubServer, remote: HubRemote, local: Store) -> None:
    publish(remote, local, NAME)
    client = with_token(server, READER)
    with pytest.raises(NotAllowed, match="does not let you write to hf://acme/search"):
        client.yank(parse_reference(NAME), "wrong")
    assert [entry.yanked for entry in remote.list()] == [None]


def test_gated_repository_says_how_to_get_in(server: HubServer, remote: HubRemote, local: Store) -> None:
    publish(remote, local, NAME)
    model_of(server).gated = True
    with pytest.raises(NotAllowed, match="is gated") as caught:
        with_token(server, READER).resolve(parse_reference(NAME))
    assert "accept its conditions" in str(caught.value.hint)


def test_limit_on_requests_says_how_long_to_wait(server: HubServer, remote: HubRemote, local: Store) -> None:
    publish(remote, local, NAME)
    server.refuse = ("POST .*/commit/", 429, {"Retry-After": "7"})
    with pytest.raises(HubUnavailable, match="asked too often") as caught:
        remote.yank(parse_reference(NAME), "wrong")
    assert "wait 7 seconds" in str(caught.value.hint)


def test_hub_that_does_not_answer_is_unavailable(local: Store) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    remote = HubRemote("hf://acme", Hub(endpoint=f"http://127.0.0.1:{port}", token=WRITER))
    for call in (
        lambda: remote.capabilities(),
        lambda: remote.resolve(parse_reference(NAME)),
        lambda: remote.missing(REPOSITORY, [sha256(b"x")]),
        lambda: remote.yank(parse_reference(NAME), "wrong"),
        lambda: send(remote, local, stored(local, b"x")),
    ):
        with pytest.raises(RemoteUnavailable, match="could not be reached") as caught:
            call()
        assert caught.value.exit_code == 6


def test_hub_that_does_not_answer_is_told_without_a_token_too(server: HubServer) -> None:
    server.refuse = ("GET", 503, {})
    with pytest.raises(RemoteUnavailable):
        with_token(server, None).capabilities()


def test_limit_of_bandwidth_holds_both_ways(server: HubServer, local: Store) -> None:
    waited: list[float] = []
    limit = Bandwidth(1_000_000, clock=lambda: 0.0, sleep=waited.append)
    remote = HubRemote("hf://acme", Hub(endpoint=server.url, token=WRITER), bandwidth=limit)
    data = noise(3_000_000)
    blob = stored(local, data)
    send(remote, local, blob)
    assert 2.8 < max(waited) < 3.2
    publish_manifest(remote, local, NAME, add_delta(local, [data]))
    waited.clear()
    assert b"".join(remote.get_blob(REPOSITORY, blob, 0)) == data
    assert max(waited) - min(waited) > 2.8


def test_error_of_the_server_is_unavailable(server: HubServer, remote: HubRemote) -> None:
    server.refuse = ("GET /api/models/", 500, {})
    with pytest.raises(RemoteUnavailable, match="the hub refused"):
        remote.resolve(parse_reference(NAME))


def test_layout_of_another_version_is_not_read(server: HubServer, remote: HubRemote, local: Store) -> None:
    publish(remote, local, NAME)
    model = model_of(server)
    model.commit({**model.files, "oci-layout": b'{"imageLayoutVersion":"2.0.0"}'})
    with pytest.raises(UnsupportedFormat, match=r"version 1\.0\.0"):
        remote.list("acme/search")


@pytest.mark.parametrize("index", [None, b"{", b"[]"])
def test_index_that_is_gone_or_damaged_is_told(
    server: HubServer, remote: HubRemote, local: Store, index: bytes | None
) -> None:
    publish(remote, local, NAME)
    model = model_of(server)
    kept = {path: data for path, data in model.files.items() if path != "index.json"}
    model.commit(kept if index is None else {**kept, "index.json": index})
    with pytest.raises(BadManifest, match=r"index\.json"):
        remote.resolve(parse_reference(NAME))


def test_version_whose_config_is_gone_can_still_be_yanked(server: HubServer, remote: HubRemote, local: Store) -> None:
    _, manifest = publish(remote, local, NAME)
    model = model_of(server)
    config = f"blobs/sha256/{parse(Manifest, manifest, what='test').config.digest[7:]}"
    model.commit({path: data for path, data in model.files.items() if path != config})
    remote.yank(parse_reference(NAME), "broken")
    assert [entry.yanked for entry in remote.list()] == ["broken"]


def test_config_from_another_program_is_not_published(remote: HubRemote, local: Store) -> None:
    manifest = parse(Manifest, add_delta(local), what="test")
    foreign = manifest.config.model_copy(update={"media_type": "application/json"})
    for blob in manifest.blobs:
        send(remote, local, blob)
    with pytest.raises(UnsupportedFormat, match="unknown type"):
        remote.put_manifest(parse_reference(NAME), encode(manifest.model_copy(update={"config": foreign})))
    assert remote.list() == []
