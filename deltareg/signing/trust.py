"""Who is trusted: a public key, a root of certificates, or an identity that an OpenID provider vouches for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from deltareg.errors import InvalidArgument, SignatureInvalid, SignatureUntrusted
from deltareg.paths import expand_home
from deltareg.signing.bundle import Statement
from deltareg.signing.keys import fingerprint_of, pem_of, public_key, read_pem
from deltareg.signing.library import load
from deltareg.signing.sign import sigstore_unavailable

__all__ = ["Trusted", "TrustedKey", "check_trusted", "is_identity", "signer_of", "trusted"]

_IDENTITY = re.compile(r"(?P<identity>.+)@(?P<issuer>https?://.+)")


class Trusted(Protocol):
    """Somebody whose signatures count; `name` is what the user calls them."""

    @property
    def name(self) -> str:
        """As it was given: a path, or IDENTITY@ISSUER."""
        ...

    def claims(self, statement: Statement) -> bool:
        """Whether a signature says that it is theirs."""
        ...

    def check(self, statement: Statement, root: Path, bundle: Path) -> None:
        """Verify a signature over a directory.

        Raises SignatureUntrusted where it is somebody else's after all, SignatureInvalid, RemoteUnavailable.
        """
        ...


@dataclass(frozen=True)
class TrustedKey:
    """Whoever has the private key of this public one."""

    name: str
    pem: bytes
    fingerprint: str

    def claims(self, statement: Statement) -> bool:
        """By the fingerprint."""
        return statement.key == self.fingerprint

    def check(self, statement: Statement, root: Path, bundle: Path) -> None:
        """Raises SignatureInvalid."""
        # model-signing reads keys from files. This one is removed with the bundle.
        key = bundle.with_name("key.pem")
        key.write_bytes(self.pem)
        config = load("model_signing.verifying").Config().use_elliptic_key_verifier(public_key=key)
        _verify(config, root, bundle, f"the signature of the key {self.fingerprint}")


@dataclass(frozen=True)
class TrustedCertificates:
    """Whoever has a certificate that leads to one of these."""

    name: str
    path: Path

    def claims(self, statement: Statement) -> bool:
        """Any certificate may lead here: only the check tells."""
        return statement.kind == "certificate"

    def check(self, statement: Statement, root: Path, bundle: Path) -> None:
        """Raises SignatureUntrusted where the chain leads elsewhere; SignatureInvalid, also for an expired certificate.

        model-signing looks at a chain as it was when the signer's certificate began, so that none ever expires; but
        nothing proves when the signature was made.
        """
        _check_dates(statement)
        config = load("model_signing.verifying").Config().use_certificate_verifier(certificate_chain=[self.path])
        _verify(config, root, bundle, f"the signature of {signer_of(statement)}, as {self.name} is to vouch for it,")


@dataclass(frozen=True)
class TrustedIdentity:
    """Somebody for whom an OpenID provider vouched to sigstore."""

    name: str
    identity: str
    issuer: str

    def claims(self, statement: Statement) -> bool:
        """Any certificate of sigstore may be theirs: only the check tells."""
        return statement.kind == "sigstore"

    def check(self, statement: Statement, root: Path, bundle: Path) -> None:
        """Raises SignatureInvalid; RemoteUnavailable where sigstore's own keys cannot be fetched."""
        config = load("model_signing.verifying").Config()
        try:
            config.use_sigstore_verifier(identity=self.identity, oidc_issuer=self.issuer)
        except Exception as error:  # of several libraries that talk to the network, none of which documents its errors
            raise sigstore_unavailable(error) from error
        _verify(config, root, bundle, f"the signature of {signer_of(statement)}, as that of {self.name},")


def is_identity(text: str) -> bool:
    """Whether somebody is named as IDENTITY@ISSUER."""
    return _IDENTITY.fullmatch(text) is not None


def trusted(text: str) -> Trusted:
    """Somebody to trust: the path of a PEM file with a public key or with certificates, or IDENTITY@ISSUER.

    Raises InvalidArgument, NotAllowed.
    """
    found = _IDENTITY.fullmatch(text)
    if found is not None:
        return TrustedIdentity(text, found["identity"], found["issuer"])
    path = expand_home(text)
    raw = read_pem(path)
    if b"BEGIN CERTIFICATE" not in raw:
        key = public_key(path)
        return TrustedKey(text, pem_of(key), fingerprint_of(key))
    try:
        load("cryptography.x509").load_pem_x509_certificates(raw)
    except ValueError as error:
        raise InvalidArgument(f"{path} holds a certificate that cannot be read", cause=str(error)) from error
    return TrustedCertificates(text, path)


def check_trusted(text: str) -> str:
    """Return `text` if it can name somebody: no empty text, and no line break in it. Raises InvalidArgument."""
    if not text.strip() or "\n" in text or "\0" in text:
        raise InvalidArgument(f"{text!r} names nobody", hint="name a PEM file, or IDENTITY@ISSUER")
    return text


def signer_of(statement: Statement) -> str:
    """Who says that they signed, for people."""
    if statement.key is not None:
        return f"key {statement.key}"
    try:
        certificate = _certificate(statement.certificates[0])
        names = _identities(certificate) or [_subject(certificate)]
        fingerprint = certificate.fingerprint(load("cryptography.hazmat.primitives.hashes").SHA256()).hex()
    except SignatureInvalid:
        return "a certificate that cannot be read"
    except InvalidArgument:
        # Nothing is checked here: what is not installed is missed where something is.
        return "a certificate"
    return f"{', '.join(names)} (certificate {fingerprint})"


def _identities(certificate: Any) -> list[str]:
    x509 = load("cryptography.x509")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [str(one.value) for one in names]
    except Exception:  # there are none; or the bytes are hostile, which are parsed only now
        return []


def _subject(certificate: Any) -> str:
    try:
        return certificate.subject.rfc4514_string()
    except Exception as error:  # as above
        raise _malformed(error) from error


def _check_dates(statement: Statement) -> None:
    now = datetime.now(UTC)
    for raw in statement.certificates:
        certificate = _certificate(raw)
        name = _subject(certificate)
        if certificate.not_valid_after_utc < now:
            raise SignatureInvalid(
                f"the certificate of {name} expired on {certificate.not_valid_after_utc:%Y-%m-%d}",
                cause="nothing proves that the signature was made before",
                hint="ask the publisher to sign the delta again, with a certificate that is valid",
            )
        if certificate.not_valid_before_utc > now:
            raise SignatureInvalid(
                f"the certificate of {name} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} on",
                hint="check the clock of this machine",
            )


def _certificate(raw: bytes) -> Any:
    x509 = load("cryptography.x509")
    try:
        return x509.load_der_x509_certificate(raw)
    except Exception as error:  # hostile bytes raise whatever cryptography raises
        raise _malformed(error) from error


def _malformed(error: Exception) -> SignatureInvalid:
    return SignatureInvalid(f"a certificate in the signature is malformed: {error}", cause=str(error))


def _verify(config: Any, root: Path, bundle: Path, what: str) -> None:
    try:
        config.verify(root, bundle)
    except Exception as error:  # hostile bytes raise whatever cryptography, OpenSSL and json raise
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        if type(error).__name__ == "X509StoreContextError":
            raise SignatureUntrusted(f"{what} does not lead there: {cause}", cause=cause) from error
        raise SignatureInvalid(
            f"{what} does not hold: {cause}",
            cause=cause,
            hint="do not use the delta; ask its publisher to sign it again",
        ) from error
