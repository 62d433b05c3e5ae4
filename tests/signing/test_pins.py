"""What a server tells of who signs: believed once, and enforced like the user's own policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from deltareg.archive import export_archive, import_archive
from deltareg.catalog import Registry
from deltareg.errors import (
    BadConfig,
    BadManifest,
    DiskFull,
    InvalidArgument,
    NotAllowed,
    NotFound,
    SignatureInvalid,
    SignatureMissing,
    SignatureUntrusted,
    SignersChanged,
)
from deltareg.mirroring import mirror
from deltareg.remote import DirectoryRemote, Network, Remote, open_remote
from deltareg.signatures import ask_signers, learn_signers, sign, signatures_of, verify_signed
from deltareg.signing import KeySigner, Pins, Policies, Policy, told_keys, trusted
from deltareg.signing.pins import MOST_KEYS
from deltareg.transfer import pull, push
from tests import keys
from tests.deltas import publish
from tests.disks import fill, read_only, small_disk
from tests.keys import KeyPair, make_key
from tests.registry.deltas import pack_of
from tests.remote.site import Asked, say, serve_site
from tests.servers.deltareg_server import RunningServer, empty, running_server

NAME = "acme/search:1.0.0"
URL = "https://deltas.acme.org"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("pins") / "server") as started:
        yield started


@pytest.fixture
def server(running: RunningServer) -> RunningServer:
    """A server with nothing in it, which the tests here share."""
    empty(running)
    return running


@pytest.fixture
def publisher(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "publisher")
    publish(registry.store, NAME, [pack_of("x")])
    return registry


@pytest.fixture
def user(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "user")


@pytest.fixture
def acme(tmp_path: Path) -> KeyPair:
    return make_key(tmp_path, "acme")


@pytest.fixture
def other(tmp_path: Path) -> KeyPair:
    return make_key(tmp_path, "other")


def client(server: RunningServer, url: str | None = None) -> Remote:
    place = url or server.url
    return open_remote(place, Network.of({"DELTAREG_TOKEN": server.token}, [place]))


def ask_for(server: RunningServer, *people: KeyPair) -> None:
    """Let the owners of acme ask for signatures by one of these."""
    texts = [one.public.read_text() for one in people]
    with server.client() as http:
        http.patch("/api/v1/namespaces/acme", json={"policy": {"signedBy": texts}}).raise_for_status()


def send(publisher: Registry, server: RunningServer, key: KeyPair | None = None, name: str = NAME) -> None:
    if key is not None:
        sign(publisher, name, KeySigner(key.private))
    push(publisher, name, client(server))


def again(registry: Registry) -> Registry:
    """The same home, as the next process opens it."""
    return Registry(registry.home, policies=registry.policies)


def fingerprints(registry: Registry) -> list[set[str]]:
    return [{trusted_name(key.pem) for key in pin.keys} for pin in registry.pins.all()]


def trusted_name(pem: str) -> str:
    return told_keys(URL, "acme", [pem])[0].fingerprint


def told(pair: KeyPair) -> Any:
    return told_keys(URL, "acme", [pair.public.read_text()])[0]


# --- with a real server ---


def test_pull_asks_the_server_who_has_to_sign(
    server: RunningServer, publisher: Registry, user: Registry, acme: KeyPair
) -> None:
    send(publisher, server)
    ask_for(server, acme)
    with pytest.raises(SignatureMissing) as caught:
        pull(user, NAME, client(server))
    assert f"the policy for acme that {server.url} told on" in caught.value.message
    assert "deltareg sign" in str(caught.value.hint)
    assert user.store.entries() == []
    send(publisher, server, acme)
    assert pull(again(user), NAME, client(server)).referrers == 1
    assert again(user).check_signed(NAME)[0].trusted == f"key {told(acme).fingerprint}"


def test_signature_by_another_key_is_refused_and_names_whom_to_ask(
    server: RunningServer, publisher: Registry, user: Registry, acme: KeyPair, other: KeyPair
) -> None:
    send(publisher, server, other)
    ask_for(server, acme)
    with pytest.raises(SignatureUntrusted) as caught:
        pull(user, NAME, client(server))
    assert server.url in caught.value.message
    assert str(caught.value.hint).startswith("deltareg signers list")


def test_signature_over_another_manifest_is_refused(
    server: RunningServer, publisher: Registry, user: Registry, acme: KeyPair
) -> None:
    """The thief of a token lays the signature of an old version beside a new one."""
    publish(publisher.store, "acme/search:2.0.0", [pack_of("y")])
    bundle = keys.bundle_of(
        keys.parse_reference(NAME), publisher.store.read(publisher.resolve(NAME)), KeySigner(acme.private)
    )
    name = keys.parse_reference("acme/search:2.0.0")
    keys.attach_bundle(publisher.store, name, publisher.store.resolve(name), bundle)
    send(publisher, server, name="acme/search:2.0.0")
    ask_for(server, acme)
    with pytest.raises(SignatureInvalid, match="it signs other bytes"):
        pull(user, "acme/search:2.0.0", client(server))


def test_what_is_in_the_store_is_checked_by_what_the_server_told(
    server: RunningServer, publisher: Registry, user: Registry, acme: KeyPair
) -> None:
    """Pulled before there was a policy; no server is asked when it is applied."""
    send(publisher, server)
    pull(user, NAME, client(server))
    ask_for(server, acme)
    assert user.check_signed(NAME) == []
    learn_signers(user, client(server), "acme")
    with pytest.raises(SignatureMissing):
        again(user).check_signed(NAME)


def test_server_that_tells_no_longer_is_held_to_what_it_told(
    server: RunningServer, publisher: Registry, user: Registry, acme: KeyPair
) -> None:
    send(publisher, server, acme)
    ask_for(server, acme)
    pull(user, NAME, client(server))
    ask_for(server)
    publish(publisher.store, "acme/search:2.0.0", [pack_of("y")])
    send(publisher, server, name="acme/search:2.0.0")
    with pytest.raises(SignatureMissing, match="and tells no longer") as caught:
        pull(again(user), "acme/search:2.0.0", client(server))
    assert "tells no longer" in caught.value.message
    user.pins.forget("acme")
    assert pull(again(user), "acme/search:2.0.0", client(server)).reference == "acme/search:2.0.0"


def test_key_that_the_server_names_later_does_not_count_before_it_is_accepted(
    server: RunningServer, publisher: Registry, user: Registry, acme: KeyPair, other: KeyPair
) -> None:
    send(publisher, server, acme)
    ask_for(server, acme)
    pull(user, NAME, client(server))
    publish(publisher.store, "acme/search:2.0.0", [pack_of("y")])
    send(publisher, server, other, "acme/search:2.0.0")
    ask_for(server, acme, other)
    with pytest.raises(SignersChanged) as caught:
        pull(again(user), "acme/search:2.0.0", client(server))
    assert caught.value.data["added"] == [told(other).fingerprint]
    assert f"deltareg signers accept acme --remote {server.url}" in str(caught.value.hint)
    # What the old key has signed can be used all the time: owners may change keys without anybody standing still.
    assert pull(again(user), NAME, client(server)).moved == 0
    user.pins.accept(server.url, "acme", ask_signers(client(server), "acme"))
    assert pull(again(user), "acme/search:2.0.0", client(server)).reference == "acme/search:2.0.0"


def test_all_keys_replaced_at_once_refuse_everything(
    server: RunningServer, publisher: Registry, user: Registry, acme: KeyPair, other: KeyPair
) -> None:
    send(publisher, server, acme)
    ask_for(server, acme)
    pull(user, NAME, client(server))
    ask_for(server, other)
    with pytest.raises(SignersChanged, match="names other keys"):
        pull(again(user), NAME, client(server))
    assert fingerprints(again(user)) == [{told(acme).fingerprint}]


def test_key_that_was_taken_back_does_not_count_and_does_not_return_unasked(
    server: RunningServer, publisher: Registry, user: Registry, acme: KeyPair, other: KeyPair
) -> None:
    send(publisher, server, other)
    ask_for(server, acme, other)
    pull(user, NAME, client(server))
    ask_for(server, acme)
    with pytest.raises(SignatureUntrusted):
        pull(again(user), NAME, client(server))
    assert fingerprints(again(user)) == [{told(acme).fingerprint}]
    ask_for(server, acme, other)
    with pytest.raises(SignersChanged):
        pull(again(user), NAME, client(server))


def test_users_policy_and_the_servers_both_have_to_be_met(
    server: RunningServer, publisher: Registry, user: Registry, acme: KeyPair, other: KeyPair, tmp_path: Path
) -> None:
    send(publisher, server, acme)
    ask_for(server, acme)
    user.policies = Policies({"acme": Policy("acme", (str(other.public),), tmp_path / "deltareg.toml")})
    with pytest.raises(SignatureUntrusted, match=r"in .*deltareg\.toml asks for that"):
        pull(user, NAME, client(server))
    send(publisher, server, other)
    pull(again(user), NAME, client(server))
    # And the server's holds where the user's is met.
    ask_for(server, make_key(tmp_path, "third"))
    with pytest.raises(SignersChanged):
        pull(again(user), NAME, client(server))


def test_policy_of_a_server_holds_wherever_the_delta_comes_from(
    server: RunningServer, publisher: Registry, user: Registry, acme: KeyPair, tmp_path: Path
) -> None:
    ask_for_namespace(server)
    ask_for(server, acme)
    learn_signers(user, client(server), "acme")
    (tmp_path / "shared").mkdir()
    push(publisher, NAME, DirectoryRemote(tmp_path / "shared"))
    with pytest.raises(SignatureMissing, match="told on"):
        pull(user, NAME, DirectoryRemote(tmp_path / "shared"))


def ask_for_namespace(server: RunningServer) -> None:
    with server.client() as http:
        http.post("/api/v1/namespaces", json={"name": "acme"}).raise_for_status()


def test_dry_run_holds_and_remembers_nothing(
    server: RunningServer, publisher: Registry, user: Registry, acme: KeyPair
) -> None:
    send(publisher, server)
    ask_for(server, acme)
    with pytest.raises(SignatureMissing):
        pull(user, NAME, client(server), dry_run=True)
    assert not user.pins.path.exists()


def test_remote_of_another_kind_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    assert ask_signers(DirectoryRemote(tmp_path / "shared"), "acme") == []


@contextmanager
def saying(server: RunningServer, policy: bytes) -> Iterator[str]:
    """A server that passes everything on to a real one, and says something else of acme."""
    with server.client() as http:

        def answer(asked: Asked, before: int) -> None:
            if asked.path.startswith("/api/v1/namespaces/"):
                say(asked, 200, policy)
                return
            found: httpx2.Response = http.request(asked.method, asked.path, content=asked.body)
            say(asked, found.status_code, found.content)

        with serve_site(answer) as site:
            yield site.url


UNREADABLE = {
    b"<html>": "Expecting value",
    b"{}": "policy",
    b'{"policy": {}}': "signedBy",
    b'{"policy": {"signedBy": "a key"}}': "signedBy",
    b'{"policy": {"signedBy": [7]}}': "signedBy",
    b'{"policy": {"signedBy": ["no key"]}}': "no public key",
    b'{"policy": {"signedBy": ["\\ud800"]}}': "cannot be read",
    b'{"policy": {"signedBy": ["-----BEGIN PRIVATE KEY-----"]}}': "private key",
    json.dumps({"policy": {"signedBy": ["x"] * (MOST_KEYS + 1)}}).encode(): "at most",
}


def test_policy_that_cannot_be_read_lets_nothing_through(
    server: RunningServer, publisher: Registry, user: Registry
) -> None:
    send(publisher, server)
    for policy, why in UNREADABLE.items():
        with saying(server, policy) as url, pytest.raises(BadManifest, match=why) as caught:
            pull(user, NAME, client(server, url))
        assert f"{url} tells a policy for acme that cannot be read" in caught.value.message
        assert "nothing of it is used before that is mended" in str(caught.value.hint)
        assert user.store.entries() == []
        assert not user.pins.path.exists()


def test_key_on_a_curve_that_nobody_signs_with_is_no_policy(tmp_path: Path) -> None:
    pair = make_key(tmp_path, "odd", curve=ec.SECP256K1())
    with pytest.raises(BadManifest, match="no key on one of the curves"):
        told_keys(URL, "acme", [pair.public.read_text()])


def test_signatures_go_by_mirror_and_archive_and_the_server_tells_who_claims_them(
    server: RunningServer, publisher: Registry, user: Registry, acme: KeyPair, tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    shared = DirectoryRemote(tmp_path / "shared")
    report = sign(publisher, NAME, KeySigner(acme.private))
    push(publisher, NAME, shared)
    mirror(shared, client(server))
    assert signatures_of(publisher, NAME)[0].signer == report.signer
    with server.client() as http:
        found = http.get("/api/v1/deltas/acme/search/versions/1.0.0").json()["signatures"]
        page = http.get("/d/acme/search?version=1.0.0").text
    assert [one["annotations"]["vnd.deltareg.signer"] for one in found] == [report.signer]
    assert str(report.signer) in page
    assert "verified none of them" in page
    middle = Registry(tmp_path / "middle")
    pull(middle, NAME, client(server))
    export_archive(middle, [NAME], tmp_path / "a.tar")
    import_archive(user, tmp_path / "a.tar")
    assert verify_signed(user, NAME, [trusted(str(acme.public))]).signatures[0].digest == report.signature


# --- the file ---


def test_what_was_told_is_kept_for_the_next_process(tmp_path: Path, acme: KeyPair, other: KeyPair) -> None:
    Pins(tmp_path / "signers.json").learn(URL, "acme", [told(acme)])
    Pins(tmp_path / "signers.json").learn("https://mirror.org", "acme", [told(other)])
    (pin, second) = Pins(tmp_path / "signers.json").of("acme")
    assert (pin.server, pin.fingerprints) == (URL, {told(acme).fingerprint})
    assert second.fingerprints == {told(other).fingerprint}
    assert Pins(tmp_path / "signers.json").of("zeta") == []
    gone = Pins(tmp_path / "signers.json").forget("acme", URL, dry_run=True)
    assert [one.server for one in gone] == [URL]
    Pins(tmp_path / "signers.json").forget("acme", URL)
    assert [one.server for one in Pins(tmp_path / "signers.json").all()] == ["https://mirror.org"]
    with pytest.raises(NotFound, match="nothing is remembered"):
        Pins(tmp_path / "signers.json").forget("acme", URL)


def test_nothing_is_accepted_of_a_server_that_tells_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="names nobody"):
        Pins(tmp_path / "signers.json").accept(URL, "acme", [])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"signers": [{"namespace": "acme"}]}', '{"signers": 1}'])
def test_damaged_file_refuses_everything(user: Registry, publisher: Registry, text: str, tmp_path: Path) -> None:
    user.pins.path.write_text(text)
    (tmp_path / "shared").mkdir()
    push(publisher, NAME, DirectoryRemote(tmp_path / "shared"))
    with pytest.raises(BadConfig, match="remembered who signs") as caught:
        pull(user, NAME, DirectoryRemote(tmp_path / "shared"))
    assert str(user.pins.path) in str(caught.value.hint)


def test_full_and_read_only_disks_are_told(tmp_path: Path, acme: KeyPair) -> None:
    with small_disk(tmp_path / "small", 64) as place:
        fill(place)
        with pytest.raises(DiskFull):
            Pins(place / "signers.json").learn(URL, "acme", [told(acme)])
        assert not (place / "signers.json").exists()
    home = tmp_path / "home"
    home.mkdir()
    with read_only(home), pytest.raises(NotAllowed):
        Pins(home / "signers.json").learn(URL, "acme", [told(acme)])


def test_same_key_in_another_spelling_is_no_change(tmp_path: Path, acme: KeyPair) -> None:
    text = acme.public.read_text()
    spelt = text.replace("\n", "\r\n") + "\n\n"
    assert told_keys(URL, "acme", [text, spelt]) == [told(acme)]


def test_own_policy_that_names_an_unknown_file_refuses(
    user: Registry, publisher: Registry, tmp_path: Path, acme: KeyPair
) -> None:
    send_to = tmp_path / "shared"
    send_to.mkdir()
    push(publisher, NAME, DirectoryRemote(send_to))
    gone = str(tmp_path / "gone.pem")
    user.policies = Policies({"acme": Policy("acme", (gone,), tmp_path / "deltareg.toml")})
    with pytest.raises(InvalidArgument, match=r"gone\.pem is no file"):
        pull(user, NAME, DirectoryRemote(send_to))
