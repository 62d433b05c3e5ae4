"""Static mirrors behind a real web server and in a real object store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import stamina

from deltareg.catalog import Registry
from deltareg.digest import Digest, sha256
from deltareg.errors import (
    BadManifest,
    DigestMismatch,
    NotAllowed,
    NotFound,
    RemoteUnavailable,
    SignatureMissing,
    SignatureUntrusted,
    UnsupportedFormat,
    UsageError,
)
from deltareg.manifest import Manifest, parse
from deltareg.mirroring import mirror as make_mirror
from deltareg.names import parse_reference
from deltareg.progress import Progress
from deltareg.remote import Remote, open_remote
from deltareg.remote.credentials import Secret
from deltareg.remote.logins import log_in, log_out, who_am_i
from deltareg.remote.network import Network
from deltareg.signatures import verify_signed
from deltareg.signing import SIGNATURE_TYPE, trusted
from deltareg.store import Store, parse_referrer
from deltareg.transfer import pull, push
from tests.deltas import SCAN, add_delta, add_referrer, descriptor, noise
from tests.keys import KeyPair, make_key, sign
from tests.remote.site import IMPATIENT, Asked, say, serve_site
from tests.servers.nginx import serve_nginx
from tests.servers.object_store import Bucket

REPOSITORY = "acme/search"


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "state"))
    with stamina.set_testing(True, attempts=3):
        yield


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    """The key of the publisher."""
    return make_key(tmp_path_factory.mktemp("acme"), "acme")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, acme: KeyPair) -> Store:
    """What is mirrored. Read only."""
    store = Store(tmp_path_factory.mktemp("origin"))
    for version, packs in (("1.0.0", [noise(5_000_000), b"small"]), ("1.1.0", [b"other"])):
        store.publish(parse_reference(f"{REPOSITORY}:{version}"), add_delta(store, packs))
    store.yank(parse_reference(f"{REPOSITORY}:1.1.0"), "wrong")
    digest = store.resolve(parse_reference(f"{REPOSITORY}:1.0.0"))
    store.set_channel(REPOSITORY, "prod", digest, None)
    sign(store, f"{REPOSITORY}:1.0.0", acme.private)
    store.put_referrer(REPOSITORY, add_referrer(store, digest))
    return store


@pytest.fixture(scope="module")
def nginx(origin: Store) -> Iterator[str]:
    with serve_nginx(f"location /mirror/ {{ alias {origin.root}/; }}") as url:
        yield f"{url}/mirror"


@pytest.fixture(scope="module")
def plain(origin: Store) -> Iterator[str]:
    """A web server that knows neither byte ranges nor ETags."""
    handler = partial(_Quiet, directory=str(origin.root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Tests keep silent."""


@pytest.fixture
def in_bucket(bucket: Bucket, origin: Store) -> str:
    return bucket.upload(origin.root, "mirrors/acme")


@pytest.fixture(params=["nginx", "plain", "in_bucket"])
def mirror(request: pytest.FixtureRequest) -> Remote:
    return open_remote(request.getfixturevalue(request.param))


def test_mirror_tells_all_names(mirror: Remote, origin: Store) -> None:
    assert mirror.list() == origin.entries()
    assert mirror.list(REPOSITORY) == origin.entries()
    assert mirror.list("acme/other") == []
    for name in ("acme/search", "acme/search:latest", "acme/search:1.1.0", "acme/search:prod"):
        assert mirror.resolve(parse_reference(name)) == origin.resolve(parse_reference(name))
    for name in ("acme/search:9.0.0", "acme/other", f"acme/search@{sha256(b'x')}"):
        with pytest.raises(NotFound):
            mirror.resolve(parse_reference(name))


