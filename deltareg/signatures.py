"""Signing a delta, and telling who signed one: here or at a remote."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import Field

from deltareg import referrers
from deltareg.catalog import Registry
from deltareg.digest import Digest, parse_digest, sha256
from deltareg.errors import BadManifest, DigestMismatch, NotFound
from deltareg.manifest import EMPTY_TYPE, MANIFEST_TYPE, Descriptor, Document, ReferrerManifest, encode
from deltareg.names import Reference, parse_reference
from deltareg.remote import Remote, RemoteReferrers, tells_signers
from deltareg.signing import (
    SIGNATURE_TYPE,
    PinnedKey,
    SignatureRow,
    Signer,
    StoreReferrers,
    Trusted,
    bundle_of,
    read_bundle,
    signatures,
    told_keys,
    unreadable,
    verify,
)
from deltareg.signing.trust import signer_of
from deltareg.store import MANIFEST_LIMIT, Entry, parse_manifest, version_among
from deltareg.store.index import CREATED

__all__ = ["SignReport", "SignatureReport", "ask_signers", "learn_signers", "sign", "signatures_of", "verify_signed"]

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGNER = "vnd.deltareg.signer"
"""Annotation of a signature's manifest: who says that they signed, for those who read no bundles."""

_EMPTY = b"{}"


class SignReport(Document):
    """What was signed, or would be."""

    reference: str = Field(description="the version that was signed")
    digest: str = Field(description="of its manifest")
    signature: str | None = Field(description="digest of the signature's manifest; null of a dry run")
    signer: str | None = Field(description="a key's fingerprint, or a certificate's names; null of a dry run")
    registry: str = Field(description="path of the local registry's home")
    remote: str | None = Field(default=None, description="URL of the remote that has the signature too")
    dry_run: bool


class SignatureReport(Document):
    """Who signed a delta."""

    reference: str
    digest: str = Field(description="of its manifest")
    registry: str = Field(description="path of the local registry's home, or the remote's URL")
    signed_by: list[str] = Field(description="whose signature was asked for, one of them")
    signatures: list[SignatureRow]


def sign(
    registry: Registry,
    reference: Reference | str,
    signer: Signer,
    *,
    remote: Remote | None = None,
    dry_run: bool = False,
) -> SignReport:
    """Sign a version of the local registry, and store the signature beside it; at a `remote` too, which has to have it.

    What is signed is the manifest under the name of the version: it names every blob by its digest, so that all of
    them are covered and none is read. That they are there is checked. Raises NotFound, DigestMismatch, InvalidArgument
    for a key that does not do, RemoteUnavailable.
    """
    store = registry.store
    wanted = reference if isinstance(reference, Reference) else parse_reference(reference)
    digest = store.resolve(wanted)
    version = _version_of(wanted, digest, store.siblings(wanted))
    raw = store.read(digest, limit=MANIFEST_LIMIT)
    _check_whole(registry, version, raw)
    if remote is not None:
        _check_same(remote, version, digest)
    bundle = bundle_of(version, raw, signer)
    told = signer_of(read_bundle(bundle, what="the signature"))
    signature = None
    if not dry_run:
        with store.hold():
            signature = store.put_referrer(version.repository, _referrer(registry, digest, len(raw), bundle, told))
        if remote is not None:
            going = referrers.sendable(store, remote, version, digest).carried
            referrers.send(store, remote, version.repository, [one for one in going if one.digest == signature])
    return SignReport(
        reference=str(version),
        digest=digest,
        signature=signature,
        signer=None if dry_run else told,
        registry=str(registry.home),
        remote=None if remote is None else remote.url,
        dry_run=dry_run,
    )


def verify_signed(place: Registry | Remote, reference: Reference | str, trusted: Sequence[Trusted]) -> SignatureReport:
    """Check that a version, here or at a remote, has a signature of somebody `trusted`.

    Raises NotFound, SignatureMissing, SignatureUntrusted, SignatureInvalid, RemoteUnavailable.
    """
    name, digest = _found(place, reference)
    source = StoreReferrers(place.store) if isinstance(place, Registry) else RemoteReferrers(place)
    return SignatureReport(
        reference=str(name),
        digest=digest,
        registry=str(place.home) if isinstance(place, Registry) else place.url,
        signed_by=[one.name for one in trusted],
        signatures=verify(source, name, digest, trusted),
    )


