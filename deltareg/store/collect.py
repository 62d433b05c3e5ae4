"""Garbage collection: what no name leads to goes, unless somebody may be about to name it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from deltareg.digest import Digest, parse_digest, parse_json
from deltareg.errors import BadManifest, BadName, NotFound, translate_os_errors
from deltareg.manifest import CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE, Document, Index
from deltareg.store.blobs import Blobs
from deltareg.store.lock import try_lock
from deltareg.store.referrers import is_untagged, subject_of

__all__ = ["GcReport", "collect", "needed_by"]

_DOCUMENT_TYPES = {
    MANIFEST_TYPE,
    INDEX_TYPE,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
_DOCUMENT_LIMIT = 64 << 20
_SECOND = 1_000_000_000


class GcReport(Document):
    """What a garbage collection removed, or would remove."""

    blobs: int
    bytes: int
    temporary_files: int
    kept_blobs: int
    kept_bytes: int
    dry_run: bool


def collect(blobs: Blobs, needed: set[str], grace_seconds: float, *, dry_run: bool) -> GcReport:
    """Remove blobs that are not `needed`, and temporary files, once they are older than the grace
    period. The caller holds the store's lock.

    Every file's age is judged anew just before it goes; blobs that a living `hold` may need are left.
    """
    removed: list[int] = []
    kept: list[int] = []
    with blobs.hold() as own:
        # The file system's clock, not this machine's: on a shared disk they differ.
        oldest = own.stat().st_mtime_ns - int(grace_seconds * _SECOND)
        horizon = min([oldest + 1, *_living_holds(blobs, own)])
        for path in _files(blobs.blobs_path):
            size = path.lstat().st_size
            unneeded = f"sha256:{path.name}" not in needed
            (removed if unneeded and _drop(path, horizon, dry_run) else kept).append(size)
        stale = [path for path in _files(blobs.tmp_path) if path != own and _drop_stale(path, horizon, dry_run)]
    return GcReport(
        blobs=len(removed),
        bytes=sum(removed),
        temporary_files=len(stale),
        kept_blobs=len(kept),
        kept_bytes=sum(kept),
        dry_run=dry_run,
    )


def needed_by(blobs: Blobs, index: Index) -> tuple[set[str], set[str]]:
    """The digests that the index leads to, and those of referrers to what it does not lead to.

    It leads by manifests, nested indexes, what a stacked delta requires, and from a subject to its referrers.
    """
    # By digest and type: a manifest that lists another one as a plain layer must not hide what that one needs.
    needed: set[tuple[str, str]] = set()
    waiting: list[tuple[str, str]] = []
    referrers: dict[str, list[str]] = {}
    for descriptor in index.manifests:
        subject = subject_of(blobs, descriptor) if is_untagged(descriptor) else None
        if subject is None:
            waiting.append((descriptor.digest, descriptor.media_type))
        else:
            referrers.setdefault(subject, []).append(descriptor.digest)
    roots = {descriptor.digest for descriptor in index.manifests}
    while waiting:
        digest, media_type = wanted = waiting.pop()
        if wanted in needed:
            continue
        needed.add(wanted)
        waiting.extend((referrer, MANIFEST_TYPE) for referrer in referrers.pop(digest, []))
        try:
            if media_type in _DOCUMENT_TYPES:
                value = parse_json(blobs.read(parse_digest(digest), limit=_DOCUMENT_LIMIT), what=digest)
                waiting.extend(_descriptors(value))
            elif media_type == CONFIG_TYPE:
                waiting.extend(_required(blobs, Digest(digest)))
        except (BadManifest, BadName, NotFound):
            # What a name or a delta's config leads to must be known; what else a document mentions need not be here.
            if digest in roots or media_type == CONFIG_TYPE:
                raise
    return {digest for digest, _ in needed}, {one for several in referrers.values() for one in several}


def _descriptors(value: Any) -> Iterator[tuple[str, str]]:
    """Everything in a document that looks like a descriptor: more than needed keeps too much, never too little."""
    if isinstance(value, dict):
        fields = cast(dict[str, Any], value)
        digest, media_type = fields.get("digest"), fields.get("mediaType")
        if isinstance(digest, str):
            yield digest, media_type if isinstance(media_type, str) else ""
        for field in fields.values():
            yield from _descriptors(field)
    elif isinstance(value, list):
        for item in cast(list[Any], value):
            yield from _descriptors(item)


def _required(blobs: Blobs, config: Digest) -> Iterator[tuple[str, str]]:
    value = parse_json(blobs.read(config), what=config)
    required = cast(dict[str, Any], value).get("requires") if isinstance(value, dict) else None
    for one in cast(list[Any], required) if isinstance(required, list) else []:
        digest = cast(dict[str, Any], one).get("digest") if isinstance(one, dict) else None
        if isinstance(digest, str) and blobs.has(Digest(digest)):
            yield digest, MANIFEST_TYPE


def _living_holds(blobs: Blobs, own: Path) -> Iterator[int]:
    for path in blobs.holds():
        with suppress(FileNotFoundError):
            if path != own and _is_locked(path):
                yield path.lstat().st_mtime_ns


def _files(directory: Path) -> Iterator[Path]:
    with translate_os_errors("list the registry", directory):
        for path in sorted(directory.iterdir() if directory.exists() else ()):
            with suppress(FileNotFoundError):
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path


def _drop(path: Path, horizon: int, dry_run: bool) -> bool:
    """Remove a file that was last written before `horizon` ns; say whether it went."""
    with translate_os_errors("remove", path):
        old = path.lstat().st_mtime_ns < horizon
        if old and not dry_run:
            path.unlink()
        return old


def _drop_stale(path: Path, horizon: int, dry_run: bool) -> bool:
    with suppress(FileNotFoundError):
        return not _is_locked(path) and _drop(path, horizon, dry_run)
    return False


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        # Somebody else's on a shared disk: left to its owner.
        return True
    try:
        return not try_lock(handle)
    finally:
        os.close(handle)
