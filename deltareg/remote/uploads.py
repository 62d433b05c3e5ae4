"""Sending a blob to an OCI registry in chunks, and going on where an earlier try was cut off."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

from deltareg.digest import Digest
from deltareg.errors import Busy, DeltaregError, RemoteUnavailable, translate_os_errors
from deltareg.manifest import Descriptor
from deltareg.progress import Progress
from deltareg.remote.answers import PASSING, Answer
from deltareg.remote.bodies import Body, FilePart
from deltareg.remote.http import HttpClient
from deltareg.remote.network import origin_of
from deltareg.store.files import open_locked
from deltareg.store.writer import BLOCK, mismatch

__all__ = ["Target", "UploadMemory", "Uploader", "default_memory"]

_FIRST_CHUNK = 1 << 20
_LARGEST_CHUNK = 16 << 20
_SMALLEST_CHUNK = 64 << 10
_CHUNK_SECONDS = 0.5
"""How long a chunk should take: a try that is cut off within one loses it, at some registries all before it too."""
_TRIES = 4
_PAUSE_SECONDS = 0.2
_NO_CHUNKS = frozenset({400, 404, 405, 415, 501})
_LOST = frozenset({400, 404, 410, 416})
_REFUSED = (*_LOST, 422)
"""Answers to the end of an upload. 422: the registry has other bytes than were read here, of an earlier try."""
_TOO_LARGE = 413
_STALE_SECONDS = 7 * 86400
_DIGITS = 18
"""No blob has a size with more, and of very many Python makes no number."""
_BINARY = "application/octet-stream"


class UploadMemory:
    """Where uploads stood when they were cut off, a small file for each, that no one else reads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def claim(self, key: str) -> Generator[_Note]:
        """What is remembered of an upload, for one process and thread alone: others that ask meanwhile get none."""
        name = hashlib.sha256(key.encode()).hexdigest()[:40]
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._drop_stale()
            place = self._directory / name
            handle, path = open_locked(lambda: place, otherwise=lambda: self._directory / f"{uuid.uuid4()}.tmp")
            os.fchmod(handle, 0o600)  # locations may be as good as a password
        except OSError:
            # No place to remember anything: uploads work all the same.
            yield _Note(-1, None)
            return
        note = _Note(handle, path)
        try:
            yield note
        finally:
            if path != place or not note.location:
                path.unlink(missing_ok=True)
            os.close(handle)

    def _drop_stale(self) -> None:
        old = time.time() - _STALE_SECONDS
        for path in self._directory.iterdir():
            with suppress(OSError):
                if path.stat().st_mtime < old:
                    path.unlink()


class _Note:
    """Where one upload goes on: empty where that is not known."""

    def __init__(self, handle: int, path: Path | None) -> None:
        self._handle = handle
        self._path = path
        self.location = ""
        if handle >= 0:
            with suppress(OSError, ValueError, TypeError, KeyError):
                location = json.loads(os.pread(handle, 65536, 0))["location"]
                self.location = location if _is_usable(location) else ""

    def remember(self, location: str) -> None:
        """Keep where to go on; an empty location to forget it."""
        self.location = location
        if self._handle >= 0:
            with suppress(OSError):
                data = json.dumps({"location": location}).encode()
                os.ftruncate(self._handle, 0)
                os.pwrite(self._handle, data, 0)


class Target:
    """The repository that blobs are sent to: `name` is the whole one, as the registry calls it.

    `keeps_all` says that the registry is known to keep what came of a request that was cut off, until a proxy before it
    turns out to take less at a time than a blob.
    """

    def __init__(self, http: HttpClient, name: str, scope: str, *, keeps_all: bool = False) -> None:
        self.http = http
        self.name = name
        self.scope = scope
        self.keeps_all = keeps_all

    def begin(self, mount: Digest | None = None, source: str | None = None) -> str | None:
        """The location of a new upload; None where the blob could be mounted from another repository at once."""
        query = f"?mount={quote(mount)}&from={quote(source, safe='/')}" if mount and source else ""
        # Twice begun is no harm: what is not gone on with is dropped by the registry.
        answer = self.http.ask(
            "POST", f"v2/{self.name}/blobs/uploads/{query}", repeatable=True, accept=(), scope=self.scope
        )
        return None if answer.status == 201 else self.location(answer)

    def location(self, answer: Answer, before: str = "") -> str:
        """Where an upload goes on, after an answer. Raises RemoteUnavailable."""
        given = answer.headers.get("location", "")
        found = urljoin(answer.url, given) if given else before
        if not _is_usable(found):
            raise RemoteUnavailable(f"{self.http.login} does not say where to send a blob", cause="no location")
        return found

    def finish(
        self,
        location: str,
        digest: str,
        body: Body = b"",
        headers: Mapping[str, str] | None = None,
        *,
        accept: tuple[int, ...] = (),
        repeatable: bool = True,
    ) -> int:
        """End an upload, with its last bytes; returns the status."""
        url = f"{location}{'&' if '?' in location else '?'}digest={quote(digest, safe='')}"
        told = {"Content-Type": _BINARY, **(headers or {})}
        answer = self.http.ask(
            "PUT", url, headers=told, body=body, accept=accept, scope=self.scope, repeatable=repeatable
        )
        return answer.status

    def cancel(self, location: str) -> None:
        """Tell the registry that an upload is given up."""
        with suppress(DeltaregError):
            self.http.ask("DELETE", location, scope=self.scope, repeatable=False)

    def size(self, digest: str) -> int | None:
        """The size of a blob that is there."""
        answer = self.http.ask("HEAD", f"v2/{self.name}/blobs/{digest}", accept=(404, 405), scope=self.scope)
        if answer.status == 405:
            answer = self.http.ask(
                "GET", f"v2/{self.name}/blobs/{digest}", headers={"Range": "bytes=0-0"}, accept=(404, 416), limit=1
            )
            text = answer.headers.get("content-range", "").rpartition("/")[2]
        else:
            text = answer.headers.get("content-length", "")
        if answer.status == 404:
            return None
        return int(text[:_DIGITS]) if text.isascii() and text.isdigit() else -1


