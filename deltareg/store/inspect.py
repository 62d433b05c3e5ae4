"""The check of a whole store: each flipped bit, each missing, cut or foreign file is found and told."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from deltareg.digest import Digest
from deltareg.errors import (
    BadManifest,
    DeltaregError,
    DigestMismatch,
    NotAllowed,
    UnsupportedFormat,
    translate_os_errors,
)
from deltareg.manifest import MANIFEST_TYPE, Descriptor, Document, Manifest
from deltareg.progress import SILENT, Progress
from deltareg.store.index import REF_NAME, Snapshot, checksum_fault
from deltareg.store.referrers import REFERRER_LIMIT, SUBJECT, is_untagged, parse_referrer
from deltareg.store.writer import BLOCK

if TYPE_CHECKING:
    from deltareg.store.store import Store

__all__ = ["Fault", "FsckReport", "inspect"]

_BLOB_NAME = re.compile(r"[0-9a-f]{64}")
_THREADS = 4


class Fault(Document):
    """One thing that is wrong in a store: `subject` is a digest, a name or a path within the store."""

    kind: Literal["corrupt", "missing", "wrong-size", "misnamed", "bad-manifest", "bad-index", "bad-layout"]
    subject: str
    message: str
    references: list[str] = Field(default=[])


class FsckReport(Document):
    """What `fsck` found: `faults` is empty for a sound store."""

    blobs: int
    bytes: int
    names: int
    unreferenced: int
    dropped: list[str]
    faults: list[Fault]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def inspect(store: Store, progress: Progress, *, drop_damaged: bool) -> FsckReport:
    """Read every blob and every name of a store. Damaged blobs are removed on request; nothing else changes."""
    files, misnamed = _walk(store)
    with progress.step("fsck", sum(files.values())), ThreadPoolExecutor(_THREADS) as pool:
        sound = pool.map(_is_sound, files, repeat(progress))
        damaged = [path for path, is_sound in zip(files, sound, strict=True) if not is_sound]
    names = _Names(store, {_digest(path) for path in damaged})
    with ExitStack() as stack:
        # Locked: a publish or a collection in the middle of this would look like a fault. A store that this process
        # may only read is checked as it is.
        with suppress(NotAllowed):
            stack.enter_context(store.lock.shared())
        names.check()
    return FsckReport(
        blobs=len(files),
        bytes=sum(files.values()),
        names=names.count,
        unreferenced=sum(_digest(path) not in names.users for path in files),
        dropped=_drop(store, damaged) if drop_damaged else [],
        faults=_layout_faults(store) + misnamed + [_corrupt(path, names) for path in damaged] + names.faults,
    )


class _Names:
    """What the names of a store lead to, and what is wrong on the way."""

    def __init__(self, store: Store, damaged: set[Digest]) -> None:
        self.faults: list[Fault] = []
        self.users: dict[str, list[str]] = {}
        self.count = 0
        self._store = store
        self._damaged = damaged

    def check(self) -> None:
        fault = checksum_fault(self._store.index_path)
        if fault is not None:
            self._found("bad-index", "index.json", fault)
        try:
            snapshot = self._store.snapshot()
            _ = snapshot.removed
        except DeltaregError as error:
            if fault is None:
                self._found("bad-index", "index.json", error.message)
            return
        self.count = sum(not is_untagged(descriptor) for descriptor in snapshot.index.manifests)
        self._check_unique(snapshot)
        for descriptor in snapshot.index.manifests:
            name = _name(descriptor)
            if not self._check_blob(descriptor, name) or descriptor.media_type != MANIFEST_TYPE:
                continue
            if not self._is_referrer(descriptor, name):
                self._check_manifest(descriptor, name, ours=name in snapshot.entries)

    def _check_unique(self, snapshot: Snapshot) -> None:
        for name, count in Counter(map(_name, snapshot.index.manifests)).items():
            if count > 1:
                self._found("bad-index", name, f"the name occurs {count} times")

    def _check_manifest(self, descriptor: Descriptor, name: str, *, ours: bool) -> None:
        manifest: Manifest
        try:
            manifest = self._store.manifest(Digest(descriptor.digest))
        except DigestMismatch:
            return  # told already, as a blob
        except BadManifest as error:
            # Other programs may keep what they like under names of their own.
            if ours:
                self._found("bad-manifest", descriptor.digest, error.message, name)
            return
        for blob in manifest.blobs:
            self._check_blob(blob, name)

    def _is_referrer(self, descriptor: Descriptor, name: str) -> bool:
        """Whether an entry is a referrer; then its blobs and its subject were checked."""
        ours = SUBJECT in (descriptor.annotations or {})
        if not is_untagged(descriptor):
            return False
        try:
            raw = self._store.read(Digest(descriptor.digest), limit=REFERRER_LIMIT)
            manifest = parse_referrer(raw, what=f"the referrer {descriptor.digest}")
        except DigestMismatch:
            return True  # told already, as a blob
        except (BadManifest, UnsupportedFormat) as error:
            if ours:
                self._found("bad-manifest", descriptor.digest, error.message, name)
            return ours
        for blob in manifest.blobs:
            self._check_blob(blob, name)
        told = (descriptor.annotations or {}).get(SUBJECT, manifest.subject.digest)
        if told != manifest.subject.digest:
            message = f"{descriptor.digest} refers to {manifest.subject.digest}, not to {told} as the index has it"
            self._found("bad-index", descriptor.digest, message, name)
        return True

    def _check_blob(self, descriptor: Descriptor, name: str) -> bool:
        digest = Digest(descriptor.digest)
        self.users.setdefault(digest, []).append(name)
        if not self._store.has(digest):
            self._found("missing", digest, f"{digest} is needed and not there", name)
            return False
        size = self._store.size(digest)
        if size != descriptor.size and digest not in self._damaged:
            self._found("wrong-size", digest, f"{digest} has {size} bytes, {descriptor.size} are announced", name)
        return True

    def _found(
        self,
        kind: Literal["missing", "wrong-size", "bad-manifest", "bad-index"],
        subject: str,
        message: str,
        *names: str,
    ) -> None:
        self.faults.append(Fault(kind=kind, subject=subject, message=message, references=list(names)))


def _walk(store: Store) -> tuple[dict[Path, int], list[Fault]]:
    """The blobs and their sizes, and a fault for each thing in `blobs/` that is none."""
    files: dict[Path, int] = {}
    faults: list[Fault] = []
    for path in _entries(store.blobs_path.parent):
        if path != store.blobs_path:
            faults.append(_misnamed(store, path))
    for path in _entries(store.blobs_path):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue  # collected meanwhile
        if _BLOB_NAME.fullmatch(path.name) and stat.S_ISREG(status.st_mode):
            files[path] = status.st_size
        else:
            faults.append(_misnamed(store, path))
    return files, faults


def _entries(directory: Path) -> Iterator[Path]:
    with translate_os_errors("list the registry", directory):
        if directory.exists():
            yield from sorted(directory.iterdir())


def _misnamed(store: Store, path: Path) -> Fault:
    subject = str(path.relative_to(store.root))
    return Fault(kind="misnamed", subject=subject, message=f"{subject} is no file that is named by its digest")


def _corrupt(path: Path, names: _Names) -> Fault:
    digest = _digest(path)
    message = f"the bytes of {path} do not have the digest that names it"
    return Fault(kind="corrupt", subject=digest, message=message, references=names.users.get(digest, []))


def _layout_faults(store: Store) -> list[Fault]:
    fault = store.layout_fault()
    return [] if fault is None else [Fault(kind="bad-layout", subject="oci-layout", message=fault)]


def _is_sound(path: Path, progress: Progress) -> bool:
    hasher = hashlib.sha256()
    with translate_os_errors("read a blob", path):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return True  # collected meanwhile
        try:
            while chunk := os.read(handle, BLOCK):
                hasher.update(chunk)
                progress.advance(len(chunk))
        finally:
            os.close(handle)
    return hasher.hexdigest() == path.name


def _drop(store: Store, damaged: list[Path]) -> list[str]:
    dropped: list[str] = []
    for path in damaged:
        # Judged again under the lock: a pull may have put a sound copy there since.
        with store.lock.exclusive(), translate_os_errors("remove a damaged blob", path):
            if not _is_sound(path, SILENT):
                path.unlink()
                dropped.append(_digest(path))
    return dropped


def _digest(path: Path) -> Digest:
    return Digest(f"sha256:{path.name}")


def _name(descriptor: Descriptor) -> str:
    return (descriptor.annotations or {}).get(REF_NAME, descriptor.digest)
