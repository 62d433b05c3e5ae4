"""Who signed a delta: each signature on its own, and whether one of those that are trusted did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from deltareg.digest import Digest
from deltareg.errors import (
    BadManifest,
    DigestMismatch,
    NotFound,
    RemoteUnavailable,
    SignatureInvalid,
    SignatureMissing,
    SignatureUntrusted,
)
from deltareg.manifest import Document
from deltareg.names import Reference
from deltareg.signing.bundle import SIGNATURE_TYPE, Statement, read_bundle
from deltareg.signing.library import signed_directory
from deltareg.signing.source import ReferrerSource, bundle_in
from deltareg.signing.trust import Trusted, signer_of

__all__ = ["MOST_SIGNATURES", "SignatureRow", "mistaken", "signatures", "verify"]

MOST_SIGNATURES = 100
"""Signatures of one delta that are looked at: each costs two requests, and strangers may be able to add more."""

_SHOWN = 8


class SignatureRow(Document):
    """One signature of a delta."""

    digest: str = Field(description="of the signature's manifest")
    kind: Literal["key", "certificate", "sigstore"] | None = Field(description="null where it is malformed")
    signer: str | None = Field(description="who it says signed: a key's fingerprint, or a certificate's names")
    reference: str | None = Field(description="the version that it was signed as")
    trusted: str | None = Field(default=None, description="whose it was verified to be, as --signed-by named them")
    fault: str | None = Field(default=None, description="what is wrong with it")


def signatures(source: ReferrerSource, reference: Reference, digest: Digest) -> list[SignatureRow]:
    """The signatures of a delta, none of them verified: what they claim, and what is wrong at a first look.

    `reference` is the version, or the digest where it does not matter which.
    """
    return [row for row, _, _ in _read(source, reference, digest)]


def verify(
    source: ReferrerSource, reference: Reference, digest: Digest, trusted: Sequence[Trusted]
) -> list[SignatureRow]:
    """The signatures of a delta, of which at least one holds and is of somebody `trusted`.

    Raises SignatureMissing where there is none, SignatureUntrusted where others signed, SignatureInvalid where what
    there is does not hold; RemoteUnavailable. None of them depends on what strangers add: one good one suffices.
    """
    found = _read(source, reference, digest)
    if not found:
        raise SignatureMissing(
            f"{reference} is not signed",
            cause=f"{source.name} has no signature of {digest}",
            hint=f"ask its publisher for one: deltareg sign {reference} --key key.pem --remote REMOTE; then pull it",
            digest=digest,
        )
    if not any(row.fault is None for row, _, _ in found):
        raise _none_holds(reference, [row for row, _, _ in found], trusted)
    manifest = source.read_manifest(reference.repository, digest)
    rows: list[SignatureRow] = []
    unavailable: RemoteUnavailable | None = None
    for row, statement, bundle in found:
        try:
            rows.append(_checked(row, statement, bundle, manifest, trusted))
        except RemoteUnavailable as error:
            # Where sigstore cannot be asked, a signature of a key may still suffice.
            unavailable = error
            rows.append(row.model_copy(update={"fault": f"it could not be checked: {error.message}"}))
    if any(row.trusted is not None for row in rows):
        return rows
    raise unavailable or _none_holds(reference, rows, trusted)


_Found = tuple[SignatureRow, Statement | None, bytes]


def _read(source: ReferrerSource, reference: Reference, digest: Digest) -> list[_Found]:
    listed = source.referrers(reference.repository, digest, SIGNATURE_TYPE)[:MOST_SIGNATURES]
    return [_row(source, reference, digest, Digest(one.digest)) for one in listed]


def _row(source: ReferrerSource, reference: Reference, digest: Digest, signature: Digest) -> _Found:
    try:
        bundle = bundle_in(source, reference.repository, digest, signature)
        statement = read_bundle(bundle, what=f"the signature {signature}")
    except (SignatureInvalid, BadManifest, DigestMismatch, NotFound) as error:
        return SignatureRow(digest=signature, kind=None, signer=None, reference=None, fault=error.message), None, b""
    row = SignatureRow(
        digest=signature,
        kind=statement.kind,
        signer=signer_of(statement),
        reference=str(statement.reference),
        fault=mistaken(statement, reference, digest),
    )
    return row, statement, bundle


def mistaken(statement: Statement, reference: Reference, digest: Digest) -> str | None:
    """What a signature that may be sound is not for."""
    if statement.digest != digest:
        return f"it signs other bytes: {statement.digest}, not {digest}"
    signed = statement.reference
    # By its digest a delta is the same under each of its versions.
    same = signed.repository == reference.repository and (reference.version is None or signed.tag == reference.tag)
    return None if same else f"it signs {signed}, not {reference}"


def _checked(
    row: SignatureRow, statement: Statement | None, bundle: bytes, manifest: bytes, trusted: Sequence[Trusted]
) -> SignatureRow:
    claimed = [one for one in trusted if statement is not None and row.fault is None and one.claims(statement)]
    if statement is None or not claimed:
        return row
    faults: list[str] = []
    with signed_directory(statement.reference, manifest) as (root, path):
        path.write_bytes(bundle)
        for one in claimed:
            try:
                one.check(statement, root, path)
                return row.model_copy(update={"trusted": one.name})
            except SignatureUntrusted:
                continue
            except SignatureInvalid as error:
                faults.append(error.message)
    return row.model_copy(update={"fault": "; ".join(faults) or None})


def _none_holds(
    reference: Reference, rows: Sequence[SignatureRow], trusted: Sequence[Trusted]
) -> SignatureInvalid | SignatureUntrusted:
    wanted = " or ".join(one.name for one in trusted)
    strangers = [row.signer for row in rows if row.fault is None and row.signer is not None]
    faults = [row.fault for row in rows if row.fault is not None]
    data = {"signatures": [row.model_dump(mode="json") for row in rows[:_SHOWN]]}
    if strangers and not any(row.fault is not None and row.kind is not None for row in rows):
        return SignatureUntrusted(
            f"{reference} is not signed by {wanted}, but by {_told(strangers)}",
            cause=_told(faults) if faults else None,
            hint="if you trust them, name their key too; else ask the publisher which key they sign with",
            **data,
        )
    return SignatureInvalid(
        f"no signature of {reference} holds: {_told(faults)}",
        cause=f"others that signed: {_told(strangers)}" if strangers else None,
        hint="do not use the delta before its publisher has signed it again",
        **data,
    )


def _told(texts: Sequence[str]) -> str:
    more = len(texts) - _SHOWN
    return "; ".join(texts[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
