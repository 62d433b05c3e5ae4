"""`index.json`: which names a store has. It is the truth; everything else about names is computed from it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deltareg.digest import Digest, parse_json, sha256
from deltareg.errors import BadManifest, BadName, DeltaregError, translate_os_errors
from deltareg.manifest import Descriptor, Index, parse
from deltareg.names import Reference, as_reason, latest_of, parse_reference
from deltareg.store.files import write_atomically

__all__ = [
    "CREATED",
    "REF_NAME",
    "YANKED",
    "Entry",
    "Signature",
    "Snapshot",
    "checksum_fault",
    "latest_tag",
    "read_index",
    "signature_of",
    "version_among",
    "write_index",
]

REF_NAME = "org.opencontainers.image.ref.name"
CREATED = "org.opencontainers.image.created"
YANKED = "vnd.deltareg.yanked"
"""The annotation of a yanked version: why it was yanked."""
_REMOVED = "vnd.deltareg.removed"
_CHECKSUM = "vnd.deltareg.checksum"
_LIMIT = 1 << 30

Signature = tuple[int, int, int]
"""Modification time in ns, size, inode: a replaced index has another one."""


@dataclass(frozen=True, order=True)
class Entry:
    """One name of a registry: `size` is that of the manifest, `created` an RFC 3339 time or empty.

    `yanked` is why a version was yanked, "" where nobody said why; None where it was not.
    """

    reference: Reference
    digest: Digest
    size: int
    created: str
    yanked: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """An index as it was read."""

    signature: Signature
    index: Index

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """By reference. Names that are no references belong to other programs and are left out."""
        found = (_entry(descriptor) for descriptor in self.index.manifests)
        return {str(entry.reference): entry for entry in found if entry is not None}

    @cached_property
    def repositories(self) -> dict[str, list[Entry]]:
        """The entries of each repository."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries.values():
            found.setdefault(entry.reference.repository, []).append(entry)
        return found

    def entries_of(self, repository: str) -> list[Entry]:
        """The entries of one repository, without looking at the others closer than needed."""
        beginning = f"{repository}:"
        own = (one for one in self.index.manifests if (_ref_name(one) or "").startswith(beginning))
        return [entry for one in own if (entry := _entry(one)) is not None]

    @cached_property
    def removed(self) -> dict[str, str]:
        """Removed versions and the digests that they had: a version is never used again for other bytes."""
        text = (self.index.annotations or {}).get(_REMOVED)
        value: Any = {} if text is None else parse_json(text.encode(), what=f"index.json: {_REMOVED}")
        if not isinstance(value, dict):
            raise BadManifest(f"index.json: {_REMOVED} is no object")
        return {str(name): str(digest) for name, digest in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]

    def with_entry(self, reference: Reference, descriptor: Descriptor) -> Index:
        """The index with one name added or moved."""
        return self._with([*self._others(reference), descriptor], self.removed)

    def without_entry(self, reference: Reference, digest: Digest) -> Index:
        """The index with one name removed; a version's is remembered."""
        gone = {str(reference): digest} if reference.version is not None else {}
        return self._with(self._others(reference), self.removed | gone)

    def with_yank(self, reference: Reference, reason: str | None) -> Index:
        """The index with one version yanked; with None for a reason, no longer."""
        changed = [
            entry.model_copy(update={"annotations": _marked(entry, reason)})
            for entry in self.index.manifests
            if _ref_name(entry) == str(reference)
        ]
        return self._with([*self._others(reference), *changed], self.removed)

    def _others(self, reference: Reference) -> list[Descriptor]:
        return [entry for entry in self.index.manifests if _ref_name(entry) != str(reference)]

    def _with(self, manifests: list[Descriptor], removed: dict[str, str]) -> Index:
        annotations = dict(self.index.annotations or {})
        if removed:
            annotations[_REMOVED] = json.dumps(removed, sort_keys=True, separators=(",", ":"))
        ordered = sorted(manifests, key=lambda entry: _ref_name(entry) or "")
        return self.index.model_copy(update={"manifests": ordered, "annotations": annotations})


