"""The store: an OCI image layout on disk whose names are references to deltas."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deltareg.digest import Digest, canonical_json, parse_digest, parse_json, sha256
from deltareg.errors import (
    BadManifest,
    NotFound,
    UnsupportedFormat,
    UsageError,
    translate_os_errors,
)
from deltareg.manifest import Descriptor, Index, Manifest, parse
from deltareg.names import Reference, parse_reason
from deltareg.progress import SILENT, Progress
from deltareg.store import changes, collect, inspect
from deltareg.store.blobs import Blobs
from deltareg.store.collect import GcReport
from deltareg.store.files import sync_directory, write_atomically
from deltareg.store.index import (
    DEPRECATED,
    YANKED,
    Entry,
    Signature,
    Snapshot,
    read_index,
    signature_of,
    write_index,
)
from deltareg.store.inspect import FsckReport
from deltareg.store.referrers import parse_referrer, referrers_among, without
from deltareg.store.writer import mismatch

__all__ = ["LAYOUT", "MANIFEST_LIMIT", "Store", "is_vacant", "parse_manifest"]

LAYOUT = {"imageLayoutVersion": "1.0.0"}

MANIFEST_LIMIT = 4 << 20
"""Bytes of the largest manifest, as OCI registries have it."""

_LAYOUT_LIMIT = 4096
_CONFIG_LIMIT = 16 << 20
_MAKINGS = {"blobs", "tmp", "lock", "index.json", "lost+found"}


class Store(Blobs):
    """Deltas by name and digest at `root`. Safe for many threads and processes at once.

    With `create`, an empty or absent directory becomes a store. Raises NotFound without it, UsageError for a directory
    that holds something else, UnsupportedFormat for another layout version.
    """

    def __init__(self, root: Path, *, create: bool = True) -> None:
        super().__init__(root)
        self.index_path = root / "index.json"
        self._layout_path = root / "oci-layout"
        self._snapshot: Snapshot | None = None
        if not self._exists():
            if not create:
                raise NotFound(
                    f"there is no registry at {root}",
                    hint="check DELTAREG_HOME; deltareg diff and deltareg pull make the registry",
                    path=root,
                )
            self._create()
        self._check_layout()

    # --- names ---

    def publish(
        self, reference: Reference, manifest: bytes, *, yanked: str | None = None, deprecated: str | None = None
    ) -> Digest:
        """Give a manifest, whose blobs are all here, the name of a version.

        With a reason it is yanked, or deprecated, from the start. Publishing the same bytes again changes nothing, and
        does not take back what was said of the version. Raises VersionExists for other bytes, also
        where the version was removed; BadName where `reference` is no version; BadManifest and UnsupportedFormat where
        the manifest or its config cannot be read; NotFound and DigestMismatch where blobs are missing or have another
        size.
        """
        changes.check_version(reference)
        document = parse_manifest(manifest, what=f"the manifest of {reference}")
        told = {YANKED: yanked, DEPRECATED: deprecated}
        marks = {mark: parse_reason(reason) for mark, reason in told.items() if reason is not None}
        digest = sha256(manifest)
        self.check_free(reference, digest)
        with self.hold():
            self.put(manifest)
            with self.lock.exclusive():
                self._check_blobs(reference, document.blobs)
                data = self.read(Digest(document.config.digest), limit=_CONFIG_LIMIT)
                changes.config_of(reference, document.config, data)
                snapshot = self.snapshot()
                self._write(changes.published(snapshot, reference, digest, len(manifest), marks))
        return digest

    def check_free(self, reference: Reference, digest: Digest) -> None:
        """Raise VersionExists where the version has, or had before it was removed, other bytes."""
        changes.check_free(self.snapshot(), reference, digest)

    def yank(self, reference: Reference, reason: str) -> None:
        """Yank a version: new resolutions skip it from now on; its bytes and its name stay. Or give another reason.

        Raises BadName where `reference` is no version, InvalidArgument for what is no reason, NotFound.
        """
        self._mark(reference, YANKED, parse_reason(reason))

    def unyank(self, reference: Reference) -> None:
        """Take back that a version was yanked. Raises BadName where `reference` is no version, NotFound."""
        self._mark(reference, YANKED, None)

    def deprecate(self, reference: Reference, reason: str) -> None:
        """Advise against a version, or give another reason: it resolves as before, and whoever uses it is warned.

        Raises BadName where `reference` is no version, InvalidArgument for what is no reason, NotFound.
        """
        self._mark(reference, DEPRECATED, parse_reason(reason))

    def undeprecate(self, reference: Reference) -> None:
        """Take back that a version was deprecated. Raises BadName where `reference` is no version, NotFound."""
        self._mark(reference, DEPRECATED, None)

    def set_channel(self, repository: str, channel: str, digest: Digest, expected: Digest | None) -> None:
        """Let a channel name a published version, if it still points to `expected` (None: to nothing).

        Raises ChannelMoved where it does not, NotFound where no version has the digest, BadName for a name that is no
        channel or is computed, as `latest` is.
        """
        with self.lock.exclusive():
            snapshot = self.snapshot()
            self._write(changes.with_channel(snapshot, repository, channel, digest, expected, str(self.root)))

    def remove_channel(self, repository: str, channel: str) -> None:
        """Drop a channel; the version that it points to stays. Raises NotFound, BadName for what is no channel."""
        with self.lock.exclusive():
            self._write(changes.without_channel(self.snapshot(), repository, channel, str(self.root)))

    def put_referrer(self, repository: str, manifest: bytes) -> Digest:
        """Store the manifest of a referrer, whose blobs and whose subject are here; return its digest.

        The same bytes again change nothing. `gc` keeps it for as long as its subject. Raises BadManifest and
        UnsupportedFormat where it cannot be read; NotFound where a blob is missing, or no version of `repository` has
        the subject; DigestMismatch for a blob of another size; NotAllowed where the subject has 1000 referrers.
        """
        document = parse_referrer(manifest, what=f"the manifest of a referrer in {repository}")
        with self.hold():
            digest = self.put(manifest)
            with self.lock.exclusive():
                snapshot = self.snapshot()
                index = changes.with_referrer_of(snapshot, repository, manifest, document)
                self._check_blobs(f"{digest}, which refers to {document.subject.digest},", document.blobs)
                self._write(index)
        return digest

    def referrers(self, repository: str, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """The referrers of the manifest `digest`, all or those of one artifact type, ordered by digest.

        `repository` is not asked for: here a digest means the same in all of them.
        """
        return referrers_among(self, self.snapshot().untagged, parse_digest(digest), artifact_type)

    def remove(self, reference: Reference) -> None:
        """Drop a version or a channel; `gc` removes the bytes. A removed version is never free for other bytes.

        Raises NotFound, NotAllowed while a channel points to the version, BadName for `latest` and digests.
        """
        with self.lock.exclusive():
            self._write(changes.without_name(self.snapshot(), reference, str(self.root)))

    def resolve(self, reference: Reference) -> Digest:
        """The digest that a version, a channel, `latest` (also: no tag) or a digest names. Raises NotFound."""
        return self.entry(reference).digest

    def entry(self, reference: Reference) -> Entry:
        """The entry that a reference leads to. Raises NotFound, which lists what there is."""
        return changes.find(self.snapshot(), reference, str(self.root))

    def entries(self) -> list[Entry]:
        """Every version and channel, in the order of their names."""
        return sorted(self.snapshot().entries.values())

    def siblings(self, reference: Reference) -> list[Entry]:
        """The versions and channels of a reference's repository, in no order."""
        return self.entries_of(reference.repository)

    def entries_of(self, repository: str) -> list[Entry]:
        """The versions and channels of `namespace/name`, in no order."""
        return self.snapshot().entries_of(repository)

    def manifest(self, digest: Digest) -> Manifest:
        """A manifest, verified. Raises NotFound, DigestMismatch, BadManifest."""
        return parse_manifest(self.read(digest, limit=MANIFEST_LIMIT), what=f"the manifest {digest}")

    def snapshot(self) -> Snapshot:
        """The names as they are now; read again only where the index was replaced."""
        signature = signature_of(self.index_path)
        cached = self._snapshot
        if cached is None or signature != cached.signature:
            cached = self._snapshot = read_index(self.index_path)
        return cached

    def signature(self) -> Signature | None:
        """What changes whenever a name changes."""
        return signature_of(self.index_path)

    # --- upkeep ---

    def gc(self, grace_seconds: float = 3600, *, dry_run: bool = False) -> GcReport:
        """Remove referrers and blobs that no name leads to; blobs and stale temporary files after the grace period.

        Raises an integrity error, and removes nothing, where a manifest cannot be read: what it needs is unknown then.
        """
        with self.lock.exclusive():
            index = self.snapshot().index
            needed, gone = collect.needed_by(self, index)
            if gone and not dry_run:
                # First: were this killed before the files are gone, nothing would name what is not there.
                self._write(without(index, gone))
            return collect.collect(self, needed, grace_seconds, dry_run=dry_run)

    def fsck(self, progress: Progress | None = None, *, drop_damaged: bool = False) -> FsckReport:
        """Read everything and report each fault. With `drop_damaged`, damaged blobs go, so that a pull brings them."""
        return inspect.inspect(self, progress or SILENT, drop_damaged=drop_damaged)

    def layout_fault(self) -> str | None:
        """What is wrong with `oci-layout`, or None."""
        try:
            self._check_layout()
        except (BadManifest, UnsupportedFormat, NotFound) as error:
            return error.message
        return None

    # --- inside ---

    def _exists(self) -> bool:
        with translate_os_errors("open the registry", self.root):
            try:
                self._layout_path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    def _create(self) -> None:
        with translate_os_errors("make the registry", self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        # Or it became a store just now, by another process.
        if not is_vacant(self.root) and not self._exists():
            raise UsageError(
                f"{self.root} is not empty and no registry", hint="name an empty or a new directory", path=self.root
            )
        with translate_os_errors("make the registry", self.root):
            self.blobs_path.mkdir(parents=True, exist_ok=True)
            sync_directory(self.blobs_path.parent)
        with self.lock.exclusive():
            # The layout file comes last: a store is a store once it is there.
            if not self.index_path.exists():
                write_index(self.index_path, Index(), temporary=self.scratch())
            if not self._layout_path.exists():
                write_atomically(self._layout_path, canonical_json(LAYOUT), temporary=self.scratch())

    def _check_layout(self) -> None:
        with translate_os_errors("read the layout version", self._layout_path):
            try:
                with self._layout_path.open("rb") as file:
                    data = file.read(_LAYOUT_LIMIT)
            except FileNotFoundError as error:
                raise NotFound(f"there is no registry at {self.root}", path=self.root) from error
        value = parse_json(data, what=str(self._layout_path))
        if value != LAYOUT:
            raise UnsupportedFormat(
                f"{self._layout_path} does not say image layout version 1.0.0, the only one that this deltareg reads",
                hint="install a newer deltareg",
            )

    def _write(self, index: Index | None) -> None:
        if index is not None:
            write_index(self.index_path, index, temporary=self.scratch())

    def _mark(self, reference: Reference, mark: str, reason: str | None) -> None:
        with self.lock.exclusive():
            self._write(changes.marked(self.snapshot(), reference, mark, reason, str(self.root)))

    def _check_blobs(self, what: Reference | str, blobs: Iterable[Descriptor]) -> None:
        absent: list[str] = []
        for blob in blobs:
            digest = parse_digest(blob.digest)
            if not self.has(digest):
                absent.append(digest)
            elif self.size(digest) != blob.size:
                raise mismatch(digest, self.place(digest), expected=blob.size, found=self.size(digest))
        if absent:
            raise changes.blobs_missing(what, absent)


def is_vacant(root: Path) -> bool:
    """Whether a directory is empty, or holds only what a store that is being made has."""
    with translate_os_errors("list the registry", root):
        return all(path.name in _MAKINGS for path in root.iterdir())


def parse_manifest(data: bytes, *, what: str) -> Manifest:
    """Read a manifest that may come from anywhere.

    Raises BadManifest where it is larger than 4 MiB, breaks the schema, or gives one digest two sizes.
    """
    if len(data) > MANIFEST_LIMIT:
        raise BadManifest(f"{what} has {len(data)} bytes; at most {MANIFEST_LIMIT} are allowed")
    document = parse(Manifest, data, what=what)
    sizes: dict[str, int] = {}
    for blob in [document.config, *document.layers]:
        if sizes.setdefault(blob.digest, blob.size) != blob.size:
            raise BadManifest(f"{what} gives {blob.digest} two sizes: {sizes[blob.digest]} and {blob.size}")
    return document
