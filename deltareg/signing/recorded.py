"""What a lock keeps of who signed, and whether it still holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deltareg.digest import Digest
from deltareg.errors import NotFound, SignatureInvalid, SignatureMissing
from deltareg.lock import LockedSignature
from deltareg.names import Reference
from deltareg.signing.bundle import Statement, read_bundle
from deltareg.signing.keys import fingerprint_of, parse_public_key, pem_of
from deltareg.signing.library import signed_directory
from deltareg.signing.policy import Verified
from deltareg.signing.source import ReferrerSource, bundle_in
from deltareg.signing.trust import TrustedIdentity, TrustedKey, signer_of
from deltareg.signing.verify import mistaken

__all__ = ["record", "verify_recorded"]


def record(verified: Sequence[Verified], before: Sequence[LockedSignature] = ()) -> list[LockedSignature]:
    """What a lock keeps of signatures that were verified: one of each person, the one that it had where that does.

    Without any, what it had: who has no policy takes nothing away.
    """
    if not verified:
        return list(before)
    known = {one.digest for one in before}
    chosen: dict[str, Verified] = {}
    for one in sorted(verified, key=lambda one: one.row.digest not in known):
        chosen.setdefault(one.person.name, one)
    found = {one.row.digest: _locked(one) for one in chosen.values()}
    return sorted(found.values(), key=lambda one: one.digest)


def verify_recorded(
    sources: Iterable[ReferrerSource], reference: Reference, digest: Digest, recorded: LockedSignature
) -> None:
    """Check that a signature that a lock has is there, is of that delta, and of that signer.

    A key's is verified by the key that the lock has: no policy and no network is needed. Of a certificate's or
    sigstore's it is checked that it is the very one that was verified for the lock: its digest covers it. Raises
    SignatureMissing, SignatureInvalid, RemoteUnavailable.
    """
    for source in sources:
        try:
            bundle = bundle_in(source, reference.repository, digest, Digest(recorded.digest))
            manifest = source.read_manifest(reference.repository, digest)
        except NotFound:
            continue
        statement = read_bundle(bundle, what=f"the signature {recorded.digest}")
        fault = mistaken(statement, reference, digest) or _other_signer(statement, recorded)
        if fault is not None:
            raise _refused(reference, fault)
        if recorded.key is not None:
            _check_key(statement, manifest, bundle, reference, recorded.key)
        return
    raise SignatureMissing(
        f"the signature by which {recorded.signer} signed {reference} is gone; the lock asks for it",
        cause=f"neither this registry nor the remote has {recorded.digest}",
        hint="deltareg lock writes down who signs it now",
        digest=recorded.digest,
    )


def _locked(verified: Verified) -> LockedSignature:
    row, person = verified.row, verified.person
    assert row.kind is not None and row.signer is not None, "it was verified"
    return LockedSignature(
        digest=row.digest,
        kind=row.kind,
        signer=person.name if isinstance(person, TrustedIdentity) else row.signer,
        key=person.pem.decode() if isinstance(person, TrustedKey) else None,
    )


def _other_signer(statement: Statement, recorded: LockedSignature) -> str | None:
    if statement.kind != recorded.kind:
        return f"it is by a {statement.kind}, not by a {recorded.kind}"
    # What a certificate of sigstore is called here does not name the provider; its digest tells it all the same.
    found = signer_of(statement)
    return None if recorded.kind == "sigstore" or found == recorded.signer else f"it is by {found}"


def _check_key(statement: Statement, manifest: bytes, bundle: bytes, reference: Reference, pem: str) -> None:
    key = parse_public_key(pem.encode(), f"the key of {reference} in the lock")
    person = TrustedKey("the lock", pem_of(key), fingerprint_of(key))
    if not person.claims(statement):
        raise _refused(reference, f"the key in the lock is another one: {person.fingerprint}")
    with signed_directory(statement.reference, manifest) as (root, path):
        path.write_bytes(bundle)
        person.check(statement, root, path)


def _refused(reference: Reference, why: str) -> SignatureInvalid:
    return SignatureInvalid(
        f"the signature of {reference} is not what the lock says: {why}",
        cause=why,
        hint="take the lock from version control again; or write it anew: deltareg lock",
    )
