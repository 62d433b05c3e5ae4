"""The directory remote: a registry at a path that several machines share."""

from __future__ import annotations

import builtins
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from deltareg.digest import Digest, parse_digest
from deltareg.errors import (
    BadName,
    DeltaregError,
    NotAllowed,
    NotFound,
    RemoteUnavailable,
    UsageError,
    translate_os_errors,
)
from deltareg.manifest import Descriptor
from deltareg.names import Reference
from deltareg.paths import expand_home
from deltareg.progress import Progress
from deltareg.remote.network import shown
from deltareg.remote.protocol import Capabilities, RemoteEntry
from deltareg.store import BLOCK, MANIFEST_LIMIT, Store, is_vacant

__all__ = ["DirectoryRemote"]


class DirectoryRemote:
    """A store at a path: a shared disk, a mounted bucket, a USB stick. It uses no SQLite, which network disks break.

    `location` is a path or a `file://` URL. The directory must exist: an absent one is more likely a disk that is not
    mounted than a wish. The first push to an empty one makes a registry of it.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.path = _path(location)
        self.url = self.path.as_uri()
        self._opened: Store | None = None

    def capabilities(self) -> Capabilities:
        """What it can do."""
        with self._reaching():
            self._check_there()
            writable = os.access(self.path, os.W_OK)
            vacant = os.access(self.path, os.R_OK) and is_vacant(self.path)
        return Capabilities(
            writable=writable, resumable=True, conditional_put=True, search=False, removal=True, vacant=vacant
        )

    def missing(self, repository: str, digests: Iterable[Digest]) -> set[Digest]:
        """Those of `digests` that are not there. The others are safe from `gc` for its grace period."""
        wanted = {parse_digest(digest) for digest in digests}
        with self._reaching():
            store = self._store()
            if store is None:
                return wanted
            try:
                return store.missing(wanted)
            except NotAllowed:
                # Read-only for this user: what is there can still be told.
                return store.missing(wanted, touch=False)

    def put_blob(self, repository: str, descriptor: Descriptor, source: Path, progress: Progress) -> int:
        """Copy a blob from a file, going on where an earlier copy was cut off."""
        with self._reaching(), self._made().resume(descriptor) as writer:
            sent = writer.fill(lambda offset: _pieces(source, offset), progress, origin=str(source))
            writer.commit()
        return sent

    def get_blob(self, repository: str, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """The bytes of a blob from `offset` on, in pieces of 1 MiB."""
        digest = parse_digest(descriptor.digest)
        with self._reaching():
            yield from self._readable_store(digest).chunks(digest, offset)

    def put_manifest(self, reference: Reference, manifest: bytes, *, if_absent: bool = True) -> Digest:
        """Publish a manifest under a version."""
        if not if_absent:
            raise NotAllowed(f"{self.url} keeps versions as they are", hint="publish under a new version number")
        with self._reaching():
            return self._made().publish(reference, manifest)

    def get_manifest(self, repository: str, digest: Digest) -> bytes:
        """The verified bytes of a manifest."""
        with self._reaching():
            return self._readable_store(digest).read(digest, limit=MANIFEST_LIMIT)

    def put_referrer(self, repository: str, manifest: bytes) -> Digest:
        """Store the manifest of a referrer."""
        with self._reaching():
            return self._readable_store(repository).put_referrer(repository, manifest)

    def referrers(self, repository: str, digest: Digest, artifact_type: str | None = None) -> builtins.list[Descriptor]:
        """The referrers of a manifest; none for an empty directory."""
        wanted = parse_digest(digest)
        with self._reaching():
            store = self._store()
            return [] if store is None else store.referrers(repository, wanted, artifact_type)

    def resolve(self, reference: Reference) -> Digest:
        """The digest that a name means."""
        with self._reaching():
            return self._readable_store(reference).resolve(reference)

    def list(self, repository: str | None = None) -> builtins.list[RemoteEntry]:
        """The names of one repository, or all; none for an empty directory."""
        with self._reaching():
            store = self._store()
            if store is None:
                return []
            return store.entries() if repository is None else store.entries_of(repository)

    def yank(self, reference: Reference, reason: str) -> None:
        """Yank a version."""
        with self._reaching():
            self._readable_store(reference).yank(reference, reason)

    def unyank(self, reference: Reference) -> None:
        """Take back that a version was yanked."""
        with self._reaching():
            self._readable_store(reference).unyank(reference)

    def deprecate(self, reference: Reference, reason: str) -> None:
        """Advise against a version."""
        with self._reaching():
            self._readable_store(reference).deprecate(reference, reason)

    def undeprecate(self, reference: Reference) -> None:
        """Take back that a version was deprecated."""
        with self._reaching():
            self._readable_store(reference).undeprecate(reference)

    def set_channel(self, repository: str, channel: str, digest: Digest, expected: Digest | None) -> None:
        """Let a channel name a version, if it still points to `expected`."""
        with self._reaching():
            self._readable_store(f"{repository}:{channel}").set_channel(repository, channel, digest, expected)

    def remove_channel(self, repository: str, channel: str) -> None:
        """Drop a channel."""
        with self._reaching():
            self._readable_store(f"{repository}:{channel}").remove_channel(repository, channel)

    def remove(self, reference: Reference) -> None:
        """Drop a version."""
        if reference.version is None:
            raise BadName(f"{reference} does not name a version", hint="name one: namespace/name:1.2.3")
        with self._reaching():
            self._readable_store(reference).remove(reference)

    def _store(self) -> Store | None:
        """The store, or None where the directory may become one."""
        self._check_there()
        if is_vacant(self.path):
            return None
        try:
            # Kept: a store remembers its names for as long as nobody changes them.
            self._opened = self._opened or Store(self.path, create=False)
            return self._opened
        except NotFound as error:
            raise RemoteUnavailable(
                f"{self.path} holds something, but no registry", hint=self._way_out(), path=self.path
            ) from error

    def _way_out(self) -> str:
        inner = self.path / "registry"
        if not os.path.isfile(inner / "oci-layout"):
            return "name a registry or an empty directory"
        return f"it is a home, as DELTAREG_HOME names one; its registry, and so the remote, is {inner}"

    def _readable_store(self, wanted: Reference | Digest | str) -> Store:
        store = self._store()
        if store is None:
            raise NotFound(f"{wanted} is not in {self.path}", cause="the remote is empty", hint="deltareg push")
        return store

    def _made(self) -> Store:
        """The store, made where the directory is empty."""
        return self._store() or Store(self.path)

    def _check_there(self) -> None:
        with translate_os_errors("reach the remote", self.path):
            if not self.path.is_dir():
                raise RemoteUnavailable(
                    f"{self.path} is not there",
                    cause="no such directory",
                    hint="mount the disk, or make the directory if this is a new remote",
                    path=self.path,
                )

    @contextmanager
    def _reaching(self) -> Generator[None]:
        """Tell a disk that fails or went away from a local file that cannot be read."""
        try:
            yield
        except DeltaregError as error:
            where = error.data.get("path")
            ours = isinstance(where, (str, Path)) and Path(where).is_relative_to(self.path)
            if type(error) is DeltaregError and ours:
                raise RemoteUnavailable(
                    error.message, cause=error.cause, hint="check that the disk is mounted", path=self.path
                ) from error
            raise


def _pieces(source: Path, offset: int) -> Iterator[bytes]:
    with translate_os_errors("read a blob", source), source.open("rb", buffering=0) as file:
        file.seek(offset)
        while piece := file.read(BLOCK):
            yield piece


def _path(location: str | os.PathLike[str]) -> Path:
    text = os.fspath(location)
    if text[:5].lower() == "file:":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise UsageError(f"{shown(text)!r} is no local file URL", hint="write file:///absolute/path")
        text = unquote(parts.path)
    if not text or "\0" in text:
        raise UsageError(f"{text!r} is no path")
    return expand_home(text).absolute()
