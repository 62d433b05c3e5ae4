"""Reading an archive into the local registry: every digest is verified, and nothing is named before all is here."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from deltareg.archive.report import ArchivedName, ArchiveReport
from deltareg.archive.tar import Member, members
from deltareg.catalog import Registry
from deltareg.digest import Digest, parse_digest, parse_json, sha256
from deltareg.errors import (
    BadArchive,
    BadManifest,
    BadName,
    DigestMismatch,
    DiskFull,
    NotFound,
    translate_os_errors,
)
from deltareg.manifest import MANIFEST_TYPE, Descriptor, Index, parse
from deltareg.names import LATEST, Reference, as_reason, parse_reference
from deltareg.progress import SILENT, Progress
from deltareg.store import LAYOUT, MANIFEST_LIMIT, Store, parse_manifest, parse_referrer
from deltareg.store.changes import config_of
from deltareg.store.index import DEPRECATED, REF_NAME, YANKED
from deltareg.store.referrers import REFERRERS_LIMIT

__all__ = ["import_archive"]

_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_LAYOUT_LIMIT = 4096
_INDEX_LIMIT = 64 << 20
_CONFIG_LIMIT = 16 << 20
_NO_REASON = "no reason is given"


def import_archive(
    registry: Registry,
    file: Path | BinaryIO,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ArchiveReport:
    """Bring the versions and channels of an archive, a file or a stream, into the local registry.

    Nothing is extracted: each blob goes to the place that its digest says, once it has it. Names are set when all of
    the archive was read and found sound. A version that is here with the same bytes is no error; what is yanked or
    deprecated in the archive is so here, too. With `dry_run` the archive is read and checked, and nothing is stored.

    Raises BadArchive, DigestMismatch, BadManifest; VersionExists where a version has other bytes here; NotFound,
    NotAllowed, DiskFull.
    """
    begun = time.monotonic()
    name = str(file) if isinstance(file, Path) else "-"
    reading = _Reading(registry.store, name, progress or SILENT, keeps=not dry_run)
    with nullcontext() if dry_run else registry.store.hold():
        if isinstance(file, Path):
            with _opened(file) as stream:
                reading.read(stream, file.stat().st_size)
        else:
            reading.read(file, 0)
        names = reading.finish()
    return ArchiveReport(
        file=name,
        names=names,
        blobs=len(reading.blobs),
        bytes=reading.bytes,
        seconds=time.monotonic() - begun,
        dry_run=dry_run,
        warnings=reading.warnings,
    )


def _opened(file: Path) -> BinaryIO:
    with translate_os_errors("read the archive", file):
        try:
            return file.open("rb")
        except FileNotFoundError as error:
            raise NotFound(
                f"{file} is not there", hint="name the file that deltareg export wrote", path=file
            ) from error


class _Counted:
    """A stream that counts."""

    def __init__(self, stream: BinaryIO, progress: Progress) -> None:
        self._stream = stream
        self._progress = progress
        self.count = 0

    def read(self, count: int, /) -> bytes:
        data = self._stream.read(count)
        self.count += len(data)
        self._progress.advance(len(data))
        return data


class _Reading:
    """One archive on its way into a store; without `keeps` it is only looked at."""

    def __init__(self, store: Store, name: str, progress: Progress, *, keeps: bool) -> None:
        self.blobs: dict[Digest, int] = {}
        self.warnings: list[str] = []
        self.bytes = 0
        self._store = store
        self._name = name
        self._progress = progress
        self._keeps = keeps
        self._layout = False
        self._index: Index | None = None
        self._documents: dict[Digest, bytes] = {}
        # What is only looked at: the manifests that the index names, the configs that these name, and those seen.
        self._manifests: dict[str, Reference | None] = {}
        self._configs: dict[str, tuple[Reference, Descriptor]] = {}
        self._sound: set[str] = set()

    def read(self, stream: BinaryIO, size: int) -> None:
        """Read all of it: blobs are stored and stay without names."""
        with self._progress.step("import", size):
            counted = _Counted(stream, self._progress)
            for member in members(counted, self._name):
                self._take(member)
            self.bytes = counted.count
        if not self._layout or self._index is None:
            lacks = "index.json" if self._layout else "oci-layout"
            raise BadArchive(
                f"{self._name} is no archive of deltas: it has no {lacks}", hint="import what deltareg export wrote"
            )

    def _take(self, member: Member) -> None:
        found = _BLOB.fullmatch(member.name)
        if member.name == "oci-layout":
            if parse_json(member.read(_LAYOUT_LIMIT), what=f"oci-layout in {self._name}") != LAYOUT:
                raise BadArchive(f"{self._name} is an image layout of another version than 1.0.0")
            self._layout = True
        elif member.name == "index.json":
            self._index = parse(Index, member.read(_INDEX_LIMIT), what=f"index.json in {self._name}")
            self._manifests = dict.fromkeys(one.digest for one in self._index.manifests)
            # Before gigabytes are read.
            for reference, descriptor in _named(self._index, self._name):
                if reference.version is not None:
                    self._manifests[descriptor.digest] = reference
                    self._store.check_free(reference, Digest(descriptor.digest))
        elif found is not None:
            self._take_blob(Digest(f"sha256:{found[1]}"), member)
        else:
            raise BadArchive(f"{self._name} holds {member.name!r}, which no archive of deltas has")

    def _take_blob(self, digest: Digest, member: Member) -> None:
        self.blobs[digest] = member.size
        blob = Descriptor(media_type="application/octet-stream", digest=digest, size=member.size)
        if not self._keeps or self._is_here(blob):
            self._check(blob, member.pieces())
            return
        free = shutil.disk_usage(self._store.root).free
        if member.size > free:
            raise DiskFull(
                f"{digest} in {self._name} has {member.size} bytes; {free} are free in {self._store.root}",
                hint="free some space, or set DELTAREG_HOME to a directory on a larger disk",
                needed=member.size,
                free=free,
            )
        with self._store.resume(blob) as writer:
            # The stream comes once: what an earlier, cut-off writer left is not waited for.
            writer.restart()
            writer.fill(lambda _: member.pieces(), SILENT, origin=f"{member.name} in {self._name}")
            writer.commit()

    def _is_here(self, blob: Descriptor) -> bool:
        """Whether the store has a blob in sound form, which `gc` leaves alone from now on."""
        if self._store.missing([Digest(blob.digest)]):
            return False
        try:
            self._store.verify(blob)
        except DigestMismatch:
            return False
        return True

    def _check(self, blob: Descriptor, pieces: Iterator[bytes]) -> None:
        hasher = hashlib.sha256()
        kept: list[bytes] = []
        keeps = (blob.digest in self._manifests and blob.size <= MANIFEST_LIMIT) or (
            blob.digest in self._configs and blob.size <= _CONFIG_LIMIT
        )
        for piece in pieces:
            hasher.update(piece)
            if keeps:
                kept.append(piece)
        if f"sha256:{hasher.hexdigest()}" != blob.digest:
            raise DigestMismatch(
                f"the bytes of {blob.digest} in {self._name} are not those of that digest",
                cause="at least one bit differs",
                hint="copy the file again",
                digest=blob.digest,
            )
        if keeps:
            self._look_at(Digest(blob.digest), b"".join(kept))

    def _look_at(self, digest: Digest, data: bytes) -> None:
        if digest in self._configs:
            config_of(*self._configs[digest], data)
            self._sound.add(digest)
        if digest in self._manifests:
            self._documents[digest] = data
            reference = self._manifests[digest]
            if reference is not None:
                config = parse_manifest(data, what=f"the manifest of {reference} in {self._name}").config
                self._configs[config.digest] = (reference, config)

    # --- names ---

    def finish(self) -> list[ArchivedName]:
        """Set the names, once all of them were found to be possible. Raises BadArchive, VersionExists."""
        assert self._index is not None
        names = _named(self._index, self._name)
        versions = [(reference, one) for reference, one in names if reference.version is not None]
        channels = [(reference, one) for reference, one in names if reference.version is None]
        manifests = {one.digest: self._manifest(reference, one) for reference, one in versions}
        for reference, one in channels:
            if not any((v.repository, d.digest) == (reference.repository, one.digest) for v, d in versions):
                raise BadArchive(f"{reference} in {self._name} names no version of the archive")
        repositories = {one.digest: reference.repository for reference, one in versions}
        untagged = [one for one in self._index.manifests if REF_NAME not in (one.annotations or {})]
        referrers = [self._referrer(Digest(one.digest), repositories) for one in untagged]
        self._check_room(referrers)
        # All that could be wrong was looked at. From here on it is written.
        found = [self._version(reference, one, manifests[one.digest]) for reference, one in versions]
        for repository, data in referrers if self._keeps else []:
            self._store.put_referrer(repository, data)
        return [*found, *(self._channel(reference, Digest(one.digest)) for reference, one in channels)]

    def _manifest(self, reference: Reference, descriptor: Descriptor) -> bytes:
        """The manifest of a version, all of whose blobs came. Raises BadArchive, VersionExists."""
        digest = Digest(descriptor.digest)
        self._store.check_free(reference, digest)
        data = self._document(digest, str(reference))
        manifest = parse_manifest(data, what=f"the manifest of {reference} in {self._name}")
        self._check_blobs(manifest.blobs, reference)
        if self._keeps:
            config = self._store.read(Digest(manifest.config.digest), limit=_CONFIG_LIMIT)
            config_of(reference, manifest.config, config)
        elif manifest.config.digest not in self._sound:
            # Other programs may write it before the manifest, and it was not known yet what it is.
            self.warnings.append(f"the config of {reference} was not looked at: it comes before the manifest")
        return data

    def _check_blobs(self, needed: list[Descriptor], what: Reference | Digest) -> None:
        absent = [blob.digest for blob in needed if self.blobs.get(Digest(blob.digest)) != blob.size]
        if absent:
            raise BadArchive(f"{self._name} lacks {len(absent)} blobs of {what}: {', '.join(absent[:3])}")

    def _document(self, digest: Digest, what: str) -> bytes:
        if digest not in self.blobs:
            raise BadArchive(f"{self._name} lacks the manifest of {what}: {digest}")
        if self._keeps:
            return self._store.read(digest, limit=MANIFEST_LIMIT)
        if digest not in self._documents:
            raise BadManifest(f"the manifest of {what} cannot be looked at before the archive is imported")
        return self._documents[digest]

    def _check_room(self, referrers: Sequence[tuple[str, bytes]]) -> None:
        """Raise BadArchive where a version would have more referrers than a registry takes."""
        coming: dict[Digest, set[Digest]] = {}
        for _, data in referrers:
            subject = Digest(parse_referrer(data, what="a referrer").subject.digest)
            coming.setdefault(subject, set()).add(sha256(data))
        for subject, some in coming.items():
            here = {Digest(one.digest) for one in self._store.referrers("", subject)}
            if len(here | some) > REFERRERS_LIMIT:
                raise BadArchive(
                    f"{subject} would have {len(here | some)} referrers after {self._name} was imported",
                    cause=f"a registry takes {REFERRERS_LIMIT}",
                )

    def _version(self, reference: Reference, descriptor: Descriptor, manifest: bytes) -> ArchivedName:
        digest = Digest(descriptor.digest)
        there = self._store.snapshot().entry(reference) is not None
        annotations = descriptor.annotations or {}
        marks = {
            mark: as_reason(annotations[mark]) or _NO_REASON for mark in (YANKED, DEPRECATED) if mark in annotations
        }
        if self._keeps:
            self._store.publish(reference, manifest, yanked=marks.get(YANKED), deprecated=marks.get(DEPRECATED))
            # One that was here before is no less yanked than the archive says; what is said here stays otherwise.
            if YANKED in marks:
                self._store.yank(reference, marks[YANKED])
            if DEPRECATED in marks:
                self._store.deprecate(reference, marks[DEPRECATED])
        if YANKED in marks:
            self.warnings.append(f"{reference} is yanked: {marks[YANKED]}")
        if DEPRECATED in marks:
            self.warnings.append(f"{reference} is deprecated: {marks[DEPRECATED]}")
        return ArchivedName(reference=str(reference), digest=digest, change="present" if there else "imported")

    def _channel(self, reference: Reference, digest: Digest) -> ArchivedName:
        now = self._store.snapshot().entry(reference)
        if self._keeps:
            before = None if now is None else now.digest
            self._store.set_channel(reference.repository, str(reference.tag), digest, before)
        same = now is not None and now.digest == digest
        return ArchivedName(reference=str(reference), digest=digest, change="present" if same else "imported")

    def _referrer(self, digest: Digest, repositories: Mapping[str, str]) -> tuple[str, bytes]:
        """The repository and the manifest of what refers to a version of the archive. Raises BadArchive."""
        data = self._document(digest, f"what refers to a version, {digest}")
        referrer = parse_referrer(data, what=f"{digest} in {self._name}")
        repository = repositories.get(referrer.subject.digest)
        if repository is None:
            raise BadArchive(f"{digest} in {self._name} refers to {referrer.subject.digest}, which is not in it")
        self._check_blobs(referrer.blobs, digest)
        return repository, data


def _named(index: Index, name: str) -> list[tuple[Reference, Descriptor]]:
    """The names of an archive. Raises BadArchive for what is none, or there twice."""
    found: dict[Reference, Descriptor] = {}
    for descriptor in index.manifests:
        text = (descriptor.annotations or {}).get(REF_NAME)
        if descriptor.media_type != MANIFEST_TYPE:
            raise BadArchive(f"{name} names a {descriptor.media_type}, which is no manifest of a delta")
        parse_digest(descriptor.digest)
        if text is None:
            continue
        try:
            reference = parse_reference(text)
        except BadName as error:
            raise BadArchive(f"{name} holds something that is called {text!r}: {error.message}") from error
        if reference.tag in (None, LATEST) or reference in found:
            raise BadArchive(f"{name} holds {text!r}, which no version can be called, or twice")
        found[reference] = descriptor
    if not found:
        raise BadArchive(f"{name} names no delta")
    return list(found.items())
