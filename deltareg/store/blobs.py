"""Blobs by digest: written beside their place, hashed on the way, synced, then renamed into it."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from deltareg.digest import Digest, parse_digest, sha256
from deltareg.errors import BadManifest, NotFound, translate_os_errors
from deltareg.manifest import Descriptor
from deltareg.progress import Progress
from deltareg.store.files import open_locked, sync_directory
from deltareg.store.lock import FileLock
from deltareg.store.writer import BLOCK, BlobWriter, mismatch

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Blobs"]

_READ_LIMIT = 64 << 20
_HOLD = "hold-"


class Blobs:
    """The blobs of a store at `root`: `blobs/sha256/<hex>`, made in `tmp/`, guarded by `lock`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs_path = root / "blobs" / "sha256"
        self.tmp_path = root / "tmp"
        self.lock = FileLock(root / "lock")

    def place(self, digest: str) -> Path:
        """Where the blob lies, or would lie. Raises BadName: only digests become paths."""
        return self.blobs_path / parse_digest(digest).removeprefix("sha256:")

    def has(self, digest: Digest) -> bool:
        """Whether the blob is here."""
        return self._stat(digest) is not None

    def path(self, digest: Digest) -> Path:
        """The blob's file. Raises NotFound."""
        self.size(digest)
        return self.place(digest)

    def size(self, digest: Digest) -> int:
        """Bytes of the blob. Raises NotFound."""
        found = self._stat(digest)
        if found is None:
            raise _absent(digest, self.root)
        return found.st_size

    def read(self, digest: Digest, *, limit: int = _READ_LIMIT) -> bytes:
        """The bytes of a blob of at most `limit` bytes, verified.

        Raises NotFound, DigestMismatch, and BadManifest for a larger one, which is not read.
        """
        size = self.size(digest)
        if size > limit:
            raise BadManifest(f"{digest} has {size} bytes; at most {limit} are read as a document", digest=digest)
        data = b"".join(self.chunks(digest))
        if sha256(data) != digest:
            raise mismatch(digest, self.place(digest))
        return data

    def chunks(self, digest: Digest, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from `offset` on, not verified. Raises NotFound."""
        handle = self._open(digest)
        try:
            while True:
                with translate_os_errors("read a blob", self.place(digest)):
                    chunk = os.pread(handle, BLOCK, offset)
                if not chunk:
                    return
                offset += len(chunk)
                yield chunk
        finally:
            os.close(handle)

    def verify(self, descriptor: Descriptor, progress: Progress | None = None, *, quick: bool = False) -> None:
        """Read a blob through. Raises NotFound; DigestMismatch where size or digest differ.

        With `quick` its BLAKE3 digest is compared instead, where the descriptor has one. Raises BadManifest where that
        is another blob's.
        """
        digest = parse_digest(descriptor.digest)
        if self.size(digest) != descriptor.size:
            raise mismatch(digest, self.place(digest), expected=descriptor.size, found=self.size(digest))
        quick_digest = descriptor.blake3 if quick else None
        hasher = hashlib.sha256() if quick_digest is None else blake3()
        for chunk in self.chunks(digest):
            hasher.update(chunk)
            if progress is not None:
                progress.advance(len(chunk))
        if hasher.hexdigest() == (quick_digest or digest.removeprefix("sha256:")):
            return
        if quick_digest is not None:
            self.verify(descriptor)
            raise BadManifest(
                f"{digest} is sound, but its manifest gives it another BLAKE3 digest",
                hint="whoever made this delta must publish it again, under another version",
                digest=digest,
            )
        raise mismatch(digest, self.place(digest))

    def missing(self, digests: Iterable[Digest], *, touch: bool = True) -> set[Digest]:
        """Those of `digests` that are not here.

        With `touch` the others count as written now, so that `gc` leaves them for its grace period.
        """
        wanted = set(digests)
        if not touch:
            return {digest for digest in wanted if not self.has(digest)}
        with self.lock.shared():
            return {digest for digest in wanted if not self._touch(digest)}

    def put(self, data: Buffer) -> Digest:
        """Store `data` and return its digest. Storing it again is cheap, and mends a damaged copy."""
        raw = bytes(data)
        digest = sha256(raw)
        with self.lock.shared():
            found = self._stat(digest)
            if found is not None and found.st_size == len(raw) and b"".join(self.chunks(digest)) == raw:
                self._touch(digest)
                return digest
        with self.writer() as writer:
            writer.write(raw)
            return writer.commit()[0]

    def writer(self) -> BlobWriter:
        """Write a blob whose digest is known at its end."""
        return BlobWriter(self, self.scratch(), None)

    def resume(self, descriptor: Descriptor) -> BlobWriter:
        """Write the blob of `descriptor`, going on where an earlier writer of it was cut off."""
        return BlobWriter(self, self._part(descriptor), descriptor)

    def kept(self, descriptor: Descriptor) -> int:
        """Bytes of a blob that an earlier writer left."""
        try:
            return min(self._part(descriptor).lstat().st_size, descriptor.size)
        except FileNotFoundError:
            return 0

    def _part(self, descriptor: Descriptor) -> Path:
        return self.tmp_path / f"{self.place(descriptor.digest).name}.part"

    def adopt(self, path: Path, digest: Digest) -> None:
        """Make a finished file that `scratch` named the blob `digest`. The caller vouches for the digest."""
        with translate_os_errors("store a blob", path):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
                self._settle(path, digest)
            finally:
                os.close(handle)

    def scratch(self, suffix: str = "") -> Path:
        """The name of a new file in `tmp/`, for `adopt`."""
        with translate_os_errors("make a directory", self.tmp_path):
            self.tmp_path.mkdir(parents=True, exist_ok=True)
        return self.tmp_path / f"{secrets.token_hex(8)}{suffix}"

    @contextmanager
    def hold(self) -> Generator[Path]:
        """While this is open, `gc` keeps every blob that was written or asked for since, however long it takes.

        Gives the file whose modification time says since when.
        """
        with translate_os_errors("write to the registry", self.tmp_path):
            handle, path = open_locked(lambda: self.scratch().with_name(_HOLD + secrets.token_hex(8)))
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
            os.close(handle)

    def holds(self) -> Iterator[Path]:
        """The files of `hold`, those of killed processes too."""
        return self.tmp_path.glob(_HOLD + "*")

    def settle(self, path: Path, digest: Digest) -> None:
        """Rename a synced file in `tmp/` to the blob `digest`."""
        with translate_os_errors("store a blob", path):
            self._settle(path, digest)

    def _settle(self, path: Path, digest: Digest) -> None:
        place = self.place(digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        # Also over a blob that is there: the new bytes were verified, the old ones may have rotted. Locked against
        # gc, which could otherwise remove the new file where it had judged the old one.
        with self.lock.shared():
            os.utime(path)
            path.replace(place)
        sync_directory(place.parent)

    def _touch(self, digest: Digest) -> bool:
        with translate_os_errors("write to the registry", self.place(digest)):
            try:
                os.utime(self.place(digest), follow_symlinks=False)
            except FileNotFoundError:
                return False
            except PermissionError:
                # Somebody else's blob on a shared disk: it is there, only its grace cannot be renewed.
                pass
        return self.has(digest)

    def _stat(self, digest: Digest) -> os.stat_result | None:
        place = self.place(digest)
        with translate_os_errors("look for a blob", place):
            try:
                found = place.lstat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return found if stat.S_ISREG(found.st_mode) else None

    def _open(self, digest: Digest) -> int:
        place = self.place(digest)
        # NOFOLLOW, NONBLOCK: on a shared disk somebody may have put a link or a pipe in a blob's place.
        with translate_os_errors("read a blob", place):
            try:
                return os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP):
                    raise _absent(digest, self.root) from error
                raise


def _absent(digest: str, root: Path) -> NotFound:
    return NotFound(
        f"{digest} is not in {root}",
        hint="pull the delta again, or run `deltareg cache fsck` to see what else is missing",
        digest=digest,
    )
