"""Bringing what a lock names to this machine: just these bytes, from just this remote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltareg import referrers
from deltareg.artifact import Artifact
from deltareg.digest import Digest
from deltareg.errors import DigestMismatch, NotFound, SignatureInvalid, SignatureMissing, SignatureUntrusted
from deltareg.lock import Lock, LockedDelta
from deltareg.progress import Progress
from deltareg.resolve import LOCAL, Candidate, Sources
from deltareg.signing import StoreReferrers, verify_recorded
from deltareg.store import Entry, Store
from deltareg.transfer import pull

__all__ = ["Fetch", "check_locked", "fetch", "fetches"]

_THREADS = 4


@dataclass(frozen=True)
class Fetch:
    """One delta of a lock: what is known of it, and how many bytes of it are still to come."""

    locked: LockedDelta
    artifact: Artifact
    bytes: int
    warnings: tuple[str, ...] = ()

    @property
    def absent(self) -> bool:
        """Whether something of it is not here yet."""
        return self.bytes > 0


def fetches(lock: Lock, sources: Sources) -> list[Fetch]:
    """What has to come, of every delta of the lock. Its documents are read, and fetched where they are not here.

    Raises NotFound, DigestMismatch where a name means other bytes than the lock says, RemoteUnavailable, NotAllowed.
    """
    return [_fetch(one, sources) for one in lock.deltas]


def fetch(wanted: Sequence[Fetch], sources: Sources, threads: int | None, progress: Progress) -> None:
    """Bring what is not here. Raises what `pull` raises, DigestMismatch where the remote gives other bytes by now."""
    for one in wanted:
        if not _is_here(one.locked, sources.registry.store):
            pull(
                sources.registry,
                one.locked.name,
                sources.remote(one.locked.remote),
                # A remote may have given the name to other bytes since they were looked at.
                expected=Digest(one.locked.digest),
                threads=threads or _THREADS,
                progress=progress,
            )
        elif one.locked.signatures or sources.registry.asks_who_signed(one.locked.name.repository):
            _fetch_signatures(one.locked, sources)


def check_locked(locked: LockedDelta, sources: Sources) -> None:
    """Refuse a delta that a policy forbids, or that those who signed it when it was locked have not signed.

    A remote is asked for its policy where it is needed anyway, because not all of the delta is here. Raises
    SignatureMissing, SignatureUntrusted, SignatureInvalid, SignersChanged, RemoteUnavailable, DigestMismatch.
    """
    name, digest = locked.name, Digest(locked.digest)
    sources.check_signed(name, digest, locked.remote, ask=not _is_here(locked, sources.registry.store))
    for signature in locked.signatures:
        verify_recorded(sources.referrers(locked.remote), name, digest, signature)


def _fetch_signatures(locked: LockedDelta, sources: Sources) -> None:
    """Bring the signatures of a delta that was here before it was signed, where a policy or the lock asks for them."""
    store, name, digest = sources.registry.store, locked.name, Digest(locked.digest)
    try:
        sources.registry.check_signed(name)
        for signature in locked.signatures:
            verify_recorded([StoreReferrers(store)], name, digest, signature)
    except (SignatureMissing, SignatureUntrusted, SignatureInvalid):
        if locked.remote == LOCAL or sources.offline:
            raise
        remote = sources.remote(locked.remote)
        coming = referrers.fetchable(store, remote, name, digest)
        referrers.fetch(store, remote, name.repository, coming.carried)


def _fetch(locked: LockedDelta, sources: Sources) -> Fetch:
    store = sources.registry.store
    name, digest = locked.name, Digest(locked.digest)
    if _is_here(locked, store):
        return Fetch(locked, Artifact.open(store, digest), 0, _told(locked, store.entry(name)))
    if locked.remote == LOCAL or sources.offline:
        raise NotFound(
            f"{name} is not on this machine, not all of it",
            cause="the lock takes it from the registry of the machine that wrote the lock"
            if locked.remote == LOCAL
            else "offline, nothing is fetched",
            hint=f"publish it to a remote that both reach: deltareg push {name} --remote NAME"
            if locked.remote == LOCAL
            else "leave --offline out",
            reference=locked.reference,
        )
    source = sources.named(locked.remote)
    there = [one for one in source.candidates(name.repository) if one.reference == name]
    if not there:
        raise NotFound(
            f"the remote {locked.remote} does not have {name} any more",
            hint="deltareg update takes another version, where the recipe allows one",
            reference=locked.reference,
        )
    if there[0].digest != digest:
        raise DigestMismatch(
            f"{name} at {locked.remote} is not what was locked: its digest is {there[0].digest}, the lock has {digest}",
            cause="a published version never changes: somebody replaced it",
            hint="ask the owner of the remote what happened before you trust either",
            digest=digest,
            found=there[0].digest,
        )
    artifact = source.artifact(Candidate(name, digest, locked.remote))
    absent = _missing(artifact, store)
    moved = sum(blob.size for blob in artifact.manifest.blobs if blob.digest in absent)
    return Fetch(locked, artifact, moved, _told(locked, there[0]))


def _is_here(locked: LockedDelta, store: Store) -> bool:
    """Whether all of a version is in the local registry. Raises DigestMismatch where other bytes have its name."""
    try:
        found = store.resolve(locked.name)
    except NotFound:
        return False
    if found != locked.digest:
        raise DigestMismatch(
            f"{locked.name} in the local registry is not what was locked: its digest is {found}, the lock has "
            f"{locked.digest}",
            hint="another DELTAREG_HOME has no such version; or ask who published two of them",
            digest=locked.digest,
            found=found,
        )
    return not _missing(Artifact.open(store, found), store)


def _missing(artifact: Artifact, store: Store) -> set[Digest]:
    return store.missing([Digest(blob.digest) for blob in artifact.manifest.blobs], touch=False)


def _told(locked: LockedDelta, found: Entry | Candidate) -> tuple[str, ...]:
    """What its registry says of a version that is to be used."""
    told: list[str] = []
    if found.yanked is not None:
        reason = found.yanked or "without a reason"
        told.append(f"{locked.reference} was yanked: {reason}; deltareg update takes another version")
    if found.deprecated is not None:
        told.append(f"{locked.reference} is deprecated: {found.deprecated or 'without a reason'}")
    return tuple(told)