def version_among(entries: Iterable[Entry], wanted: Reference, digest: Digest) -> Reference | None:
    """The version with `digest`, which `wanted` led to: the one that is wanted, or the highest; None if none has it."""
    if wanted.version is not None:
        return wanted
    tag = latest_tag(
        entry for entry in entries if (entry.digest, entry.reference.repository) == (digest, wanted.repository)
    )
    return None if tag is None else wanted.with_tag(tag)


def latest_tag(entries: Iterable[Entry]) -> str | None:
    """The version that `latest` means among the entries of one repository; None if none is a version."""
    yanked = {str(entry.reference.tag): entry.yanked is not None for entry in entries}
    return latest_of(yanked, {tag for tag, is_yanked in yanked.items() if is_yanked})


def read_index(path: Path) -> Snapshot:
    """Read an `index.json`. Raises BadManifest where it is missing, too large, or not an index."""
    signature, data = _read_signed(path)
    return Snapshot(signature, parse(Index, data, what=str(path)))


def _read_signed(path: Path) -> tuple[Signature, bytes]:
    """The bytes of an index and the signature of just these."""
    with translate_os_errors("read the index", path):
        try:
            # NONBLOCK: on a shared disk somebody may have put a pipe in its place.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as file:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    raise BadManifest(f"{path} is not a regular file")
                if status.st_size > _LIMIT:
                    raise BadManifest(f"{path} has {status.st_size} bytes; an index has at most {_LIMIT}")
                return (status.st_mtime_ns, status.st_size, status.st_ino), file.read(_LIMIT)
        except FileNotFoundError as error:
            raise BadManifest(
                f"{path} is missing: the registry's names are gone",
                hint="restore it from a copy, or pull the deltas into a new registry",
            ) from error


def signature_of(path: Path) -> Signature | None:
    """The signature of an index, or None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def write_index(path: Path, index: Index, *, temporary: Path) -> None:
    """Replace an `index.json`, with a checksum of itself in its annotations so that `fsck` finds a flipped bit."""
    annotations = {**(index.annotations or {}), _CHECKSUM: ""}
    document = {**index.model_dump(by_alias=True, exclude_none=True), "annotations": annotations}
    # Not RFC 8785: the index has no digest in its name, and the plain encoder is ten times faster on a large one.
    data = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    write_atomically(path, data.replace(_checksum_field(""), _checksum_field(sha256(data))), temporary=temporary)


def checksum_fault(path: Path) -> str | None:
    """What is wrong with the bytes of an index, or None. An index that another program wrote has no checksum."""
    try:
        _, data = _read_signed(path)
        index = parse(Index, data, what=str(path))
    except DeltaregError as error:
        return error.message
    checksum = (index.annotations or {}).get(_CHECKSUM)
    if checksum is not None:
        intact = sha256(data.replace(_checksum_field(checksum), _checksum_field(""))) == checksum
        return None if intact else "the index was changed by the disk or by a program other than deltareg"
    ours = index.annotations or index.model_extra or any(CREATED in (d.annotations or {}) for d in index.manifests)
    return "the index has lost its checksum" if ours else None


def _checksum_field(value: str) -> bytes:
    # With its quotes, which are escaped wherever they are part of a value: it can occur only once.
    return f'"{_CHECKSUM}":"{value}"'.encode()


def _ref_name(descriptor: Descriptor) -> str | None:
    return (descriptor.annotations or {}).get(REF_NAME)


def _entry(descriptor: Descriptor) -> Entry | None:
    name = _ref_name(descriptor)
    if name is None:
        return None
    try:
        reference = parse_reference(name)
    except BadName:
        return None
    if reference.tag is None:
        return None
    annotations = descriptor.annotations or {}
    # Only versions are yanked. Another program may have written anything for a reason.
    yanked = annotations.get(YANKED) if reference.version is not None else None
    reason = None if yanked is None else as_reason(yanked)
    return Entry(reference, Digest(descriptor.digest), descriptor.size, annotations.get(CREATED, ""), reason)


def _marked(descriptor: Descriptor, reason: str | None) -> dict[str, str]:
    kept = {key: text for key, text in (descriptor.annotations or {}).items() if key != YANKED}
    return kept if reason is None else kept | {YANKED: reason}