def signatures_of(registry: Registry, reference: Reference | str) -> list[SignatureRow]:
    """The signatures of a version of the local registry, none of them verified. Raises NotFound."""
    name, digest = _found(registry, reference)
    return signatures(StoreReferrers(registry.store), name, digest)


def learn_signers(registry: Registry, remote: Remote, namespace: str, *, keep: bool = True) -> None:
    """Ask a remote who has to sign what is in a namespace, and hold it to that from now on: see `Pins.learn`.

    Raises BadManifest where what it tells cannot be read, BadConfig, RemoteUnavailable, NotAllowed, DiskFull.
    """
    registry.pins.learn(remote.url, namespace, ask_signers(remote, namespace), keep=keep)


def ask_signers(remote: Remote, namespace: str) -> list[PinnedKey]:
    """The keys that a remote names for a namespace; none where it is of a kind that names nobody.

    Raises BadManifest where what it tells cannot be read, RemoteUnavailable, NotAllowed.
    """
    if not tells_signers(remote):
        return []
    try:
        texts = remote.signers(namespace)
    except BadManifest as error:
        raise unreadable(remote.url, namespace, error.cause or error.message) from error
    return told_keys(remote.url, namespace, texts)


def _found(place: Registry | Remote, reference: Reference | str) -> tuple[Reference, Digest]:
    """The version that a name means, or the digest where it is given, and the digest."""
    wanted = reference if isinstance(reference, Reference) else parse_reference(reference)
    if isinstance(place, Registry):
        digest, entries = place.store.resolve(wanted), place.store.siblings(wanted)
    else:
        digest, entries = parse_digest(place.resolve(wanted)), place.list(wanted.repository)
    return (wanted if wanted.digest is not None else _version_of(wanted, digest, entries)), digest


def _version_of(wanted: Reference, digest: Digest, entries: Sequence[Entry]) -> Reference:
    version = version_among(entries, wanted, digest)
    if version is None:
        raise NotFound(f"{wanted} names no version", cause=f"{digest} has none", hint="name a version")
    return version


def _check_whole(registry: Registry, version: Reference, raw: bytes) -> None:
    blobs = parse_manifest(raw, what=f"the manifest of {version}").blobs
    absent = registry.store.missing([Digest(blob.digest) for blob in blobs], touch=False)
    if absent:
        raise NotFound(
            f"{version} is not whole: {len(absent)} of its {len(blobs)} blobs are missing: {min(absent)}",
            hint=f"deltareg pull {version}",
            missing=sorted(absent),
        )
    for blob in blobs:
        size = registry.store.size(Digest(blob.digest))
        if size != blob.size:
            raise DigestMismatch(
                f"{blob.digest} of {version} is damaged: it has {size} bytes instead of {blob.size}",
                hint="deltareg cache fsck --drop-damaged, then pull the delta again",
                digest=blob.digest,
            )


def _check_same(remote: Remote, version: Reference, digest: Digest) -> None:
    hint = f"send it first: deltareg push {version} --remote {remote.url}"
    try:
        found = remote.resolve(version)
    except NotFound as error:
        raise NotFound(f"{remote.url} does not have {version}", cause=error.cause, hint=hint) from error
    if found != digest:
        raise DigestMismatch(
            f"{version} at {remote.url} is another one than here: its digest is {found}, not {digest}",
            hint="ask the owner of the remote what happened before you sign either",
            digest=digest,
            found=found,
        )


def _referrer(registry: Registry, digest: Digest, size: int, bundle: bytes, signer: str) -> bytes:
    """Store the blobs of a signature; return its manifest."""
    for data in (_EMPTY, bundle):
        registry.store.put(data)
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return encode(
        ReferrerManifest(
            artifact_type=SIGNATURE_TYPE,
            config=Descriptor(media_type=EMPTY_TYPE, digest=sha256(_EMPTY), size=len(_EMPTY)),
            layers=[Descriptor(media_type=BUNDLE_TYPE, digest=sha256(bundle), size=len(bundle))],
            subject=Descriptor(media_type=MANIFEST_TYPE, digest=digest, size=size),
            # Who signed is told beside the bundle too, for registries and people that read none. It is a claim.
            annotations={CREATED: created, SIGNER: signer},
        )
    )
