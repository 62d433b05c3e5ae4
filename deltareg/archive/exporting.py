"""Writing an archive: an OCI image layout as a plain tar, the same bytes for the same content."""

from __future__ import annotations

import hashlib
import tarfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from deltareg.archive.output import archive_file
from deltareg.archive.report import ArchivedName, ArchiveReport
from deltareg.artifact import Artifact
from deltareg.catalog import Registry
from deltareg.digest import Digest, canonical_json, parse_digest
from deltareg.errors import InvalidArgument, NotFound, translate_os_errors
from deltareg.manifest import DELTA_TYPE, MANIFEST_TYPE, Descriptor, Index, Requirement, encode
from deltareg.names import Reference, version_key
from deltareg.progress import SILENT, Progress
from deltareg.store import LAYOUT, MANIFEST_LIMIT, Entry, Store, parse_referrer
from deltareg.store.index import DEPRECATED, REF_NAME, YANKED
from deltareg.store.writer import mismatch
from deltareg.versions import parse_range

__all__ = ["export_archive"]

_BLOCK = 512
_RECORD = 20 * _BLOCK


def export_archive(
    registry: Registry,
    references: Sequence[Reference | str],
    file: Path | BinaryIO,
    *,
    with_required: bool = False,
    with_channels: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ArchiveReport:
    """Write versions of the local registry into one file, or into a stream.

    With them go what is yanked and deprecated and what refers to them; with `with_channels` the channels that name
    them, with `with_required` the versions that they require, of which the local registry has to have one. The file
    appears whole. Raises NotFound, OutputExists, DiskFull, NotAllowed, DigestMismatch where a local blob is damaged.
    """
    begun = time.monotonic()
    if not references:
        raise InvalidArgument("nothing is to be exported", hint="name a delta: namespace/name:1.2.3")
    store = registry.store
    chosen, warnings = _chosen(registry, references, with_required)
    names = [*chosen, *(_channels(store, chosen) if with_channels else [])]
    found = (one for entry in chosen for one in store.referrers(entry.reference.repository, entry.digest))
    referrers = {one.digest: one for one in found}
    index = encode(Index(manifests=[*map(_named, names), *(_untagged(referrers[key]) for key in sorted(referrers))]))
    blobs = _blobs(store, chosen, referrers.values())
    size = _size([len(canonical_json(LAYOUT)), len(index), *(blob.size for blob in blobs)])
    if not dry_run:
        with archive_file(file, overwrite=overwrite) as output:
            _write(output, store, index, blobs, progress or SILENT)
    return ArchiveReport(
        file=str(file) if isinstance(file, Path) else "-",
        names=[ArchivedName(reference=str(one.reference), digest=one.digest, change="written") for one in names],
        blobs=len(blobs),
        bytes=size,
        seconds=time.monotonic() - begun,
        dry_run=dry_run,
        warnings=warnings,
    )


# --- what goes in -----------------------------------------------------------------------------------------------------


def _chosen(
    registry: Registry, references: Sequence[Reference | str], with_required: bool
) -> tuple[list[Entry], list[str]]:
    """The versions that are named, and what they require; and what is missing then."""
    waiting = [registry.version_of(one) for one in references]
    found: dict[Reference, Entry] = {}
    lacking: list[tuple[Reference, Requirement]] = []
    while waiting:
        version = waiting.pop()
        if version in found:
            continue
        if version.version is None:
            raise NotFound(f"{version} has no version", hint="name a version: namespace/name:1.2.3")
        entry = registry.store.entry(version)
        found[version] = entry
        for required in Artifact.open(registry.store, entry.digest).config.requires:
            if with_required:
                waiting.append(_required(registry.store, version, required))
            else:
                lacking.append((version, required))
    ordered = sorted(found.values(), key=_place)
    warnings = [
        f"{version} was taken on top of {required}, which is not in the archive: --with-required"
        for version, required in lacking
        if not any(_satisfies(entry, required) for entry in ordered)
    ]
    return ordered, warnings


def _required(store: Store, version: Reference, required: Requirement) -> Reference:
    fitting = [entry for entry in store.entries_of(required.reference) if _satisfies(entry, required)]
    if not fitting:
        raise NotFound(
            f"{version} was taken on top of {required}, which is not here",
            hint=f"deltareg pull {required.name}, or leave --with-required out",
            reference=str(required.name),
        )
    return max(fitting, key=lambda entry: (entry.yanked is None, version_key(str(entry.reference.tag)))).reference


def _satisfies(entry: Entry, required: Requirement) -> bool:
    version = entry.reference.version
    return (
        version is not None
        and entry.reference.repository == required.reference
        and parse_range(required.version).has(version)
        and required.digest in (None, entry.digest)
    )


def _channels(store: Store, chosen: Iterable[Entry]) -> list[Entry]:
    versions = {(entry.reference.repository, entry.digest) for entry in chosen}
    found = [
        entry
        for repository in sorted({repository for repository, _ in versions})
        for entry in store.entries_of(repository)
        if entry.reference.version is None and (repository, entry.digest) in versions
    ]
    return sorted(found, key=lambda entry: str(entry.reference))


def _place(entry: Entry) -> tuple[object, ...]:
    return entry.reference.repository, version_key(str(entry.reference.tag))


def _named(entry: Entry) -> Descriptor:
    # Without the time of publishing, which is the registry's: the same content is the same file everywhere.
    told = {YANKED: entry.yanked, DEPRECATED: entry.deprecated}
    marks = {key: reason for key, reason in told.items() if reason is not None}
    return Descriptor(
        media_type=MANIFEST_TYPE,
        digest=entry.digest,
        size=entry.size,
        artifact_type=DELTA_TYPE,
        annotations={REF_NAME: str(entry.reference), **marks},
    )


def _untagged(referrer: Descriptor) -> Descriptor:
    return Descriptor(
        media_type=MANIFEST_TYPE,
        digest=referrer.digest,
        size=referrer.size,
        artifact_type=referrer.artifact_type,
    )


def _blobs(store: Store, versions: Iterable[Entry], referrers: Iterable[Descriptor]) -> list[Descriptor]:
    """Every blob, each once: manifests first, so that a reader knows early what is to come."""
    manifests: dict[str, Descriptor] = {}
    others: dict[str, Descriptor] = {}
    for entry in versions:
        manifests[entry.digest] = Descriptor(media_type=MANIFEST_TYPE, digest=entry.digest, size=entry.size)
        others.update({blob.digest: blob for blob in store.manifest(entry.digest).blobs})
    for referrer in referrers:
        digest = parse_digest(referrer.digest)
        manifest = parse_referrer(store.read(digest, limit=MANIFEST_LIMIT), what=digest)
        manifests[digest] = referrer
        others.update({blob.digest: blob for blob in manifest.blobs})
    rest = [others[digest] for digest in sorted(others) if digest not in manifests]
    return [*(manifests[digest] for digest in sorted(manifests)), *rest]


# --- the file ---------------------------------------------------------------------------------------------------------


def _write(output: BinaryIO, store: Store, index: bytes, blobs: Sequence[Descriptor], progress: Progress) -> None:
    written = 0
    with progress.step("export", sum(blob.size for blob in blobs)):
        for name, data in (("oci-layout", canonical_json(LAYOUT)), ("index.json", index)):
            written += _member(output, name, len(data), [data])
        for blob in blobs:
            written += _member(output, f"blobs/sha256/{blob.digest[7:]}", blob.size, _verified(store, blob, progress))
        _put(output, bytes(_end(written)))


def _member(output: BinaryIO, name: str, size: int, pieces: Iterable[bytes]) -> int:
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    _put(output, header.tobuf(tarfile.USTAR_FORMAT))
    for piece in pieces:
        _put(output, piece)
    _put(output, bytes(-size % _BLOCK))
    return _BLOCK + size + -size % _BLOCK


def _verified(store: Store, blob: Descriptor, progress: Progress) -> Iterable[bytes]:
    """The bytes of a blob. Raises DigestMismatch at their end where they are not those, so that no file appears."""
    hasher = hashlib.sha256()
    count = 0
    for piece in store.chunks(Digest(blob.digest)):
        hasher.update(piece)
        count += len(piece)
        if count <= blob.size:
            yield piece
        progress.advance(len(piece))
    if (count, f"sha256:{hasher.hexdigest()}") != (blob.size, blob.digest):
        raise mismatch(blob.digest, store.place(blob.digest), expected=blob.size, found=count)


def _put(output: BinaryIO, data: bytes) -> None:
    with translate_os_errors("write the archive", getattr(output, "name", "-")):
        output.write(data)


def _end(written: int) -> int:
    """Bytes of zeros at the end: two blocks, and what fills a record."""
    return 2 * _BLOCK + -(written + 2 * _BLOCK) % _RECORD


def _size(members: Iterable[int]) -> int:
    written = sum(_BLOCK + size + -size % _BLOCK for size in members)
    return written + _end(written)
