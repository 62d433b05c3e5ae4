"""Push and pull: only what is missing travels, and nothing is named before all of it was verified."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic import Field

from deltareg import referrers
from deltareg.artifact import Artifact
from deltareg.catalog import Registry
from deltareg.digest import Digest, parse_digest
from deltareg.errors import DigestMismatch, DiskFull, InvalidArgument, NotFound, translate_os_errors
from deltareg.manifest import Descriptor, Document, Manifest, Requirement
from deltareg.names import LATEST, Reference, as_reason, parse_reference
from deltareg.progress import SILENT, Progress
from deltareg.remote import Remote, RemoteReferrers, open_meant, read_manifest, takes_files
from deltareg.signatures import learn_signers
from deltareg.signing import StoreReferrers
from deltareg.store import MANIFEST_LIMIT, Entry, Store, parse_manifest, version_among, version_exists
from deltareg.threads import in_parallel
from deltareg.versions import parse_range

__all__ = ["Beside", "TransferReport", "pull", "push"]

_ROUNDS = 3
_NO_REASON = "no reason is given"

_Mark = Literal["yanked", "deprecated"]


Beside = Callable[[Reference, Path], Mapping[str, Path]]
"""Makes files, by name, of a version in a directory that is removed afterwards."""


class TransferReport(Document):
    """What a push or a pull moved, or would move."""

    reference: str = Field(description="the version that the other end has now")
    digest: str = Field(description="of the manifest")
    remote: str = Field(description="URL")
    blobs: int = Field(description="blobs of the artifact, without the manifest")
    moved: int = Field(description="blobs that were sent or fetched")
    bytes: int = Field(description="bytes that were sent or fetched")
    referrers: int = Field(default=0, description="signatures and other artifacts about it that were moved")
    skipped_bytes: int = Field(description="bytes of blobs that were there already, whole or in part")
    seconds: float
    dry_run: bool
    warnings: list[str] = Field(default=[], description="what the user should know")


def push(
    registry: Registry,
    reference: Reference | str,
    remote: Remote | str,
    *,
    threads: int = 4,
    dry_run: bool = False,
    progress: Progress | None = None,
    beside: Beside | None = None,
) -> TransferReport:
    """Send a version to a remote: first the blobs that it lacks, `threads` at a time, then the manifest.

    What `beside` makes of the version goes along where the remote shows such files to those who know no deltas. What
    refers to it, such as signatures, comes last. A channel or `latest` is sent as the version that it names here.
    Whether it is yanked or deprecated is for each registry to say. Raises NotFound, VersionExists, NotAllowed,
    RemoteUnavailable, DiskFull; DigestMismatch where a local blob is damaged: the remote's names are unchanged then.
    """
    begun = time.monotonic()
    _check_threads(threads)
    remote = open_meant(remote)
    store = registry.store
    wanted = _parsed(reference)
    digest = store.resolve(wanted)
    version = _version_of(wanted, digest, store.siblings(wanted))
    data = store.read(digest, limit=MANIFEST_LIMIT)
    manifest = parse_manifest(data, what=f"the manifest of {version}")
    there = _check_free(remote, version, digest)
    warnings = [*_marked_here(store, version), *_founding(remote, dry_run=dry_run)]
    lacking = _lacking(registry.artifact(version), remote.list)
    warnings += [f"{version} was taken on top of {one}, which {remote.url} lacks: push that too" for one in lacking]
    lacks = partial(remote.missing, version.repository)
    going = referrers.sendable(store, remote, version, digest)
    warnings += going.warnings
    report = partial(_report, version, digest, remote, manifest, referrers=len(going.carried), begun=begun)
    if dry_run:
        absent = _missing(lacks, manifest)
        return report(len(absent), sum(blob.size for blob in absent), dry_run=True, warnings=warnings)
    moved = size = 0
    for attempt in range(_ROUNDS):
        absent = _missing(lacks, manifest)
        size += _in_parallel("push", _sender(store, remote, version.repository), absent, threads, progress)
        moved += len(absent)
        if beside is not None and not there and attempt == 0:
            _send_beside(remote, version, beside)
        try:
            remote.put_manifest(version, data)
            break
        except NotFound:
            # Collected at the remote while a long push went on: what is gone is sent again.
            if attempt == _ROUNDS - 1:
                raise
    referrers.send(store, remote, version.repository, going.carried)
    return report(moved, size, dry_run=False, warnings=warnings)


def pull(
    registry: Registry,
    reference: Reference | str,
    remote: Remote | str,
    *,
    expected: Digest | None = None,
    threads: int = 4,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> TransferReport:
    """Bring a version from a remote: the blobs that are not here in sound form, `threads` at a time, then the name.

    A channel, `latest` or a digest brings the version that it names there; a channel is set here too. A damaged local
    copy is mended. Whether the version is yanked or deprecated there, and why, holds here too; what refers to it there,
    such as signatures, comes along. Raises NotFound, VersionExists, RemoteUnavailable, DiskFull; SignatureMissing,
    SignatureUntrusted, SignatureInvalid and SignersChanged, before a pack is fetched, where a policy, the remote's own
    among them, forbids it; DigestMismatch and
    BadManifest where the remote's bytes are not what they should be, or where the name means another digest there than
    the one that is `expected`: nothing is named then.
    """
    begun = time.monotonic()
    _check_threads(threads)
    remote = open_meant(remote)
    store = registry.store
    wanted = _parsed(reference)
    digest = parse_digest(remote.resolve(wanted))
    _check_expected(remote, wanted, digest, expected or wanted.digest)
    entries = remote.list(wanted.repository)
    version = _version_of(wanted, digest, entries)
    marks = _marks_among(entries, version)
    warnings = [f"{version} is {told} at {remote.url}: {reason}" for told, reason in marks.items()]
    data = read_manifest(remote, wanted.repository, digest)
    manifest = parse_manifest(data, what=f"the manifest of {version} from {remote.url}")
    store.check_free(version, digest)
    learn_signers(registry, remote, version.namespace, keep=not dry_run)
    registry.check_policies(version, digest, [RemoteReferrers(remote), StoreReferrers(store)])
    coming = referrers.fetchable(store, remote, version, digest)
    warnings += coming.warnings
    report = partial(_report, version, digest, remote, manifest, begun=begun)
    if dry_run:
        absent = _missing(lambda digests: store.missing(digests, touch=False), manifest)
        size = sum(blob.size - store.kept(blob) for blob in absent)
        return report(len(absent), size, referrers=len(coming.carried), dry_run=True, warnings=warnings)
    with store.hold():
        absent = _missing(store.missing, manifest)
        present = [blob for blob in manifest.blobs if blob not in absent]
        absent += _damaged(store, present, threads, progress)
        _check_space(store, absent)
        size = _in_parallel("pull", _fetcher(store, remote, wanted.repository), absent, threads, progress)
        store.publish(version, data, **marks)
        lost = referrers.fetch(store, remote, version.repository, coming.carried)
        warnings += lost
        if version in {entry.reference for entry in entries}:
            _follow_marks(store, version, marks)
        _follow_channel(store, wanted, digest)
    for one in _lacking(registry.artifact(version), store.entries_of):
        hint = f"deltareg pull {one.name} --remote {remote.url}"
        warnings.append(f"{version} was taken on top of {one}, which is not here: {hint}")
    came = len(coming.carried) - len(lost)
    return report(len(absent), size, referrers=came, dry_run=False, warnings=warnings)


_Work = Callable[[Descriptor, Progress], int]


def _in_parallel(step: str, work: _Work, blobs: Sequence[Descriptor], threads: int, progress: Progress | None) -> int:
    """Do `work` for each blob, as a step of its own, and add up what it returns."""
    if not blobs:
        return 0
    progress = progress or SILENT
    with progress.step(step, sum(blob.size for blob in blobs)):
        return in_parallel(work, blobs, threads, progress)


def _sender(store: Store, remote: Remote, repository: str) -> _Work:
    def send(blob: Descriptor, progress: Progress) -> int:
        return remote.put_blob(repository, blob, store.path(Digest(blob.digest)), progress)

    return send


def _fetcher(store: Store, remote: Remote, repository: str) -> _Work:
    def fetch(blob: Descriptor, progress: Progress) -> int:
        with store.resume(blob) as writer:
            moved = writer.fill(lambda offset: remote.get_blob(repository, blob, offset), progress, origin=remote.url)
            writer.commit()
        return moved

    return fetch


def _damaged(store: Store, blobs: Sequence[Descriptor], threads: int, progress: Progress | None) -> list[Descriptor]:
    """Those of the blobs in the store that are not what their descriptors say."""
    found: list[Descriptor] = []

    def check(blob: Descriptor, progress: Progress) -> int:
        try:
            store.verify(blob, progress)
        except DigestMismatch:
            found.append(blob)
        return 0

    _in_parallel("check", check, blobs, threads, progress)
    return found


def _missing(ask: Callable[[Iterable[Digest]], set[Digest]], manifest: Manifest) -> list[Descriptor]:
    digests = ask([Digest(blob.digest) for blob in manifest.blobs])
    return [blob for blob in manifest.blobs if blob.digest in digests]


def _check_expected(remote: Remote, wanted: Reference, digest: Digest, expected: Digest | None) -> None:
    if expected not in (None, digest):
        raise DigestMismatch(
            f"{wanted} at {remote.url} is not what is expected: its digest is {digest}, not {expected}",
            hint="ask the owner of the remote what happened before you trust either",
            digest=expected,
            found=digest,
        )


def _version_of(wanted: Reference, digest: Digest, entries: Iterable[Entry]) -> Reference:
    """The version that `digest` has: the one that is wanted, or the highest. Raises NotFound."""
    version = version_among(entries, wanted, digest)
    if version is None:
        raise NotFound(f"{wanted} names no version", cause=f"{digest} has none", hint="name a version")
    return version


def _send_beside(remote: Remote, version: Reference, beside: Beside) -> None:
    if not takes_files(remote):
        return
    with translate_os_errors("make the files beside it", tempfile.gettempdir()), TemporaryDirectory() as folder:
        files = beside(version, Path(folder))
        if files:
            remote.put_files(version, files)


def _check_free(remote: Remote, version: Reference, digest: Digest) -> bool:
    """Refuse before any blob is sent; `put_manifest` is what decides. Whether the same bytes are there already."""
    try:
        found = remote.resolve(version)
    except NotFound:
        return False
    if found != digest:
        raise version_exists(version, found, f" at {remote.url}")
    return True


def _founding(remote: Remote, *, dry_run: bool) -> list[str]:
    """What to tell of a remote that is no registry yet: an empty directory is what an unmounted disk looks like."""
    if not remote.capabilities().vacant:
        return []
    return [f"{'would make' if dry_run else 'made'} a new registry at {remote.url}, which was empty"]


def _check_space(store: Store, blobs: Iterable[Descriptor]) -> None:
    # Sizes come from the remote: an absurd one is refused here, before a byte is asked for.
    needed = sum(blob.size - store.kept(blob) for blob in blobs)
    free = shutil.disk_usage(store.root).free
    if needed > free:
        raise DiskFull(
            f"{needed} bytes are to be stored in {store.root}, where {free} are free",
            hint="free some space, or set DELTAREG_HOME to a directory on a larger disk",
            needed=needed,
            free=free,
        )


def _lacking(artifact: Artifact, entries_of: Callable[[str], Iterable[Entry]]) -> list[Requirement]:
    """What a delta requires and a registry lacks, whose names `entries_of` tells."""
    return [
        required
        for required in artifact.config.requires
        if not any(
            entry.reference.version is not None
            and parse_range(required.version).has(entry.reference.version)
            and required.digest in (None, entry.digest)
            for entry in entries_of(required.reference)
        )
    ]


def _marked_here(store: Store, version: Reference) -> list[str]:
    commands = {"yanked": "yank", "deprecated": "deprecate"}
    return [
        f"{version} is {told} here: {reason}; what the remote says of it stays as it is: deltareg {commands[told]} "
        "--remote changes it"
        for told, reason in _marks_among(store.siblings(version), version).items()
    ]


def _marks_among(entries: Iterable[Entry], version: Reference) -> dict[_Mark, str]:
    """Why a version is yanked or deprecated, as far as that can be taken over; without what it is not."""
    entry = next((entry for entry in entries if entry.reference == version), None)
    if entry is None:
        return {}
    told: dict[_Mark, str | None] = {"yanked": entry.yanked, "deprecated": entry.deprecated}
    return {mark: as_reason(reason) or _NO_REASON for mark, reason in told.items() if reason is not None}


def _follow_marks(store: Store, version: Reference, marks: Mapping[_Mark, str]) -> None:
    if (reason := marks.get("yanked")) is None:
        store.unyank(version)
    else:
        store.yank(version, reason)
    if (reason := marks.get("deprecated")) is None:
        store.undeprecate(version)
    else:
        store.deprecate(version, reason)


def _follow_channel(store: Store, wanted: Reference, digest: Digest) -> None:
    if wanted.tag is None or wanted.tag == LATEST or wanted.version is not None:
        return
    now = store.snapshot().entry(wanted)
    store.set_channel(wanted.repository, wanted.tag, digest, None if now is None else now.digest)


def _report(
    version: Reference,
    digest: Digest,
    remote: Remote,
    manifest: Manifest,
    moved: int,
    size: int,
    *,
    referrers: int,
    begun: float,
    dry_run: bool,
    warnings: Sequence[str] = (),
) -> TransferReport:
    return TransferReport(
        reference=str(version),
        digest=digest,
        remote=remote.url,
        blobs=len(manifest.blobs),
        moved=moved,
        bytes=size,
        referrers=referrers,
        skipped_bytes=max(0, sum(blob.size for blob in manifest.blobs) - size),
        seconds=time.monotonic() - begun,
        dry_run=dry_run,
        warnings=list(warnings),
    )


def _check_threads(threads: int) -> None:
    if threads < 1:
        raise InvalidArgument(f"threads is {threads}; it takes 1 or more")


def _parsed(reference: Reference | str) -> Reference:
    return reference if isinstance(reference, Reference) else parse_reference(reference)
