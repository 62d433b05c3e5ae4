"""OCI registries as remotes: the contract, before a real registry."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
import stamina

from deltareg.catalog import Registry
from deltareg.digest import Digest, sha256
from deltareg.errors import BadManifest, DigestMismatch, NotAllowed, RemoteUnavailable, UsageError
from deltareg.manifest import MANIFEST_TYPE, Descriptor, encode
from deltareg.names import parse_reference
from deltareg.remote import DirectoryRemote, Network, Remote
from deltareg.remote.credentials import Credentials, Secret
from deltareg.remote.logins import log_in, log_out
from deltareg.remote.oci import EMPTY, AnyManifest
from deltareg.remote.oci_remote import OciRemote
from deltareg.store import Store
from deltareg.transfer import pull, push
from tests.contracts.remote_contract import (
    REPOSITORY,
    Counted,
    Interrupted,
    RemoteContract,
    publish,
    received,
    send,
    stored,
)
from tests.deltas import add_delta, flip, noise
from tests.servers.docker_registry import DockerRegistry, serve_docker_registry
from tests.servers.nginx import serve_nginx

_NUMBERS = count()


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with serve_docker_registry() as running:
        yield running


@pytest.fixture(scope="module")
def keeping_registry() -> Iterator[DockerRegistry]:
    """One that deletes nothing."""
    with serve_docker_registry(deletion=False) as running:
        yield running


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "state"))


class TestOciRemote(RemoteContract):
    @pytest.fixture
    def remote(self, registry: DockerRegistry) -> Iterator[Remote]:
        # Each test has a prefix of its own: a registry takes longer to start than a test to run.
        yield OciRemote(f"oci+http://{registry.host}/test-{next(_NUMBERS)}")

    def another(self, remote: Remote) -> Remote:
        return OciRemote(remote.url)


class TestOciRemoteThatDeletesNothing:
    """Only what takes something back is done in another way there."""

    @pytest.fixture
    def remote(self, keeping_registry: DockerRegistry) -> Remote:
        return OciRemote(f"oci+http://{keeping_registry.host}/test-{next(_NUMBERS)}")

    @pytest.fixture
    def local(self, tmp_path: Path) -> Store:
        return Store(tmp_path / "local")

    another = TestOciRemote.another
    test_channel = RemoteContract.test_channel_is_set_moved_and_removed
    test_yank = RemoteContract.test_yanked_version_is_listed_as_such_and_skipped_by_latest
    test_reasons = RemoteContract.test_another_reason_takes_the_place_of_the_first
    test_only_versions = RemoteContract.test_only_versions_that_are_there_are_yanked


# --- what interrupts uploads ---


@pytest.fixture
def remote(registry: DockerRegistry) -> OciRemote:
    return OciRemote(f"oci+http://{registry.host}/test-{next(_NUMBERS)}")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(tmp_path / "local")


def test_upload_of_a_killed_process_is_gone_on_with(remote: OciRemote, local: Store) -> None:
    data = noise(8_000_000)
    blob = stored(local, data)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            send(OciRemote(remote.url), local, blob, Killing(4_000_000))
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert send(remote, local, blob) < 6_000_000
    assert received(remote, blob) == data


class Killing(Counted):
    """Kills the process."""

    def advance(self, count: int) -> None:
        try:
            super().advance(count)
        except Interrupted:
            os.kill(os.getpid(), signal.SIGKILL)


def test_upload_that_the_registry_forgot_is_begun_anew(remote: OciRemote, local: Store, tmp_path: Path) -> None:
    data = noise(6_000_000)
    blob = stored(local, data)
    with pytest.raises(Interrupted):
        send(remote, local, blob, Counted(3_000_000))
    (note,) = (tmp_path / "state").rglob("uploads/*")
    assert note.stat().st_mode & 0o777 == 0o600
    note.write_text(note.read_text().replace("?_state=", "?_state=x"))
    assert send(remote, local, blob) == len(data)
    assert received(remote, blob) == data
    assert not note.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"location": 7}', '{"location": "ftp://host/x"}', "\udcff"])
def test_damaged_note_of_an_upload_is_no_error(remote: OciRemote, local: Store, tmp_path: Path, text: str) -> None:
    data = noise(3_000_000)
    blob = stored(local, data)
    with pytest.raises(Interrupted):
        send(remote, local, blob, Counted(1_000_000))
    (note,) = (tmp_path / "state").rglob("uploads/*")
    note.write_bytes(text.encode(errors="surrogateescape"))
    send(remote, local, blob)
    assert received(remote, blob) == data


def test_source_that_changed_since_is_begun_anew(remote: OciRemote, local: Store) -> None:
    data = noise(6_000_000)
    blob = stored(local, data)
    path = local.path(Digest(blob.digest))
    flip(path, 80)
    with pytest.raises(Interrupted):
        send(remote, local, blob, Counted(3_000_000))
    path.write_bytes(data)
    counted = Counted()
    assert send(remote, local, blob, counted) > len(data) // 2
    assert counted.total == len(data)
    assert received(remote, blob) == data


def test_no_place_for_notes_is_no_error(
    remote: OciRemote, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    blob = stored(local, noise(100_000))
    assert send(OciRemote(remote.url), local, blob) == 100_000


def test_blob_that_another_repository_has_is_not_sent_again(remote: OciRemote, local: Store) -> None:
    blob = stored(local, noise(1_000_000))
    assert send(remote, local, blob) == 1_000_000
    counted = Counted()
    assert send(remote, local, blob, counted, repository="acme/other") == 0
    assert counted.total == 1_000_000
    assert remote.missing("acme/other", [Digest(blob.digest)]) == set()


# --- names of others ---


def test_tags_of_other_programs_are_left_alone(remote: OciRemote, local: Store, registry: DockerRegistry) -> None:
    digest, manifest = publish(remote, local, "acme/search:1.0.0")
    path = f"{registry.url}/v2/{remote.url.rpartition('/')[2]}/acme/search/manifests"
    foreign = manifest.replace(b"vnd.deltareg.delta.v1", b"vnd.acme.other.thing")
    for tag, body in (("latest", manifest), ("2.0.0", foreign), ("_yanked.1.0.0", foreign), ("V1", manifest)):
        headers = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        request = urllib.request.Request(f"{path}/{tag}", body, headers, method="PUT")
        urllib.request.urlopen(request).close()
    (entry,) = remote.list("acme/search")
    assert (str(entry.reference), entry.digest, entry.yanked) == ("acme/search:1.0.0", digest, None)


def test_names_outside_the_prefix_are_not_listed(remote: OciRemote, local: Store, registry: DockerRegistry) -> None:
    publish(remote, local, "acme/search:1.0.0")
    other = OciRemote(f"oci+http://{registry.host}/{remote.url.rpartition('/')[2]}-other")
    assert other.list() == []
    assert [str(entry.reference) for entry in remote.list()] == ["acme/search:1.0.0"]


def test_read_only_registry_is_read_and_not_written(local: Store) -> None:
    with serve_docker_registry(read_only=True) as registry:
        remote = OciRemote(f"oci+http://{registry.host}")
        assert remote.list() == []
        with pytest.raises(NotAllowed):
            send(remote, local, stored(local, b"bytes"))


def test_registry_that_is_not_there_is_unavailable(local: Store) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        remote = OciRemote(f"oci+http://127.0.0.1:{free.getsockname()[1]}/x")
    with stamina.set_testing(True, attempts=2):
        for call in (remote.capabilities, remote.list, lambda: send(remote, local, stored(local, b"bytes"))):
            with pytest.raises(RemoteUnavailable):
                call()


# --- logins ---


@pytest.fixture(scope="module")
def closed_registry() -> Iterator[DockerRegistry]:
    with serve_docker_registry(users={"ann": "right"}) as running:
        yield running


def test_registry_that_asks_for_a_password_gets_that_of_docker(
    closed_registry: DockerRegistry, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logged_in(password: str) -> OciRemote:
        packed = base64.b64encode(f"ann:{password}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {closed_registry.host: {"auth": packed}}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        return OciRemote(f"oci+http://{closed_registry.host}/deltas")

    remote = logged_in("right")
    digest, _ = publish(remote, local, "acme/search:1.0.0")
    assert remote.resolve(parse_reference("acme/search")) == digest
    with pytest.raises(NotAllowed) as raised:
        logged_in("wrong-password").list("acme/search")
    assert "deltareg login oci+http://" in (raised.value.hint or "")
    assert "wrong-password" not in str(raised.value.as_dict())
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    with pytest.raises(NotAllowed):
        OciRemote(f"oci+http://{closed_registry.host}/deltas").list()


def test_login_is_tried_and_kept_for_that_registry_alone(closed_registry: DockerRegistry, tmp_path: Path) -> None:
    url = f"oci+http://{closed_registry.host}/deltas"
    with pytest.raises(NotAllowed):
        log_in(url, Secret("wrong", "ann"), Network())
    assert Credentials().find(f"oci+http://{closed_registry.host}") is None
    report = log_in(url, Secret("right", "ann"), Network())
    assert (report.user, report.checked) == ("ann", True)
    OciRemote(url).list()
    with pytest.raises(UsageError, match="user name"):
        log_in(url, Secret("token"), Network())
    assert log_out(url).forgotten
    with pytest.raises(NotAllowed):
        OciRemote(url).list()


def test_login_at_a_registry_that_asks_nobody_is_told_to_be_untried(registry: DockerRegistry) -> None:
    assert not log_in(f"oci+http://{registry.host}", Secret("any", "ann"), Network()).checked


# --- with other programs ---


def test_version_travels_between_two_homes_by_way_of_a_registry(remote: OciRemote, tmp_path: Path) -> None:
    mine, theirs = Registry(tmp_path / "mine"), Registry(tmp_path / "theirs")
    store = mine.store
    digest = store.publish(parse_reference("acme/search:1.0.0"), add_delta(store, [noise(3_000_000), b"small"]))
    report = push(mine, "acme/search:1.0.0", remote)
    assert (report.moved, report.dry_run) == (report.blobs, False)
    assert push(mine, "acme/search:1.0.0", remote).moved == 0
    remote.yank(parse_reference("acme/search:1.0.0"), "wrong")
    assert pull(theirs, "acme/search", OciRemote(remote.url)).digest == digest
    assert theirs.store.fsck().ok
    assert [entry.yanked for entry in theirs.store.entries()] == ["wrong"]


def test_skopeo_copies_to_and_from_what_a_push_made(
    remote: OciRemote, local: Store, registry: DockerRegistry, tmp_path: Path
) -> None:
    program = shutil.which("skopeo")
    if program is None:
        pytest.skip("skopeo is not on this machine (Debian: apt-get install skopeo)")
    digest, manifest = publish(remote, local, "acme/search:1.0.0", [noise(200_000)])
    image = f"docker://{registry.host}/{remote.url.rpartition('/')[2]}/acme/search:1.0.0"
    shown = subprocess.run(
        [program, "inspect", "--raw", "--tls-verify=false", image], capture_output=True, check=True
    ).stdout
    assert shown == manifest
    layout = f"oci:{tmp_path / 'layout'}:acme/search:1.0.0"
    command = [program, "--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"]
    subprocess.run([*command, image, layout], capture_output=True, check=True)
    goal = image.replace("acme/search", "acme/copied")
    subprocess.run([*command, layout, goal], capture_output=True, check=True)
    assert remote.resolve(parse_reference("acme/copied:1.0.0")) == digest
    assert DirectoryRemote(tmp_path / "layout").resolve(parse_reference("acme/search:1.0.0")) == digest


def test_referrers_are_found_where_the_registry_has_no_api_for_them(remote: OciRemote, local: Store) -> None:
    subject, manifest = publish(remote, local, "acme/search:1.0.0")
    send(remote, local, stored(local, b"{}"))
    about = Descriptor(media_type=MANIFEST_TYPE, digest=subject, size=len(manifest))
    made = []
    for kind in ("application/vnd.acme.scan", "application/vnd.acme.other"):
        document = AnyManifest(artifact_type=kind, config=EMPTY, layers=[EMPTY], subject=about)
        made.append(remote.put_referrer(REPOSITORY, encode(document)))
        assert remote.put_referrer(REPOSITORY, encode(document)) == made[-1]
    again = OciRemote(remote.url)
    assert [one.digest for one in again.referrers(REPOSITORY, subject)] == made
    assert [one.digest for one in again.referrers(REPOSITORY, subject, "application/vnd.acme.scan")] == made[:1]
    assert again.referrers(REPOSITORY, sha256(b"nothing")) == []
    assert len(again.list(REPOSITORY)) == 1
    with pytest.raises(BadManifest):
        remote.put_referrer(REPOSITORY, manifest)


# --- proxies before a registry ---


@pytest.mark.parametrize(
    "rule", ["client_max_body_size 300k;", "if ($request_method = PATCH) { return 405; } client_max_body_size 0;"]
)
def test_proxy_that_takes_little_or_no_chunks_is_coped_with(registry: DockerRegistry, local: Store, rule: str) -> None:
    server = f"location / {{ {rule} proxy_pass {registry.url}; proxy_set_header Host $http_host; }}"
    with serve_nginx(server) as url:
        remote = OciRemote(f"{url.replace('http:', 'oci+http:')}/test-{next(_NUMBERS)}")
        data = noise(2_000_000)
        blob = stored(local, data)
        counted = Counted()
        assert send(remote, local, blob, counted) == counted.total == len(data)
        assert received(remote, blob) == data
        flip(local.path(Digest(blob.digest)), 80)
        with pytest.raises(DigestMismatch):
            send(OciRemote(remote.url), local, blob, repository="acme/other")


def test_proxy_that_takes_neither_chunks_nor_the_whole_is_told_at_once(registry: DockerRegistry, local: Store) -> None:
    rule = "if ($request_method = PATCH) { return 405; } client_max_body_size 300k;"
    server = f"location / {{ {rule} proxy_pass {registry.url}; proxy_set_header Host $http_host; }}"
    with serve_nginx(server) as url:
        remote = OciRemote(f"{url.replace('http:', 'oci+http:')}/test-{next(_NUMBERS)}")
        blob = stored(local, noise(2_000_000))
        with pytest.raises(NotAllowed, match="413"):
            send(remote, local, blob)
