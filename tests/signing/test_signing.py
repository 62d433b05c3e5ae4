"""Signatures: who signed which bytes under which name, with real keys and stores, and all that can be wrong."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from deltareg.catalog import Registry
from deltareg.digest import Digest, sha256
from deltareg.errors import (
    DeltaregError,
    DigestMismatch,
    InvalidArgument,
    NotFound,
    OutputExists,
    RemoteUnavailable,
    SignatureInvalid,
    SignatureMissing,
    SignatureUntrusted,
)
from deltareg.manifest import encode
from deltareg.names import parse_reference
from deltareg.remote import DirectoryRemote
from deltareg.signatures import sign, signatures_of, verify_signed
from deltareg.signing import (
    SIGNATURE_TYPE,
    CertificateSigner,
    KeySigner,
    SigstoreSigner,
    generate_key,
    trusted,
)
from deltareg.signing.bundle import BUNDLE_LIMIT
from deltareg.signing.verify import MOST_SIGNATURES
from deltareg.store import parse_referrer
from deltareg.store.index import write_index
from deltareg.store.referrers import entry_of, with_referrer
from deltareg.transfer import push
from tests import keys
from tests.deltas import add_referrer, flip, publish
from tests.keys import KeyPair, attach_bundle, certified, make_key

NAME = "acme/search:1.0.0"
REFERENCE = parse_reference(NAME)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "home")
    publish(registry.store, NAME)
    return registry


@pytest.fixture
def acme(tmp_path: Path) -> KeyPair:
    return make_key(tmp_path, "acme")


@pytest.fixture
def other(tmp_path: Path) -> KeyPair:
    return make_key(tmp_path, "other")


def check(registry: Registry, *people: Path | str, name: str = NAME) -> list[str | None]:
    """Whose signatures were verified."""
    found = verify_signed(registry, name, [trusted(str(one)) for one in people])
    return [row.trusted for row in found.signatures]


def changed(bundle: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(bundle)
    change(document)
    return json.dumps(document).encode()


def restated(bundle: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The bundle with another statement, which the signature is not for."""
    document = json.loads(bundle)
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    change(statement)
    document["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    return json.dumps(document).encode()


# --- signing and checking ---


def test_what_was_signed_is_verified_by_its_public_key(registry: Registry, acme: KeyPair) -> None:
    report = sign(registry, NAME, KeySigner(acme.private))
    person = trusted(str(acme.public))
    found = verify_signed(registry, NAME, [person])
    assert [row.digest for row in found.signatures] == [report.signature]
    row = found.signatures[0]
    assert (row.kind, row.reference, row.trusted, row.fault) == ("key", NAME, str(acme.public), None)
    assert row.signer == report.signer
    assert registry.fsck().ok


@pytest.mark.parametrize("name", ["acme/search", "acme/search:prod", "digest"])
def test_every_name_of_a_version_leads_to_its_signature(registry: Registry, acme: KeyPair, name: str) -> None:
    digest = registry.resolve(NAME)
    registry.store.set_channel("acme/search", "prod", digest, None)
    name = f"acme/search@{digest}" if name == "digest" else name
    assert sign(registry, name, KeySigner(acme.private)).reference == NAME
    assert check(registry, acme.public, name=name) == [str(acme.public)]


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda one: one.name)
def test_every_curve_signs(registry: Registry, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    pair = make_key(tmp_path, "key", curve=curve)
    sign(registry, NAME, KeySigner(pair.private))
    assert check(registry, pair.public) == [str(pair.public)]


def test_key_of_openssl_signs_and_openssl_tells_its_fingerprint(registry: Registry, tmp_path: Path) -> None:
    private, public = tmp_path / "k.pem", tmp_path / "p.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private], check=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    sign(registry, NAME, KeySigner(private))
    assert check(registry, public) == [str(public)]
    assert signatures_of(registry, NAME)[0].signer == f"key {sha256(public.read_bytes()).removeprefix('sha256:')}"


def test_password_opens_the_key(registry: Registry, tmp_path: Path) -> None:
    pair = make_key(tmp_path, "key", password=b"secret")
    sign(registry, NAME, KeySigner(pair.private, b"secret"))
    assert check(registry, pair.public) == [str(pair.public)]
    with pytest.raises(InvalidArgument, match="encrypted, and no password"):
        sign(registry, NAME, KeySigner(pair.private))
    with pytest.raises(InvalidArgument, match="password does not open"):
        sign(registry, NAME, KeySigner(pair.private, b"wrong"))


def test_certificate_is_verified_by_its_root(registry: Registry, tmp_path: Path) -> None:
    acme = certified(tmp_path, "acme")
    sign(registry, NAME, CertificateSigner(acme.key, acme.certificate))
    assert check(registry, acme.root) == [str(acme.root)]
    assert "CN=acme" in str(signatures_of(registry, NAME)[0].signer)


def test_model_signing_itself_verifies_what_we_sign(registry: Registry, acme: KeyPair, tmp_path: Path) -> None:
    """As docs/signatures.md tells: another program needs nothing of deltareg's."""
    report = sign(registry, NAME, KeySigner(acme.private))
    manifest = json.loads(registry.store.read(Digest(str(report.signature))))
    (tmp_path / "bundle.json").write_bytes(registry.store.read(Digest(manifest["layers"][0]["digest"])))
    file = tmp_path / "delta" / "acme" / "search" / "1.0.0" / "manifest.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(registry.store.read(registry.resolve(NAME)))
    arguments = [tmp_path / "delta", "--signature", tmp_path / "bundle.json", "--public_key", acme.public]
    command = [sys.executable, "-m", "model_signing", "verify", "key", *map(str, arguments)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    file.write_bytes(file.read_bytes() + b" ")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_one_of_several_suffices(registry: Registry, acme: KeyPair, other: KeyPair) -> None:
    sign(registry, NAME, KeySigner(other.private))
    assert check(registry, acme.public, other.public) == [str(other.public)]
    sign(registry, NAME, KeySigner(acme.private))
    assert sorted(map(str, check(registry, acme.public))) == sorted([str(acme.public), "None"])


def test_nothing_is_signed_of_which_blobs_are_missing_or_cut(registry: Registry, acme: KeyPair) -> None:
    pack = registry.store.path(sha256(b"a pack"))
    pack.write_bytes(b"a pac")
    with pytest.raises(DigestMismatch):
        sign(registry, NAME, KeySigner(acme.private))
    pack.unlink()
    with pytest.raises(NotFound, match="not whole"):
        sign(registry, NAME, KeySigner(acme.private))
    assert signatures_of(registry, NAME) == []


def test_dry_run_stores_nothing(registry: Registry, acme: KeyPair) -> None:
    before = registry.store.index_path.read_bytes()
    report = sign(registry, NAME, KeySigner(acme.private), dry_run=True)
    assert report.signature is None
    assert registry.store.index_path.read_bytes() == before


# --- what does not hold ---


def test_unsigned_delta_is_told(registry: Registry, acme: KeyPair) -> None:
    registry.store.put_referrer("acme/search", add_referrer(registry.store, registry.resolve(NAME)))
    with pytest.raises(SignatureMissing) as caught:
        check(registry, acme.public)
    assert (caught.value.code, caught.value.exit_code) == ("DR0409", 5)


def test_signature_of_somebody_else_is_told_with_their_key(registry: Registry, acme: KeyPair, other: KeyPair) -> None:
    report = sign(registry, NAME, KeySigner(other.private))
    with pytest.raises(SignatureUntrusted) as caught:
        check(registry, acme.public)
    assert str(report.signer) in caught.value.message
    assert (caught.value.code, caught.value.exit_code) == ("DR0410", 5)


def test_certificate_of_another_root_is_somebody_elses(registry: Registry, tmp_path: Path) -> None:
    acme, other = certified(tmp_path, "acme"), certified(tmp_path, "other")
    sign(registry, NAME, CertificateSigner(other.key, other.certificate))
    with pytest.raises(SignatureUntrusted, match="CN=other"):
        check(registry, acme.root)


@pytest.mark.parametrize(("days", "told"), [((-10, -1), "expired on"), ((1, 10), "is valid from")])
def test_certificate_out_of_its_time_does_not_count(
    registry: Registry, tmp_path: Path, days: tuple[int, int], told: str
) -> None:
    acme = certified(tmp_path, "acme", days=days)
    sign(registry, NAME, CertificateSigner(acme.key, acme.certificate))
    with pytest.raises(SignatureInvalid, match=told) as caught:
        check(registry, acme.root)
    assert (caught.value.code, caught.value.exit_code) == ("DR0411", 5)


def test_signature_over_other_bytes_is_told(registry: Registry, acme: KeyPair) -> None:
    """A sound signature of one delta, hung on another one."""
    publish(registry.store, "acme/search:2.0.0", [b"poison"])
    sign(registry, NAME, KeySigner(acme.private))
    row = signatures_of(registry, NAME)[0]
    manifest = json.loads(registry.store.read(Digest(row.digest)))
    bundle = registry.store.read(Digest(manifest["layers"][0]["digest"]))
    poison = parse_reference("acme/search:2.0.0")
    attach_bundle(registry.store, poison, registry.resolve(poison), bundle)
    with pytest.raises(SignatureInvalid, match="it signs other bytes"):
        check(registry, acme.public, name="acme/search:2.0.0")


@pytest.mark.parametrize("name", ["acme/search:2.0.0", "acme/other:1.0.0"])
def test_signature_does_not_move_to_another_name(registry: Registry, acme: KeyPair, name: str) -> None:
    """Signed bytes under a name that nobody signed: an old version that is passed off as a new one."""
    sign(registry, NAME, KeySigner(acme.private))
    publish(registry.store, name)
    assert registry.resolve(name) == registry.resolve(NAME)
    with pytest.raises(SignatureInvalid, match=f"it signs {NAME}"):
        check(registry, acme.public, name=name)
    sign(registry, name, KeySigner(acme.private))
    assert str(acme.public) in check(registry, acme.public, name=name)


def test_swapped_manifest_is_not_what_was_signed(registry: Registry, acme: KeyPair) -> None:
    """Somebody who may write to the store names other bytes so, and hangs the old signature on them."""
    old = registry.resolve(NAME)
    sign(registry, NAME, KeySigner(acme.private))
    row = signatures_of(registry, NAME)[0]
    new = publish(registry.store, "acme/search:9.9.9", [b"poison"])
    index = registry.store.index_path.read_text()
    index = index.replace(f'"vnd.deltareg.subject":"{old}"', f'"vnd.deltareg.subject":"{new}"')
    index = index.replace(NAME, "acme/search:0.0.1").replace("acme/search:9.9.9", NAME)
    registry.store.index_path.write_text(index)
    assert registry.resolve(NAME) == new
    assert registry.store.referrers("acme/search", new)[0].digest == row.digest
    with pytest.raises(SignatureInvalid, match="belongs to"):
        check(registry, acme.public)


def _forged(bundle: bytes) -> bytes:
    return restated(bundle, lambda statement: statement["predicate"].update(more="words"))


def _other_signature(bundle: bytes) -> bytes:
    return changed(
        bundle, lambda one: one["dsseEnvelope"]["signatures"][0].update(sig=base64.b64encode(b"x" * 70).decode())
    )


TAMPERED: dict[str, Callable[[bytes], bytes]] = {
    "another statement": _forged,
    "another signature": _other_signature,
    "no JSON": lambda bundle: bundle[:-2],
    "empty": lambda bundle: b"",
    "an array": lambda bundle: b"[]",
    "half a file": lambda bundle: bundle[: len(bundle) // 2],
    "nested deep": lambda bundle: b"[" * 100_000,
    "no base64": lambda bundle: changed(bundle, lambda one: one["dsseEnvelope"].update(payload="%%%")),
    "no statement": lambda bundle: changed(bundle, lambda one: one["dsseEnvelope"].update(payload="e30=")),
    "two signatures": lambda bundle: changed(
        bundle, lambda one: one["dsseEnvelope"]["signatures"].append({"sig": "AA=="})
    ),
    "no signature": lambda bundle: changed(bundle, lambda one: one["dsseEnvelope"]["signatures"].clear()),
    "no signer": lambda bundle: changed(bundle, lambda one: one["verificationMaterial"].pop("publicKey")),
    "no key hint": lambda bundle: changed(bundle, lambda one: one["verificationMaterial"]["publicKey"].pop("hint")),
    "another media type": lambda bundle: changed(bundle, lambda one: one.update(mediaType="text/plain")),
    "old predicate": lambda bundle: restated(
        bundle, lambda one: one.update(predicateType="https://model_signing/Digests/v0.1")
    ),
    "two resources": lambda bundle: restated(
        bundle, lambda one: one["predicate"]["resources"].append(one["predicate"]["resources"][0])
    ),
    "a path out of it": lambda bundle: restated(
        bundle, lambda one: one["predicate"]["resources"][0].update(name="../../etc/1.0.0/manifest.json")
    ),
    "bytes of a certificate": lambda bundle: changed(
        bundle, lambda one: one.update(verificationMaterial={"certificate": {"rawBytes": "AAAA"}, "tlogEntries": []})
    ),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_tampered_bundle_never_counts(registry: Registry, acme: KeyPair, how: str) -> None:
    keys.sign(registry.store, NAME, acme.private, TAMPERED[how])
    with pytest.raises((SignatureInvalid, SignatureUntrusted)):
        check(registry, acme.public)
    assert len(signatures_of(registry, NAME)) == 1
    # What strangers add takes nothing away.
    sign(registry, NAME, KeySigner(acme.private))
    assert str(acme.public) in check(registry, acme.public)


@pytest.mark.parametrize("how", keys.odd_certificates())
def test_certificate_of_a_stranger_that_cannot_be_read_takes_nothing_away(
    registry: Registry, acme: KeyPair, tmp_path: Path, how: str
) -> None:
    raw = base64.b64encode(keys.odd_certificates()[how]).decode()
    material = {"x509CertificateChain": {"certificates": [{"rawBytes": raw}]}, "tlogEntries": []}
    keys.sign(
        registry.store,
        NAME,
        acme.private,
        lambda bundle: changed(bundle, lambda one: one.update(verificationMaterial=material)),
    )
    with pytest.raises((SignatureInvalid, SignatureUntrusted)):
        check(registry, certified(tmp_path, "root").root)
    sign(registry, NAME, KeySigner(acme.private))
    assert str(acme.public) in check(registry, acme.public)


def test_huge_bundle_is_not_read(registry: Registry, acme: KeyPair) -> None:
    attach_bundle(registry.store, REFERENCE, registry.resolve(NAME), b" " * (BUNDLE_LIMIT + 1))
    with pytest.raises(SignatureInvalid, match="at most"):
        check(registry, acme.public)


def test_signature_without_a_layer_is_malformed(registry: Registry, acme: KeyPair) -> None:
    raw = json.loads(add_referrer(registry.store, registry.resolve(NAME), kind=SIGNATURE_TYPE))
    raw["layers"] = []
    registry.store.put_referrer("acme/search", json.dumps(raw).encode())
    with pytest.raises(SignatureInvalid, match="one layer"):
        check(registry, acme.public)


def test_damaged_bundle_is_told_and_not_used(registry: Registry, acme: KeyPair) -> None:
    report = sign(registry, NAME, KeySigner(acme.private))
    manifest = json.loads(registry.store.read(Digest(str(report.signature))))
    flip(registry.store.path(Digest(manifest["layers"][0]["digest"])), 4000)
    with pytest.raises(SignatureInvalid):
        check(registry, acme.public)
    registry.store.path(Digest(manifest["layers"][0]["digest"])).unlink()
    with pytest.raises(SignatureInvalid, match="is not in"):
        check(registry, acme.public)


def test_removed_signature_is_missed(registry: Registry, acme: KeyPair) -> None:
    sign(registry, NAME, KeySigner(acme.private))
    document = json.loads(registry.store.index_path.read_text())
    document["manifests"] = [one for one in document["manifests"] if one.get("artifactType") != SIGNATURE_TYPE]
    registry.store.index_path.write_text(json.dumps(document))
    with pytest.raises(SignatureMissing):
        check(registry, acme.public)


def test_of_very_many_signatures_few_are_looked_at(registry: Registry, acme: KeyPair) -> None:
    store = registry.store
    raw = parse_referrer(add_referrer(store, registry.resolve(NAME), kind=SIGNATURE_TYPE), what="test")
    many = [encode(raw.model_copy(update={"annotations": {"number": str(one)}})) for one in range(MOST_SIGNATURES + 5)]
    index = store.snapshot().index
    for data in many:
        store.put(data)
        index = with_referrer(index, entry_of(data, raw))
    write_index(store.index_path, index, temporary=store.scratch())
    assert len(signatures_of(registry, NAME)) == MOST_SIGNATURES


# --- keys ---


def test_generated_key_is_private_and_signs(registry: Registry, tmp_path: Path) -> None:
    os.umask(umask := os.umask(0))
    private, public, fingerprint = generate_key(tmp_path / "mine", b"secret")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644 & ~umask
    assert b"ENCRYPTED" in private.read_bytes()
    assert sign(registry, NAME, KeySigner(private, b"secret")).signer == f"key {fingerprint}"
    assert check(registry, public) == [str(public)]


@pytest.mark.parametrize("there", ["mine.pem", "mine.pub.pem"])
def test_no_key_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("the only copy")
    with pytest.raises(OutputExists):
        generate_key(tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == [there]


def test_keys_that_do_not_do_are_refused(registry: Registry, acme: KeyPair, tmp_path: Path) -> None:
    curve = make_key(tmp_path, "curve", curve=ec.SECP256K1())
    (tmp_path / "text").write_text("no key")
    (tmp_path / "large").write_bytes(b"-" * (2 << 20))
    (tmp_path / "cert").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    files = [tmp_path / "text", tmp_path / "large", tmp_path / "absent"]
    for path in [curve.private, *files, tmp_path, acme.public]:
        with pytest.raises(InvalidArgument):
            sign(registry, NAME, KeySigner(path))
    for path in [curve.public, *files, tmp_path / "cert"]:
        with pytest.raises(InvalidArgument):
            trusted(str(path))
    with pytest.raises(InvalidArgument, match="is a private key") as caught:
        trusted(str(acme.private))
    assert "openssl ec" in str(caught.value.hint)
    assert signatures_of(registry, NAME) == []


def test_key_of_another_kind_is_refused(registry: Registry, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = rsa.generate_private_key(65537, 2048)
    path = tmp_path / "rsa.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(InvalidArgument, match="curves"):
        sign(registry, NAME, KeySigner(path))


def test_certificate_of_another_key_is_refused(registry: Registry, acme: KeyPair, tmp_path: Path) -> None:
    party = certified(tmp_path, "party")
    with pytest.raises(InvalidArgument, match="not the certificate of"):
        sign(registry, NAME, CertificateSigner(acme.private, party.certificate))
    with pytest.raises(InvalidArgument, match="cannot be read"):
        sign(registry, NAME, CertificateSigner(acme.private, acme.public))


# --- at a remote ---


@pytest.fixture
def remote(tmp_path: Path) -> DirectoryRemote:
    (tmp_path / "shared").mkdir()
    return DirectoryRemote(tmp_path / "shared")


def test_signature_is_sent_at_once(registry: Registry, remote: DirectoryRemote, acme: KeyPair) -> None:
    with pytest.raises(NotFound, match="does not have"):
        sign(registry, NAME, KeySigner(acme.private), remote=remote)
    assert signatures_of(registry, NAME) == []
    push(registry, NAME, remote)
    with pytest.raises(SignatureMissing):
        verify_signed(remote, NAME, [trusted(str(acme.public))])
    report = sign(registry, NAME, KeySigner(acme.private), remote=remote)
    found = verify_signed(remote, NAME, [trusted(str(acme.public))])
    assert [row.digest for row in found.signatures] == [report.signature]
    assert found.registry == remote.url


def test_what_the_remote_has_under_that_name_is_not_signed_blindly(
    registry: Registry, remote: DirectoryRemote, acme: KeyPair, tmp_path: Path
) -> None:
    elsewhere = Registry(tmp_path / "elsewhere")
    publish(elsewhere.store, NAME, [b"other"])
    push(elsewhere, NAME, remote)
    with pytest.raises(DigestMismatch):
        sign(registry, NAME, KeySigner(acme.private), remote=remote)


# --- sigstore ---


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing listens there, and no key of sigstore is cached: so it is everywhere that has no network."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))


@pytest.mark.usefixtures("no_network")
def test_sigstore_without_a_network_is_unavailable(registry: Registry, acme: KeyPair) -> None:
    with pytest.raises(RemoteUnavailable, match="sigstore") as caught:
        sign(registry, NAME, SigstoreSigner())
    assert "--key" in str(caught.value.hint)
    assert signatures_of(registry, NAME) == []


@pytest.mark.usefixtures("no_network")
def test_signature_of_sigstore_does_not_hide_one_of_a_key(registry: Registry, acme: KeyPair, tmp_path: Path) -> None:
    """Where sigstore cannot be asked, the delta is not trusted for it, and no other signature suffers."""
    party = certified(tmp_path, "party")
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    raw = x509.load_pem_x509_certificate(party.certificate.read_bytes()).public_bytes(serialization.Encoding.DER)
    material = {"certificate": {"rawBytes": base64.b64encode(raw).decode()}, "tlogEntries": []}
    keys.sign(
        registry.store,
        NAME,
        acme.private,
        lambda bundle: changed(bundle, lambda one: one.update(verificationMaterial=material)),
    )
    people = ["alice@acme.com@https://accounts.google.com", str(acme.public)]
    assert signatures_of(registry, NAME)[0].kind == "sigstore"
    with pytest.raises(RemoteUnavailable):
        check(registry, people[0])
    with pytest.raises(SignatureUntrusted):
        check(registry, people[1])
    sign(registry, NAME, KeySigner(acme.private))
    assert str(acme.public) in check(registry, *people)


def test_identities_are_split_at_their_issuer() -> None:
    person: Any = trusted("https://github.com/acme/x/.github/workflows/a.yml@refs/heads/main@https://token.example.com")
    assert person.identity == "https://github.com/acme/x/.github/workflows/a.yml@refs/heads/main"
    assert person.issuer == "https://token.example.com"


def test_errors_of_signatures_tell_what_to_do(registry: Registry, acme: KeyPair) -> None:
    with pytest.raises(DeltaregError) as caught:
        check(registry, acme.public)
    assert "deltareg sign" in str(caught.value.hint)