class _Lost(Exception):
    """The registry knows nothing of the upload any more, or of other bytes of it."""


class Uploader:
    """One blob on its way: `digest` and size of `blob` are checked here before the registry checks them."""

    def __init__(self, target: Target, blob: Descriptor, source: Path, progress: Progress, memory: UploadMemory):
        self._target = target
        self._blob = blob
        self._source = source
        self._progress = progress
        self._memory = memory
        self._hasher = hashlib.sha256()
        self._offset = self._hashed = 0
        self._location = ""
        self._sent = 0

    def run(self, mount_from: str | None = None) -> int:
        """Send it; return how many bytes were sent. Raises DigestMismatch, and as HttpClient does."""
        with translate_os_errors("read a blob", self._source):
            size = self._source.stat().st_size
            if not self._source.is_file():
                # Opened as a file, it tells what it is.
                self._source.open("rb").close()
        if size != self._blob.size:
            raise mismatch(self._blob.digest, self._source, expected=self._blob.size, found=size)
        with self._memory.claim(f"{self._target.http.base} {self._target.name} {self._blob.digest}") as note:
            try:
                return self._run(note, mount_from)
            except DeltaregError as error:
                # What the network cut off may go on; what was refused must not be tried again in the same way.
                if not isinstance(error, RemoteUnavailable | Busy):
                    note.remember("")
                raise

    def _run(self, note: _Note, mount_from: str | None) -> int:
        tries, before = _TRIES, 0
        while tries:
            resumed = self._take_up(note.location) if note.location else False
            if not resumed:
                self._rewind(0)
                location = self._target.begin(Digest(self._blob.digest), mount_from)
                if location is None:
                    self._progress.advance(self._blob.size)
                    return 0
                self._location = location
            # A cut that came further than the one before is no reason to give up.
            tries, before = (_TRIES if self._offset > before else tries) - 1, self._offset
            try:
                self._send(note)
                note.remember("")
                return self._sent
            except _Lost:
                note.remember("")
            except (RemoteUnavailable, Busy):
                if not tries:
                    raise
                # Where does the registry think we are? Where it does not know, it is begun anew.
                time.sleep(_PAUSE_SECONDS)
        raise RemoteUnavailable(
            f"{self._target.http.login} lost the upload of {self._blob.digest} again and again",
            hint="run this again later",
        )

    def _send(self, note: _Note) -> None:
        """What is left: at once where no cut can spoil it, else in chunks. Raises _Lost."""
        if self._target.keeps_all:
            note.remember(self._location)
            if self._send_rest():
                return
        if self._send_chunks(note):
            self._check_source()
            self._end()
            return
        # One of the registries that take no chunks.
        self._rewind(0)
        location = self._target.begin()
        if location is None:
            raise RemoteUnavailable(f"{self._target.http.login} does not say where to send a blob")
        self._location = location
        self._send_rest()

    def _send_chunks(self, note: _Note) -> bool:
        """All but the end of the upload; False where the registry takes no chunks."""
        length, most = _FIRST_CHUNK, _LARGEST_CHUNK
        while self._offset < self._blob.size:
            chunk = self._chunk(min(length, self._blob.size - self._offset))
            begun = time.monotonic()
            status = self._patch(chunk)
            if status == _TOO_LARGE and len(chunk) > _SMALLEST_CHUNK:
                # A proxy before the registry takes less at a time.
                length = most = len(chunk) // 2
                continue
            if status >= 300:
                return False
            note.remember(self._location)
            self._offset += len(chunk)
            self._sent += len(chunk)
            # After the registry has it: whoever interrupts here, interrupts between two chunks.
            self._pass(chunk)
            if time.monotonic() - begun < _CHUNK_SECONDS:
                length = min(2 * length, most)
            else:
                length = max(length // 2, min(_FIRST_CHUNK, most))
        return True

    def _patch(self, chunk: bytes) -> int:
        """Send one chunk; the status tells of a registry that takes none, or none so large. Raises _Lost."""
        headers = {"Content-Type": _BINARY, "Content-Range": f"{self._offset}-{self._offset + len(chunk) - 1}"}
        answer = self._target.http.ask(
            "PATCH",
            self._location,
            headers=headers,
            body=chunk,
            accept=(*_NO_CHUNKS, *_LOST, _TOO_LARGE),
            scope=self._target.scope,
        )
        if answer.status == _TOO_LARGE or (answer.status in _NO_CHUNKS and self._offset == 0):
            return answer.status
        if answer.status in _LOST | _NO_CHUNKS:
            raise _Lost
        taken = _end_of(answer)
        if taken is not None and taken != self._offset + len(chunk):
            raise _Lost
        self._location = self._target.location(answer, self._location)
        return answer.status

    def _send_rest(self) -> bool:
        """All that is left with the request that ends the upload; False where a proxy takes less at a time."""
        begin, left = self._offset, self._blob.size - self._offset

        def sent(piece: bytes, at: int) -> None:
            # A second try, say with a password, sends the same bytes again.
            if at <= self._hashed:
                self._pass(piece[self._hashed - at :])
            self._sent += len(piece)

        body = FilePart(self._source, begin, left, self._blob.digest, sent)
        try:
            status = self._target.finish(
                self._location,
                self._blob.digest,
                body,
                {"Content-Range": f"{begin}-{self._blob.size - 1}"} if begin and left else {},
                # What was kept is gone on with, and not sent again. Elsewhere there is no other way: a refusal is told.
                accept=(*_REFUSED, _TOO_LARGE) if self._target.keeps_all else (),
                repeatable=not self._target.keeps_all,
            )
        except DeltaregError:
            # That the source is damaged says more than the registry's words for it.
            self._check_sent()
            raise
        if status == _TOO_LARGE:
            self._target.keeps_all = False
            self._rewind(begin)
            return False
        self._check_sent()
        self._ended(status)
        return True

    def _end(self) -> None:
        self._ended(self._target.finish(self._location, self._blob.digest, accept=_REFUSED))

    def _ended(self, status: int) -> None:
        # Lost may also mean that an earlier try, whose answer was cut off, has ended it.
        if status >= 300 and self._target.size(self._blob.digest) != self._blob.size:
            raise _Lost

    def _pass(self, piece: bytes) -> None:
        self._hasher.update(piece)
        self._hashed += len(piece)
        self._progress.advance(len(piece))

    def _check_sent(self) -> None:
        if self._hashed == self._blob.size:
            self._check_source()

    def _check_source(self) -> None:
        if f"sha256:{self._hasher.hexdigest()}" != self._blob.digest:
            if self._location:
                self._target.cancel(self._location)
            raise mismatch(self._blob.digest, self._source)

    def _take_up(self, location: str) -> bool:
        """Go on with an upload, if the registry still has it."""
        refusals = tuple(status for status in range(400, 600) if status not in PASSING)
        answer = self._target.http.ask("GET", location, accept=refusals, scope=self._target.scope)
        end = _end_of(answer) if answer.status < 300 else None
        # One byte, or none: registries write both as 0-0.
        if end is None or not 1 < end <= self._blob.size:
            return False
        self._location = self._target.location(answer, location)
        self._rewind(end)
        return True

    def _rewind(self, offset: int) -> None:
        """Be at `offset`, with all before it hashed and told."""
        self._hasher = hashlib.sha256()
        self._progress.advance(offset - self._hashed)
        self._offset = self._hashed = offset
        done = 0
        while done < offset:
            piece = self._chunk(min(BLOCK, offset - done), done)
            self._hasher.update(piece)
            done += len(piece)

    def _chunk(self, length: int, offset: int | None = None) -> bytes:
        begin = self._offset if offset is None else offset
        with translate_os_errors("read a blob", self._source), self._source.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), length, begin)
        if len(data) != length:
            raise mismatch(self._blob.digest, self._source, expected=self._blob.size, found=begin + len(data))
        return data


def default_memory() -> UploadMemory:
    """What is remembered for this user."""
    import platformdirs

    return UploadMemory(platformdirs.user_state_path("deltareg") / "uploads")


def _is_usable(location: str) -> bool:
    """Whether an upload can go on there: at a URL of HTTP, without a password that would be sent along."""
    try:
        origin_of(location)
        return urlsplit(location).username is None
    except (ValueError, AttributeError):
        return False


def _end_of(answer: Answer) -> int | None:
    """How many bytes of an upload the registry has, where its `Range` says so."""
    text = answer.headers.get("range", "").removeprefix("bytes=").removeprefix("bytes ")
    begin, _, end = text.partition("-")
    return int(end[:_DIGITS]) + 1 if begin == "0" and end.isascii() and end.isdigit() else None
