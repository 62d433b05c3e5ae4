"""Signing: with a private key, with a certificate, or by sigstore without any key of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from deltareg.errors import InvalidArgument, NotAllowed, RemoteUnavailable
from deltareg.names import Reference
from deltareg.signing.keys import fingerprint_of, private_key, read_pem
from deltareg.signing.library import load, signed_directory

__all__ = ["CertificateSigner", "KeySigner", "Signer", "SigstoreSigner", "bundle_of"]


class Signer(Protocol):
    """Who signs."""

    def prepare(self, config: Any) -> None:
        """Let a signing configuration of model-signing sign so."""
        ...


@dataclass(frozen=True)
class KeySigner:
    """Signs with the private key in a PEM file, which may be encrypted."""

    key: Path
    password: bytes | None = None

    def prepare(self, config: Any) -> None:
        """Raises InvalidArgument for what is no such key, and for a wrong password."""
        private_key(self.key, self.password)
        config.use_elliptic_key_signer(private_key=self.key, password=self.password)


@dataclass(frozen=True)
class CertificateSigner:
    """Signs with a private key and the certificate of it; `chain` leads to the root that others trust."""

    key: Path
    certificate: Path
    chain: tuple[Path, ...] = ()

    def prepare(self, config: Any) -> None:
        """Raises InvalidArgument for what is no such key or certificate, and where they do not belong together."""
        own = fingerprint_of(private_key(self.key).public_key())
        x509 = load("cryptography.x509")
        try:
            certificate = x509.load_pem_x509_certificate(read_pem(self.certificate))
            for path in self.chain:
                x509.load_pem_x509_certificates(read_pem(path))
        except ValueError as error:
            raise InvalidArgument("a certificate cannot be read: it is not in PEM form", cause=str(error)) from error
        if fingerprint_of(certificate.public_key()) != own:
            raise InvalidArgument(
                f"{self.certificate} is not the certificate of {self.key}", hint="name the one that was issued for it"
            )
        # model-signing joins the files as they are: without one, it would find no certificate and refuse.
        config.use_certificate_signer(
            private_key=self.key,
            signing_certificate=self.certificate,
            certificate_chain=self.chain or (self.certificate,),
        )


@dataclass(frozen=True)
class SigstoreSigner:
    """Signs by sigstore: who signs says so to an OpenID provider, and the signature is logged for everybody to see."""

    issuer: str | None = None

    def prepare(self, config: Any) -> None:
        """Raises RemoteUnavailable where sigstore cannot be reached."""
        try:
            config.use_sigstore_signer(oidc_issuer=self.issuer, use_ambient_credentials=True)
        except Exception as error:  # of several libraries that talk to the network, none of which documents its errors
            raise sigstore_unavailable(error) from error


def bundle_of(reference: Reference, manifest: bytes, signer: Signer) -> bytes:
    """The sigstore bundle that signs a manifest as a version.

    Raises InvalidArgument for a key or a certificate that does not do, RemoteUnavailable and NotAllowed of sigstore.
    """
    config = load("model_signing.signing").Config()
    # Without the paths of git, which mean nothing here: what is signed is one file, and it is told.
    config.set_hashing_config(
        load("model_signing.hashing").Config().set_ignored_paths(paths=[], ignore_git_paths=False)
    )
    signer.prepare(config)
    with signed_directory(reference, manifest) as (root, bundle):
        try:
            config.sign(root, bundle)
        except Exception as error:  # as above
            if not isinstance(signer, SigstoreSigner):
                raise InvalidArgument(f"it could not be signed: {error}", cause=str(error)) from error
            if "identity" in type(error).__name__.lower():
                raise NotAllowed(f"sigstore does not know who you are: {error}", cause=str(error)) from error
            raise sigstore_unavailable(error) from error
        return bundle.read_bytes()


def sigstore_unavailable(error: Exception) -> RemoteUnavailable:
    """The error of a sigstore that does not answer."""
    return RemoteUnavailable(
        "sigstore cannot be reached",
        cause=str(error)[:300] or type(error).__name__,
        hint="check the connection; without a network, sign with a key: deltareg sign REFERENCE --key key.pem",
    )
