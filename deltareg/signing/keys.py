"""Elliptic-curve keys in PEM files: made, read, and told by their fingerprints."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from deltareg.errors import InvalidArgument, OutputExists, translate_os_errors
from deltareg.signing.library import load

__all__ = [
    "CURVES",
    "KEY_LIMIT",
    "fingerprint_of",
    "generate_key",
    "parse_public_key",
    "pem_of",
    "private_key",
    "public_key",
    "read_pem",
]

CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""The curves that model-signing takes."""

KEY_LIMIT = 1 << 20


def generate_key(prefix: Path, password: bytes | None = None) -> tuple[Path, Path, str]:
    """Make a key pair on P-256: `PREFIX.pem`, which only its owner may read, and `PREFIX.pub.pem`.

    With a password the private key is encrypted. Returns both paths and the fingerprint. Raises OutputExists where one
    of them is there; NotAllowed, DiskFull.
    """
    curves = load("cryptography.hazmat.primitives.asymmetric.ec")
    forms = load("cryptography.hazmat.primitives.serialization")
    private, public = prefix.with_name(f"{prefix.name}.pem"), prefix.with_name(f"{prefix.name}.pub.pem")
    for path in (private, public):
        if os.path.lexists(path):
            raise OutputExists(f"{path} exists already", hint="choose another name: a key that is lost is lost")
    key = curves.generate_private_key(curves.SECP256R1())
    hiding = forms.NoEncryption() if password is None else forms.BestAvailableEncryption(password)
    secret = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, hiding)
    shown = key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    _write_new(private, secret, 0o600)
    _write_new(public, shown, 0o644)
    return private, public, fingerprint_of(key.public_key())


def private_key(path: Path, password: bytes | None = None) -> Any:
    """The private key in a PEM file, one that model-signing takes. Raises InvalidArgument, NotAllowed, NotFound."""
    raw = read_pem(path)
    forms = load("cryptography.hazmat.primitives.serialization")
    try:
        key = forms.load_pem_private_key(raw, password)
    except TypeError as error:
        raise InvalidArgument(
            f"{path} is encrypted, and no password was given"
            if password is None
            else f"{path} is not encrypted, but a password was given",
            hint="--password-stdin reads it from standard input; or set DELTAREG_PASSWORD"
            if password is None
            else "leave the password out, and unset DELTAREG_PASSWORD",
        ) from error
    except ValueError as error:
        if password is not None and b"PRIVATE KEY" in raw:
            raise InvalidArgument(f"the password does not open {path}", cause=str(error).split(".")[0]) from error
        raise InvalidArgument(
            f"{path} is no private key in PEM form", hint="deltareg sign --generate-key PREFIX makes one"
        ) from error
    _check_curve(key, str(path))
    return key


def public_key(path: Path) -> Any:
    """The public key in a PEM file, one that model-signing takes. Raises InvalidArgument, NotAllowed, NotFound."""
    return parse_public_key(read_pem(path), str(path))


def parse_public_key(raw: bytes, what: str) -> Any:
    """The public key in a PEM text, one that model-signing takes; `what` it is called. Raises InvalidArgument."""
    forms = load("cryptography.hazmat.primitives.serialization")
    unsupported = load("cryptography.exceptions").UnsupportedAlgorithm
    try:
        key = forms.load_pem_public_key(raw)
    except (ValueError, unsupported) as error:
        private = b"PRIVATE KEY" in raw
        raise InvalidArgument(
            f"{what} is a private key" if private else f"{what} is no public key in PEM form",
            cause=None if private else str(error).split(".")[0],
            hint=f"take the public one out of it: openssl ec -in {what} -pubout -out public.pem"
            if private
            else "name a PEM file with a public key or with certificates, or IDENTITY@ISSUER",
        ) from error
    _check_curve(key, what)
    return key


def fingerprint_of(key: Any) -> str:
    """What a public key is called: the SHA-256 digest of its PEM text, as model-signing has it in its bundles."""
    return hashlib.sha256(pem_of(key)).hexdigest()


def pem_of(key: Any) -> bytes:
    """The PEM text of a public key, the same for each way in which the key was written."""
    forms = load("cryptography.hazmat.primitives.serialization")
    return key.public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)


def read_pem(path: Path) -> bytes:
    """The bytes of a PEM file. Raises InvalidArgument where there is none, or a larger one than keys have."""
    if not os.path.isfile(path):
        raise InvalidArgument(f"{path} is no file", hint="name a PEM file")
    with translate_os_errors("read the key", path), path.open("rb") as file:
        raw = file.read(KEY_LIMIT + 1)
    if len(raw) > KEY_LIMIT:
        raise InvalidArgument(f"{path} has more than {KEY_LIMIT} bytes: that is no key")
    return raw


def _check_curve(key: Any, what: str) -> None:
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve not in CURVES:
        raise InvalidArgument(
            f"{what} is no key on one of the curves that signatures take" + (f": {curve}" if curve else ""),
            cause=f"they are {', '.join(CURVES)}",
            hint="openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        )


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with translate_os_errors("write the key", path):
        # EXCL: of two who make one key, one is told so. The mode is there before the first byte.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
