"""Sigstore bundles, read strictly before anything else touches them: who claims to have signed, and what.

What is signed is a statement of model-signing about one file, `NAMESPACE/NAME/VERSION/manifest.json`: the delta's
manifest under the name that it was signed as. Its digest is the one that every registry knows the delta by, and it
names every blob by its digest: so every byte is covered, and none has to be read to sign it or to check who did.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Literal, cast

from pydantic import Field

from deltareg.digest import Digest, parse_digest
from deltareg.errors import BadManifest, BadName, SignatureInvalid, UnsupportedFormat
from deltareg.manifest import Document, parse
from deltareg.names import Reference, parse_reference

__all__ = ["BUNDLE_LIMIT", "FILE_NAME", "SIGNATURE_TYPE", "Statement", "file_of", "read_bundle"]

SIGNATURE_TYPE = "application/vnd.deltareg.signature.v1+json"
"""The artifact type of a signature: a referrer whose one layer is a sigstore bundle."""

BUNDLE_LIMIT = 1 << 20
"""Bytes of the largest bundle that is read. They have some kilobytes; certificates and log entries are most of it."""

FILE_NAME = "manifest.json"

_PAYLOAD_TYPE = "application/vnd.in-toto+json"


class _Signature(Document):
    sig: str = Field(min_length=1)


class _Envelope(Document):
    payload: str = Field(min_length=1)
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: list[_Signature] = Field(min_length=1, max_length=1)


class _KeyHint(Document):
    hint: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Certificate(Document):
    raw_bytes: str = Field(min_length=1)


class _Chain(Document):
    certificates: list[_Certificate] = Field(min_length=1, max_length=20)


class _Material(Document):
    public_key: _KeyHint | None = None
    x509_certificate_chain: _Chain | None = Field(default=None, alias="x509CertificateChain")
    certificate: _Certificate | None = None


class _Bundle(Document):
    media_type: str = Field(pattern=r"^application/vnd\.dev\.sigstore\.bundle")
    verification_material: _Material
    dsse_envelope: _Envelope


class _Resource(Document):
    name: str
    algorithm: Literal["sha256"]
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Predicate(Document):
    resources: list[_Resource] = Field(min_length=1, max_length=1)


class _Statement(Document):
    kind: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    predicate_type: Literal["https://model_signing/signature/v1.0"]
    predicate: _Predicate


@dataclass(frozen=True)
class Statement:
    """What a bundle claims; nothing of it is verified yet.

    `key` is the fingerprint of a public key: the SHA-256 digest of its PEM text. `certificates` are DER, the signer's
    first; those of sigstore have one.
    """

    reference: Reference
    digest: Digest
    kind: Literal["key", "certificate", "sigstore"]
    key: str | None = None
    certificates: tuple[bytes, ...] = ()


def file_of(reference: Reference) -> str:
    """The file that is signed for a version."""
    return f"{reference.repository}/{reference.tag}/{FILE_NAME}"


def read_bundle(data: bytes, *, what: str) -> Statement:
    """What a bundle claims. Raises SignatureInvalid where it is malformed, or of a kind that deltareg does not make."""
    try:
        bundle = parse(_Bundle, data, what=what)
        payload = _decoded(bundle.dsse_envelope.payload, what)
        statement = parse(_Statement, payload, what=f"the statement of {what}")
    except (BadManifest, UnsupportedFormat) as error:
        raise _malformed(what, error.cause or error.message) from error
    resource = statement.predicate.resources[0]
    material = bundle.verification_material
    given = [one for one in (material.public_key, material.x509_certificate_chain, material.certificate) if one]
    if len(given) != 1:
        raise _malformed(what, f"it names its signer in {len(given)} ways instead of one")
    reference = _reference_of(resource.name, what)
    digest = parse_digest(f"sha256:{resource.digest}")
    if material.public_key is not None:
        return Statement(reference, digest, "key", key=material.public_key.hint)
    if material.certificate is not None:
        return Statement(reference, digest, "sigstore", certificates=(_decoded(material.certificate.raw_bytes, what),))
    chain = cast(_Chain, material.x509_certificate_chain).certificates
    found = tuple(_decoded(one.raw_bytes, what) for one in chain)
    return Statement(reference, digest, "certificate", certificates=found)


def _reference_of(name: str, what: str) -> Reference:
    parts = name.split("/")
    try:
        if len(parts) == 4 and parts[3] == FILE_NAME:
            return parse_reference(f"{parts[0]}/{parts[1]}:{parts[2]}", version_required=True)
    except BadName:
        pass
    raise _malformed(what, f"it signs {name!r:.100}, which is no version's {FILE_NAME}")


def _decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed(what, f"it is no base64: {error}") from error


def _malformed(what: str, cause: str) -> SignatureInvalid:
    return SignatureInvalid(
        f"{what} is malformed: {cause}", cause=cause, hint="ask the publisher to sign the delta again: deltareg sign"
    )
