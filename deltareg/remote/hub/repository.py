"""One model repository of the Hub: its files at a commit, uploads, and commits that fail where others were first."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltareg.checkpoint.hub import (
    TIMEOUT,
    Hub,
    chunks_of,
    hub_errors,
    hub_library,
    open_url,
    status_of,
    total_size,
)
from deltareg.digest import Digest
from deltareg.errors import BadManifest, DeltaregError, HubUnavailable, NotAllowed, NotFound, translate_os_errors
from deltareg.manifest import Descriptor
from deltareg.progress import Progress
from deltareg.remote.bandwidth import Bandwidth
from deltareg.store.writer import mismatch

__all__ = ["Conflict", "HubFile", "HubRepository", "LargeFileLost", "Upload", "addition"]

_BRANCH = "main"
_PATHS = 500
_TRIES = 3
_WAIT = 0.3
_CONFLICTS = (409, 412)
_LOGIN = "run `hf auth login` with a token that may write, or set HF_TOKEN"


class Conflict(Exception):
    """Somebody else committed in between."""


class LargeFileLost(Exception):
    """The Hub does not have a file any more that was sent for a commit."""


@dataclass(frozen=True)
class HubFile:
    """A file of a commit: its size in bytes, and its digest where the Hub keeps it as a large file."""

    size: int
    digest: Digest | None


@dataclass(frozen=True)
class Upload:
    """A file that the Hub has, or that goes with the commit; `sent` bytes had to travel for it."""

    operation: Any
    sent: int


class HubRepository:
    """`owner/name` on the Hub. Raises HubUnavailable, NotAllowed, NotFound."""

    def __init__(self, hub: Hub, name: str, bandwidth: Bandwidth) -> None:
        self.name = name
        self.label = f"hf://{name}"
        self._hub = hub
        self._bandwidth = bandwidth

    def head(self) -> tuple[str, list[str]] | None:
        """The newest commit and its files; None where there is no repository, or none that we may see."""
        try:
            with hub_errors(self.label):
                info = self._api().model_info(self.name, revision=_BRANCH, timeout=TIMEOUT)
        except DeltaregError as error:
            if _is_unseen(error):
                return None
            raise
        return str(info.sha), [str(sibling.rfilename) for sibling in info.siblings or ()]

    def files(self, paths: Iterable[str], commit: str) -> dict[str, HubFile]:
        """Those of `paths` that a commit has."""
        wanted = sorted(set(paths))
        found: dict[str, HubFile] = {}
        for start in range(0, len(wanted), _PATHS):
            with hub_errors(self.label):
                some = self._api().get_paths_info(self.name, wanted[start : start + _PATHS], revision=commit)
            for one in some:
                if getattr(one, "size", None) is not None:
                    digest = None if one.lfs is None else Digest(f"sha256:{one.lfs.sha256}")
                    found[str(one.path)] = HubFile(int(one.size), digest)
        return found

    def read(self, path: str, commit: str, limit: int) -> bytes | None:
        """A small file as a whole; None if the commit lacks it. Raises BadManifest where it is larger than `limit`."""
        data = bytearray()
        try:
            for chunk in self.chunks(path, commit, 0):
                data += chunk
                if len(data) > limit:
                    raise BadManifest(f"{self.label} has a {path} of more than {limit} bytes")
        except NotFound:
            return None
        return bytes(data)

    def chunks(self, path: str, commit: str, offset: int) -> Iterator[bytes]:
        """The bytes of a file from `offset` on. A connection that breaks is made anew."""
        failures = 0
        while True:
            begun = offset
            try:
                for chunk in self._chunks(path, commit, offset):
                    self._bandwidth.take(len(chunk))
                    yield chunk
                    offset += len(chunk)
                return
            except HubUnavailable as error:
                failures = 1 if offset > begun else failures + 1
                if failures == _TRIES or error.data.get("final"):
                    raise
                time.sleep(_WAIT * failures)

    def create(self, *, public: bool) -> None:
        """Make the repository, unless it is there."""
        with self._writing("make"):
            self._api().create_repo(self.name, private=not public, exist_ok=True)

    def upload(self, path: str, source: Path, blob: Descriptor | None, progress: Progress) -> Upload:
        """Bring a file to the Hub, which shows it once a commit has it; what the Hub has already is not sent.

        Raises DigestMismatch where `source` is not what the descriptor says.
        """
        with (
            translate_os_errors("read a blob", source),
            source.open("rb", buffering=0) as raw,
            _Told(raw, self._bandwidth) as file,
        ):
            # Reads it once, for its digest.
            operation = hub_library().CommitOperationAdd(path_in_repo=path, path_or_fileobj=file)
            size, digest = int(operation.upload_info.size), f"sha256:{operation.upload_info.sha256.hex()}"
            if blob is not None and (digest != blob.digest or size != blob.size):
                raise mismatch(Digest(blob.digest), str(source), expected=blob.size, found=size)
            file.tell_to(progress)
            self._preupload(operation, file)
            if operation.path_or_fileobj is file:
                # A file that is not kept as a large one travels inside the commit.
                file.tell_to(None)
                file.seek(0)
                operation.path_or_fileobj = io.BytesIO(file.read())
                sent = size
            else:
                sent = min(file.told, size)
        progress.advance(size - min(file.told, size))
        return Upload(operation, sent)

    def commit(self, message: str, parent: str, additions: Iterable[Any], deletions: Iterable[str] = ()) -> None:
        """Commit on top of `parent`.

        Raises Conflict where that is not the newest commit any more, LargeFileLost where a file has to be sent again.
        """
        library = hub_library()
        operations = [*additions, *(library.CommitOperationDelete(path_in_repo=path) for path in deletions)]
        try:
            with self._writing("write to"):
                self._api().create_commit(
                    self.name, operations, commit_message=message, revision=_BRANCH, parent_commit=parent
                )
        except HubUnavailable as error:
            if isinstance(error.__cause__, library.errors.BadRequestError) and "lfs" in str(error.__cause__).lower():
                raise LargeFileLost(error.cause) from error
            raise

    def _preupload(self, operation: Any, file: _Told) -> None:
        _quieten()
        try:
            with self._writing("write to"):
                try:
                    self._api().preupload_lfs_files(self.name, [operation], revision=_BRANCH, num_threads=1)
                except RuntimeError as error:
                    # huggingface_hub wraps whatever ended an upload.
                    raise error.__cause__ or error from None
        except DeltaregError:
            # Ours is the reason where reading or telling failed: an interrupt, a disk.
            if file.failure is not None:
                raise file.failure from None
            raise

    def _chunks(self, path: str, commit: str, offset: int) -> Iterator[bytes]:
        url = hub_library().hf_hub_url(self.name, path, revision=commit, endpoint=self._hub.endpoint)
        try:
            with hub_errors(f"{self.label}/{path}"), open_url(url, self._hub.token, f"bytes={offset}-") as response:
                if response.status_code == 416:  # there is nothing from `offset` on
                    return
                skip = offset
                if response.status_code == 206:
                    skip = 0
                    total_size(response.headers, path, offset)
                for chunk in chunks_of(response):
                    piece = chunk[skip:]
                    skip -= len(chunk) - len(piece)
                    if piece:
                        yield piece
        except DeltaregError as error:
            errors = hub_library(".errors")
            absent = isinstance(error.__cause__, (errors.EntryNotFoundError, errors.RevisionNotFoundError))
            if absent or _is_unseen(error):
                raise NotFound(
                    f"{self.label} has no {path}", cause=f"not at its commit {commit}", hint="deltareg list"
                ) from error
            raise

    @contextmanager
    def _writing(self, doing: str) -> Generator[None]:
        """What the Hub answers to those who may not write: a refusal, or that there is no such repository."""
        try:
            with hub_errors(self.label, doing):
                yield
        except DeltaregError as error:
            if status_of(error.__cause__) in _CONFLICTS:
                raise Conflict from error
            if _is_unseen(error) or isinstance(error, NotAllowed):
                message = f"the hub does not let you {doing} {self.label}"
                raise NotAllowed(message, cause=error.cause, hint=_LOGIN) from error
            raise

    def _api(self) -> Any:
        return hub_library().HfApi(endpoint=self._hub.endpoint, token=self._hub.token)


def _is_unseen(error: DeltaregError) -> bool:
    """Whether the Hub says that there is no such repository, which may also mean: not for this user."""
    errors = hub_library(".errors")
    # A gated repository is there, though huggingface_hub makes it a kind of those that are not.
    return isinstance(error.__cause__, errors.RepositoryNotFoundError) and not isinstance(
        error.__cause__, errors.GatedRepoError
    )


class _Told(io.BufferedReader):
    """A file that tells how far it was read, each byte once: an upload that is tried again starts anew.

    What raises in between is kept in `failure`. It is a file object, not a path, since huggingface_hub sends paths by
    Xet, which neither tells how far it is nor can be stopped.
    """

    def __init__(self, raw: io.FileIO, bandwidth: Bandwidth) -> None:
        super().__init__(raw)
        self._bandwidth = bandwidth
        self.told = 0
        self.failure: BaseException | None = None
        self._progress: Progress | None = None

    def tell_to(self, progress: Progress | None) -> None:
        """Tell of what is read from now on."""
        self._progress = progress

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file; what was read counts as sent."""
        try:
            with translate_os_errors("read a blob", str(self.name)):
                data = super().read(size)
            if self._progress is not None and self.tell() > self.told:
                count, self.told = self.tell() - self.told, self.tell()
                self._progress.advance(count)
                self._bandwidth.take(count)
        except BaseException as error:
            self.failure = error
            raise
        return data


class _NoXetForFiles(logging.Filter):
    """Drops the warning that file objects are not sent by Xet, which is as it should be."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "binary IO buffer is not supported by Xet" not in record.getMessage()


_NO_XET = _NoXetForFiles()


def _quieten() -> None:
    logging.getLogger("huggingface_hub._commit_api").addFilter(_NO_XET)


def addition(path: str, data: bytes) -> Any:
    """A small file of a commit."""
    return hub_library().CommitOperationAdd(path_in_repo=path, path_or_fileobj=io.BytesIO(data))
