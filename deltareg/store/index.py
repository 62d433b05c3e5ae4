"""`index.json`: which names a store has. It is the truth; everything else about names is computed from it."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from deltareg.digest import Digest, parse_json, sha256
from deltareg.errors import BadManifest, BadName, DeltaregError, UnsupportedFormat, translate_os_errors
from deltareg.manifest import Descriptor, Index, parse
from deltareg.names import Reference, as_reason, latest_of, parse_reference
from deltareg.store.files import write_atomically
from deltareg.store.lines import SortedLines

__all__ = [
    "CREATED",
    "DEPRECATED",
    "REF_NAME",
    "YANKED",
    "Entry",
    "Signature",
    "Snapshot",
    "channels_by_digest",
    "checksum_fault",
    "encode_index",
    "latest_tag",
    "parse_index",
    "read_index",
    "signature_of",
    "version_among",
    "write_index",
]

REF_NAME = "org.opencontainers.image.ref.name"
CREATED = "org.opencontainers.image.created"
YANKED = "vnd.deltareg.yanked"
"""The annotation of a yanked version: why it was yanked."""
DEPRECATED = "vnd.deltareg.deprecated"
"""The annotation of a deprecated version: why it was deprecated."""
_REMOVED = "vnd.deltareg.removed"
_CHECKSUM = "vnd.deltareg.checksum"
_CHECKSUM_FIELD = re.compile(rb'"vnd\.deltareg\.checksum":"(sha256:[0-9a-f]{64})"')
_LIMIT = 1 << 30

Signature = tuple[int, int, int]
"""Modification time in ns, size, inode: a replaced index has another one."""


@dataclass(frozen=True, order=True)
class Entry:
    """One name of a registry: `size` is that of the manifest, `created` an RFC 3339 time or empty.

    `yanked` is why a version was yanked, "" where nobody said why; None where it was not. `deprecated` likewise.
    """

    reference: Reference
    digest: Digest
    size: int
    created: str
    yanked: str | None = None
    deprecated: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """An index as it was read. `lines`, where there are any, tell the names of one repository without the others."""

    signature: Signature
    what: str
    data: bytes = field(repr=False)
    lines: SortedLines | None = field(repr=False)

    @cached_property
    def index(self) -> Index:
        """All of it. Raises BadManifest."""
        return parse(Index, self.data, what=self.what)

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """By reference. Names that are no references belong to other programs and are left out."""
        return _entries(self.index.manifests)

    @cached_property
    def repositories(self) -> dict[str, list[Entry]]:
        """The entries of each repository."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries.values():
            found.setdefault(entry.reference.repository, []).append(entry)
        return found

    def entries_of(self, repository: str) -> list[Entry]:
        """The entries of one repository, without looking at the others closer than needed."""
        own = self._found(repository)
        if own is None:
            own = self._descriptors.get(repository, [])
        return [entry for entry in _entries(own).values() if entry.reference.repository == repository]

    def entry(self, reference: Reference) -> Entry | None:
        """The entry of a version or a channel, if it has one."""
        found = self.entries_of(reference.repository)
        return next((entry for entry in found if entry.reference == reference), None)

    def _found(self, repository: str) -> list[Descriptor] | None:
        """The descriptors of a repository among the lines; None where all of the index has to say."""
        if self.lines is None:
            return None
        try:
            # ';' is what follows ':'.
            return self.lines.between(f"{repository}:", f"{repository};")
        except (BadManifest, UnsupportedFormat):
            return None

    @cached_property
    def _descriptors(self) -> dict[str, list[Descriptor]]:
        """By what stands before the colon in their names."""
        found: dict[str, list[Descriptor]] = {}
        for descriptor in self.index.manifests:
            found.setdefault((_ref_name(descriptor) or "").partition(":")[0], []).append(descriptor)
        return found

    @cached_property
    def untagged(self) -> list[Descriptor]:
        """The entries without a name: referrers, and what other programs left so. Names are not looked at for them."""
        if self.lines is not None:
            with suppress(BadManifest, UnsupportedFormat):
                # They come first, and no name begins below '"'.
                return [one for one in self.lines.between("", "!") if _ref_name(one) is None]
        return [one for one in self.index.manifests if _ref_name(one) is None]

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

    def with_mark(self, reference: Reference, mark: str, reason: str | None) -> Index:
        """The index with one version marked, `YANKED` or `DEPRECATED`; with None for a reason, no longer."""
        changed = [
            entry.model_copy(update={"annotations": _marked(entry, mark, reason)})
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
        return self.index.model_copy(update={"manifests": manifests, "annotations": annotations})


def version_among(entries: Iterable[Entry], wanted: Reference, digest: Digest) -> Reference | None:
    """The version with `digest`, which `wanted` led to: the one that is wanted, or the highest; None if none has it."""
    if wanted.version is not None:
        return wanted
    tag = latest_tag(
        entry for entry in entries if (entry.digest, entry.reference.repository) == (digest, wanted.repository)
    )
    return None if tag is None else wanted.with_tag(tag)


def channels_by_digest(names: Iterable[tuple[Reference, str]]) -> dict[tuple[str, str], list[str]]:
    """The channels among `names`, sorted, by the repository and the digest that they point to."""
    found: dict[tuple[str, str], list[str]] = {}
    for reference, digest in names:
        if reference.tag is not None and reference.version is None:
            found.setdefault((reference.repository, digest), []).append(reference.tag)
    return {where: sorted(channels) for where, channels in found.items()}


def latest_tag(entries: Iterable[Entry]) -> str | None:
    """The version that `latest` means among the entries of one repository; None if none is a version."""
    yanked = {str(entry.reference.tag): entry.yanked is not None for entry in entries}
    return latest_of(yanked, {tag for tag, is_yanked in yanked.items() if is_yanked})


def read_index(path: Path) -> Snapshot:
    """Read an `index.json`. Raises BadManifest where it is missing, too large, or not an index."""
    signature, data = _read_signed(path)
    return _snapshot(signature, data, what=str(path))


def parse_index(data: bytes, *, what: str) -> Snapshot:
    """An `index.json` that came from elsewhere than a disk. Raises BadManifest where it is not an index."""
    return _snapshot((0, len(data), 0), data, what=what)


def _snapshot(signature: Signature, data: bytes, *, what: str) -> Snapshot:
    snapshot = Snapshot(signature, what, data, _lines(data, what=what))
    if snapshot.lines is None:
        # Whatever is wrong with it is told now.
        _ = snapshot.index
    return snapshot


def _lines(data: bytes, *, what: str) -> SortedLines | None:
    """The lines of an index as `write_index` left it; None for one that anything else may have changed.

    The checksum is no secret: who may write the file can let it hold what he likes, which he could do with names too.
    """
    lines = SortedLines.of(data, key=REF_NAME, what=what)
    if lines is None:
        return None
    checksum = _CHECKSUM_FIELD.search(data, 0, lines.begin)
    return lines if checksum is not None and _is_intact(data, checksum[1].decode()) else None


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
    """Replace an `index.json`."""
    write_atomically(path, encode_index(index), temporary=temporary)


def encode_index(index: Index) -> bytes:
    """The bytes of an `index.json`: its manifests a line each, in the order of their names.

    A checksum of itself in its annotations lets `fsck` find a flipped bit, and readers trust the order of the lines.
    """
    annotations = {**(index.annotations or {}), _CHECKSUM: ""}
    rest = index.model_copy(update={"manifests": [], "annotations": annotations})
    document = rest.model_dump(by_alias=True, exclude_none=True)
    ordered = sorted(index.manifests, key=lambda descriptor: _ref_name(descriptor) or "")
    # Not RFC 8785: the index has no digest in its name, and pydantic's own encoder is many times faster on a large one.
    lines = ",\n".join(descriptor.model_dump_json(by_alias=True, exclude_none=True) for descriptor in ordered)
    fields = {key: _compact(value) for key, value in document.items()}
    fields["manifests"] = f"[\n{lines}\n]" if lines else "[]"
    # The annotations come first, so that nothing that another program put elsewhere is taken for the checksum.
    keys = sorted(fields, key=lambda key: (key != "annotations", key))
    data = f"{{{','.join(f'{_compact(key)}:{fields[key]}' for key in keys)}}}".encode()
    return data.replace(_checksum_field(""), _checksum_field(sha256(data)), 1)


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def checksum_fault(path: Path) -> str | None:
    """What is wrong with the bytes of an index, or None. An index that another program wrote has no checksum."""
    try:
        _, data = _read_signed(path)
        index = parse(Index, data, what=str(path))
    except DeltaregError as error:
        return error.message
    checksum = (index.annotations or {}).get(_CHECKSUM)
    if checksum is None:
        ours = index.annotations or index.model_extra or any(CREATED in (d.annotations or {}) for d in index.manifests)
        return "the index has lost its checksum" if ours else None
    if not _is_intact(data, checksum):
        return "the index was changed by the disk or by a program other than deltareg"
    names = [_ref_name(descriptor) or "" for descriptor in index.manifests]
    if names != sorted(names) and _lines(data, what=str(path)) is not None:
        return "the index has names out of order, which are not found: a program other than deltareg wrote it"
    return None


def _is_intact(data: bytes, checksum: str) -> bool:
    return sha256(data.replace(_checksum_field(checksum), _checksum_field(""), 1)) == checksum


def _checksum_field(value: str) -> bytes:
    # With its quotes, which are escaped wherever they are part of an annotation's text.
    return f'"{_CHECKSUM}":"{value}"'.encode()


def _ref_name(descriptor: Descriptor) -> str | None:
    return (descriptor.annotations or {}).get(REF_NAME)


def _entries(descriptors: Iterable[Descriptor]) -> dict[str, Entry]:
    """By reference, of two with the same the last."""
    found = (_entry(descriptor) for descriptor in descriptors)
    return {str(entry.reference): entry for entry in found if entry is not None}


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
    # Only versions are yanked and deprecated. Another program may have written anything for a reason.
    marks = annotations if reference.version is not None else {}
    yanked, deprecated = (
        None if reason is None else as_reason(reason) for reason in (marks.get(YANKED), marks.get(DEPRECATED))
    )
    created = annotations.get(CREATED, "")
    return Entry(reference, Digest(descriptor.digest), descriptor.size, created, yanked, deprecated)


def _marked(descriptor: Descriptor, mark: str, reason: str | None) -> dict[str, str]:
    kept = {key: text for key, text in (descriptor.annotations or {}).items() if key != mark}
    return kept if reason is None else kept | {mark: reason}
