"""Keys and certificates of every kind that signatures meet, made once with `cryptography`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deltareg.digest import Digest
from deltareg.names import Reference, parse_reference
from deltareg.signatures import BUNDLE_TYPE
from deltareg.signing import SIGNATURE_TYPE, KeySigner, bundle_of
from deltareg.store import Store
from tests.deltas import add_referrer

__all__ = ["KeyPair", "Party", "attach_bundle", "certified", "make_key", "odd_certificates", "sign"]


class KeyPair(NamedTuple):
    """The PEM files of a key pair."""

    private: Path
    public: Path


class Party(NamedTuple):
    """Somebody with a certificate, and the root that issued it."""

    key: Path
    certificate: Path
    root: Path


def make_key(directory: Path, name: str, *, curve: Any = None, password: bytes | None = None) -> KeyPair:
    """A new key pair."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    hiding = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pair = KeyPair(directory / f"{name}.pem", directory / f"{name}.pub.pem")
    pair.private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hiding))
    pair.public.write_bytes(_public(key.public_key()))
    return pair


def certified(directory: Path, name: str, *, days: tuple[int, int] = (-1, 365)) -> Party:
    """A root, and a certificate of it that is valid from and to so many days from now."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    wide = (min(days[0], -1) - 1, 3650)
    root = _certificate(f"{name} root", root_key, f"{name} root", root_key, wide, authority=True)
    own = _certificate(name, key, f"{name} root", root_key, days, authority=False)
    party = Party(directory / f"{name}.key.pem", directory / f"{name}.crt.pem", directory / f"{name}.root.pem")
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    party.key.write_bytes(secret)
    party.certificate.write_bytes(own.public_bytes(serialization.Encoding.PEM))
    party.root.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    return party


def odd_certificates() -> dict[str, bytes]:
    """Certificates in DER that are read, but of which a part cannot be: each raises something else."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "acme")])
    other = x509.DNSName("a.b")
    whole = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([other]), critical=False)
        .add_extension(x509.IssuerAlternativeName([other]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )
    return {
        "an extension twice": whole.replace(b"\x55\x1d\x12", b"\x55\x1d\x11"),
        "a name of an unknown kind": whole.replace(b"\x82\x03a.b", b"\xa3\x03\x02\x01\x05", 1),
        "a subject that is no text": whole.replace(b"\x0c\x04acme", b"\x0c\x04\xff\xfe\xfd\xfc").replace(
            b"\x55\x1d\x11", b"\x55\x1d\x12"
        ),
        "an unknown version": whole.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x5f", 1),
    }


def sign(
    store: Store, name: str, key: Path, change: Callable[[bytes], bytes] = bytes, *, signed_as: str = ""
) -> Digest:
    """Sign a version with a key, `change` the bundle, and attach it; return the signature's digest."""
    reference = parse_reference(name)
    digest = store.resolve(reference)
    bundle = bundle_of(reference, store.read(digest), KeySigner(key))
    return attach_bundle(store, reference, digest, change(bundle))


def attach_bundle(store: Store, reference: Reference, digest: Digest, bundle: bytes) -> Digest:
    """Attach a bundle, whatever it is, as a signature."""
    return store.put_referrer(
        reference.repository, add_referrer(store, digest, bundle, kind=SIGNATURE_TYPE, layer_type=BUNDLE_TYPE)
    )


def _certificate(
    name: str, key: Any, issuer: str, issuer_key: Any, days: tuple[int, int], *, authority: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    usage = dict.fromkeys(
        ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"], False
    )
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                key_cert_sign=authority,
                crl_sign=authority,
                decipher_only=False,
                **usage,
            ),
            critical=True,
        )
        .sign(issuer_key, hashes.SHA256())
    )


def _public(key: Any) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