def test_mirror_gives_blobs_from_any_offset(mirror: Remote, origin: Store) -> None:
    data = noise(5_000_000)
    blob = descriptor(data)
    for offset in (0, 1, 4_194_304, len(data) - 1, len(data)):
        assert b"".join(mirror.get_blob(REPOSITORY, blob, offset)) == data[offset:]
    digest = origin.resolve(parse_reference("acme/search"))
    manifest = mirror.get_manifest(REPOSITORY, digest)
    assert sha256(manifest) == digest
    there = [Digest(one.digest) for one in parse(Manifest, manifest, what="test").blobs]
    assert mirror.missing(REPOSITORY, [*there, sha256(b"x")]) == {sha256(b"x")}
    with pytest.raises(NotFound):
        b"".join(mirror.get_blob(REPOSITORY, descriptor(b"absent"), 0))
    with pytest.raises(NotFound):
        mirror.get_manifest(REPOSITORY, sha256(b"absent"))


def test_blob_of_another_size_is_no_match(mirror: Remote) -> None:
    for size in (4_999_999, 5_000_001, 9_000_000):
        blob = descriptor(noise(5_000_000)).model_copy(update={"size": size})
        for offset in (0, 100):
            with pytest.raises(DigestMismatch):
                b"".join(mirror.get_blob(REPOSITORY, blob, offset))


def test_mirror_refuses_all_that_writes(mirror: Remote, origin: Store, tmp_path: Path) -> None:
    assert not mirror.capabilities().writable
    reference = parse_reference("acme/search:1.0.0")
    digest = origin.resolve(reference)
    calls: list[Callable[[], object]] = [
        lambda: mirror.put_blob(REPOSITORY, descriptor(b"x"), tmp_path / "x", Progress()),
        lambda: mirror.put_manifest(reference, b"{}"),
        lambda: mirror.yank(reference, "wrong"),
        lambda: mirror.unyank(reference),
        lambda: mirror.set_channel(REPOSITORY, "prod", digest, None),
        lambda: mirror.remove_channel(REPOSITORY, "prod"),
    ]
    for call in calls:
        with pytest.raises(NotAllowed, match="static mirror") as raised:
            call()
        assert raised.value.exit_code == 4


def test_version_is_pulled_from_a_mirror_and_not_pushed_to_it(mirror: Remote, tmp_path: Path) -> None:
    home = Registry(tmp_path / "home")
    report = pull(home, "acme/search", mirror)
    assert report.reference == "acme/search:1.0.0"
    assert home.store.fsck().ok
    home.store.publish(parse_reference("acme/new:1.0.0"), add_delta(home.store, [b"new"]))
    with pytest.raises(NotAllowed):
        push(home, "acme/new:1.0.0", mirror)


# --- signatures, and what else refers to a version ---


def test_mirror_tells_and_gives_what_refers_to_a_version(mirror: Remote, origin: Store) -> None:
    digest = origin.resolve(parse_reference("acme/search:1.0.0"))
    found = mirror.referrers(REPOSITORY, digest)
    assert found == origin.referrers(REPOSITORY, digest)
    assert sorted(str(one.artifact_type) for one in found) == [SCAN, SIGNATURE_TYPE]
    (scan,) = mirror.referrers(REPOSITORY, digest, SCAN)
    manifest = parse_referrer(mirror.get_manifest(REPOSITORY, Digest(scan.digest)), what="test")
    assert manifest.subject.digest == digest
    assert [b"".join(mirror.get_blob(REPOSITORY, layer, 0)) for layer in manifest.layers] == [b"a scan"]
    assert mirror.referrers(REPOSITORY, digest, "application/spdx+json") == []
    assert mirror.referrers(REPOSITORY, origin.resolve(parse_reference("acme/search:1.1.0"))) == []
    assert mirror.referrers(REPOSITORY, sha256(b"nothing")) == []
    with pytest.raises(NotAllowed, match="static mirror"):
        mirror.put_referrer(REPOSITORY, origin.read(Digest(scan.digest)))


def test_signature_comes_from_a_mirror_and_is_verified(
    mirror: Remote, origin: Store, acme: KeyPair, tmp_path: Path
) -> None:
    signers = [trusted(str(acme.public))]
    digest = origin.resolve(parse_reference("acme/search:1.0.0"))
    there = verify_signed(mirror, "acme/search:1.0.0", signers)
    assert [row.trusted for row in there.signatures] == [str(acme.public)]
    with pytest.raises(SignatureMissing):
        verify_signed(mirror, "acme/search:1.1.0", signers)
    with pytest.raises(SignatureUntrusted):
        verify_signed(mirror, "acme/search:1.0.0", [trusted(str(make_key(tmp_path, "mallory").public))])
    home = Registry(tmp_path / "home")
    report = pull(home, "acme/search:1.0.0", mirror)
    assert (report.referrers, report.warnings) == (2, [])
    assert home.store.referrers(REPOSITORY, digest) == origin.referrers(REPOSITORY, digest)
    assert verify_signed(home, "acme/search:1.0.0", signers).signatures[0].trusted == str(acme.public)


def test_registry_that_is_filled_from_a_mirror_has_the_signatures_too(
    mirror: Remote, origin: Store, tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()
    report = make_mirror(mirror, str(tmp_path / "copy"))
    assert (report.ok, report.count("copied"), report.count("referrer")) == (True, 2, 2)
    digest = origin.resolve(parse_reference("acme/search:1.0.0"))
    assert Store(tmp_path / "copy").referrers(REPOSITORY, digest) == origin.referrers(REPOSITORY, digest)
    assert make_mirror(mirror, str(tmp_path / "copy")).rows == []


# --- what changes, and what does not ---


def test_names_are_read_again_only_where_they_changed(tmp_path: Path) -> None:
    store = Store(tmp_path / "origin")
    store.publish(parse_reference("acme/search:1.0.0"), add_delta(store))
    asked: list[Asked] = []

    def answer(one: Asked, before: int) -> None:
        path = store.root / one.path.lstrip("/")
        data = path.read_bytes() if path.is_file() else b""
        etag = f'"{sha256(data)}"'
        asked.append(one)
        if not path.is_file():
            say(one, 404)
        elif one.headers.get("if-none-match") == etag:
            say(one, 304, headers={"Content-Length": "0"})
        else:
            say(one, 200, data, {"ETag": etag})

    with serve_site(answer) as site:
        mirror = open_remote(site.url, IMPATIENT)
        for _ in range(3):
            assert len(mirror.list()) == 1
        assert [one.headers.get("if-none-match") is not None for one in asked if "index" in one.path] == [
            False,
            True,
            True,
        ]
        store.publish(parse_reference("acme/search:2.0.0"), add_delta(store, [b"new"]))
        assert len(mirror.list()) == 2


def test_names_in_a_bucket_that_change_are_read_again(bucket: Bucket, tmp_path: Path) -> None:
    store = Store(tmp_path / "origin")
    store.publish(parse_reference("acme/search:1.0.0"), add_delta(store))
    mirror = open_remote(bucket.upload(store.root, "m"))
    assert len(mirror.list()) == len(mirror.list()) == 1
    store.publish(parse_reference("acme/search:2.0.0"), add_delta(store, [b"new"]))
    bucket.upload(store.root, "m")
    assert len(mirror.list()) == 2


# --- what is no mirror ---


@pytest.mark.parametrize("scheme", ["s3"])
def test_bucket_without_a_registry_is_told(bucket: Bucket, scheme: str) -> None:
    mirror = open_remote(f"{bucket.url}/nothing")
    with pytest.raises(RemoteUnavailable, match=r"index\.json is missing"):
        mirror.list()
    with pytest.raises(NotFound):
        mirror.capabilities()
    with pytest.raises(UsageError):
        open_remote("s3://ann:secret@bucket/x")


def test_damaged_index_is_told(bucket: Bucket) -> None:
    bucket.put("m/index.json", b"{")
    bucket.put("m/oci-layout", b'{"imageLayoutVersion": "9.0.0"}')
    mirror = open_remote(f"{bucket.url}/m")
    with pytest.raises(BadManifest, match=r"s3://.*index\.json"):
        mirror.list()
    with pytest.raises(UnsupportedFormat):
        mirror.capabilities()


def test_web_server_that_is_no_remote_is_told(tmp_path: Path) -> None:
    with serve_site(lambda asked, before: say(asked, 200, b"<html>hello</html>")) as site:
        remote = open_remote(site.url, IMPATIENT)
        assert site.requests == []
        with pytest.raises(RemoteUnavailable, match="neither a deltareg server nor a static mirror") as raised:
            remote.list()
        assert "oci://127.0.0.1" in (raised.value.hint or "")
        assert [asked.path for asked in site.requests] == ["/api/v1", "/oci-layout"]


def test_web_server_is_asked_once_what_it_is(nginx: str) -> None:
    with stamina.set_testing(True, attempts=1):
        remote = open_remote(nginx)
        remote.list()
        found = vars(remote)["_found"]
        remote.list()
        assert vars(remote)["_found"] is found
    with pytest.raises(AttributeError):
        remote.no_such_thing  # type: ignore[attr-defined]  # noqa: B018


# --- mirrors and servers that ask who one is ---


def test_mirror_behind_a_password_takes_a_login(origin: Store, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("ann:{PLAIN}right\n")
    rules = f'auth_basic "tests"; auth_basic_user_file {tmp_path / "users"};'
    tmp_path.chmod(0o755)
    with serve_nginx(f"location / {{ {rules} root {origin.root}; }}") as url:
        with pytest.raises(NotAllowed) as raised:
            open_remote(url, IMPATIENT).list()
        assert raised.value.hint == f"deltareg login {url}"
        with pytest.raises(NotAllowed):
            log_in(url, Secret("wrong", "ann"), IMPATIENT)
        report = log_in(url, Secret("right", "ann"), IMPATIENT)
        assert (report.user, report.checked) == ("ann", True)
        assert open_remote(url, IMPATIENT).list() == origin.entries()
        with pytest.raises(UsageError, match="no deltareg server"):
            who_am_i(url, IMPATIENT)
        log_out(url)
        with pytest.raises(NotAllowed):
            open_remote(url, IMPATIENT).list()


def test_token_is_tried_at_a_server_before_it_is_kept(tmp_path: Path) -> None:
    identity = {"user": "ann", "admin": False, "token": {"name": "laptop", "expires": None, "scopes": None}}

    def answer(asked: Asked, before: int) -> None:
        if asked.path == "/deltas/api/v1":
            say(asked, 200, {"registry": "deltareg", "apiVersion": 1})
        elif asked.headers.get("authorization") == "Bearer right":
            say(asked, 200, {**identity, "namespaces": [{"namespace": "acme", "role": "owner"}]})
        else:
            say(asked, 401)

    with serve_site(answer) as site:
        url = f"{site.url}/deltas"
        with pytest.raises(NotAllowed):
            log_in(url, Secret("wrong"), IMPATIENT)
        with pytest.raises(NotAllowed, match="not logged in"):
            who_am_i(url, IMPATIENT)
        assert log_in(url, Secret("right"), IMPATIENT).user == "ann"
        found = who_am_i(url, IMPATIENT)
        assert (found.user, [one.role for one in found.namespaces]) == ("ann", ["owner"])
        environment = Network.of({"DELTAREG_TOKEN": "other"}, [url])
        with pytest.raises(NotAllowed):
            who_am_i(url, environment)
        with pytest.raises(UsageError):
            who_am_i("oci://registry", IMPATIENT)


@pytest.mark.parametrize("url", ["deltas.acme.org", "s3://bucket", "/mnt/share", "file:///mnt/share"])
def test_what_has_no_logins_is_told(url: str) -> None:
    with pytest.raises(UsageError):
        log_in(url, Secret("token"), IMPATIENT)


def test_secret_is_not_sent_without_tls_unasked() -> None:
    with pytest.raises(NotAllowed, match="without TLS"):
        log_in("http://deltas.acme.invalid", Secret("token"), IMPATIENT)
    with pytest.raises(RemoteUnavailable):
        log_in("http://deltas.acme.invalid", Secret("token"), IMPATIENT, insecure=True)
