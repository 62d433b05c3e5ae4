"""Models on the Hugging Face Hub: the local cache, downloads, and byte ranges of remote files."""

from __future__ import annotations

import errno
import importlib
import re
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltareg.checkpoint.source import bytes_of, too_large, truncated
from deltareg.errors import BadName, CheckpointNotFound, DeltaregError, HubUnavailable, NotAllowed, translate_os_errors

if TYPE_CHECKING:
    from deltareg.checkpoint.source import Buffer

__all__ = [
    "PREFIX",
    "TIMEOUT",
    "Hub",
    "HubFolder",
    "HubName",
    "HubSource",
    "chunks_of",
    "hub_errors",
    "hub_library",
    "open_url",
    "parse_hub_name",
    "status_of",
    "total_size",
]

PREFIX = "hf://"

_PREFETCH = 16 * 1024
TIMEOUT = 10.0
"""Seconds that an answer may take, and each piece of it."""
_TRIES = 3
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"hf://(?:models/)?({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,249}}))?")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")
_MAX_SKIPPED = 64 * 2**20
_WAIT = 0.3
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class HubName:
    """`hf://org/name[@revision]`."""

    repository: str
    revision: str | None = None

    @property
    def id(self) -> str:
        """The name without its revision."""
        return PREFIX + self.repository

    @property
    def text(self) -> str:
        """The name as it is written."""
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


@dataclass(frozen=True)
class Hub:
    """How the hub is reached.

    What is None is as huggingface_hub has it from its environment: HF_ENDPOINT, HF_HUB_CACHE, HF_TOKEN.
    """

    endpoint: str | None = None
    cache: Path | None = None
    token: str | None = None

    def cached(self, name: HubName) -> Path | None:
        """The directory of the revision in the local cache, which may lack files; None if there is none."""
        library = hub_library()
        with hub_errors(name.text):
            try:
                # No patterns: the snapshot as it is. Whether it has all of the weights is judged by its index.
                found = library.snapshot_download(
                    name.repository,
                    revision=name.revision,
                    cache_dir=self.cache,
                    local_files_only=True,
                    allow_patterns=[],
                )
            except hub_library(".errors").LocalEntryNotFoundError:
                return None
        return Path(found)

    def folder(self, name: HubName) -> HubFolder:
        """The files of the revision as they lie on the hub. Raises HubUnavailable, NotAllowed, CheckpointNotFound."""
        library = hub_library()
        with hub_errors(name.text):
            info = library.HfApi(endpoint=self.endpoint, token=self.token).model_info(
                name.repository, revision=name.revision, timeout=TIMEOUT
            )
            files = sorted(sibling.rfilename for sibling in info.siblings or ())
        return HubFolder(self, name, str(info.sha), files)

    def download(self, name: HubName, files: Sequence[str]) -> Path:
        """Bring files of the revision into the local cache. Raises as `folder` does, and DiskFull."""
        library = hub_library()
        with hub_errors(name.text), _bars_on_terminals_only():
            found = library.snapshot_download(
                name.repository,
                revision=name.revision,
                endpoint=self.endpoint,
                cache_dir=self.cache,
                token=self.token,
                allow_patterns=[re.sub(r"([*?[])", r"[\1]", file) for file in files],
            )
        return Path(found)


class HubFolder:
    """The files of one commit on the hub, read by byte ranges."""

    def __init__(self, hub: Hub, name: HubName, commit: str, files: Sequence[str]) -> None:
        self.label = name.id
        self.commit = commit
        self._hub = hub
        self._name = name
        self._files = files

    def names(self) -> Sequence[str]:
        """The files at the top, and `config.json` of each directory there."""
        return [name for name in self._files if "/" not in name or re.fullmatch(r"[^./][^/]*/config\.json", name)]

    def open(self, name: str) -> HubSource:
        """Open one file, which fetches its first bytes."""
        if name not in self._files:
            raise CheckpointNotFound(f"{self.label} has no {name}", path=self.label)
        url = hub_library().hf_hub_url(self._name.repository, name, revision=self.commit, endpoint=self._hub.endpoint)
        return HubSource(url, name=name, token=self._hub.token)

    def read(self, name: str, limit: int) -> bytes:
        """One small file as a whole."""
        source = self.open(name)
        if source.size > limit:
            raise too_large(name, self.label, source.size, limit)
        return source.read(0, source.size)


class HubSource:
    """A file behind an URL, read by HTTP byte ranges.

    The first 16 KiB are kept from the first request, which also tells the size: they hold the header of most shards.
    """

    def __init__(self, url: str, *, name: str | None = None, token: str | None = None) -> None:
        self.name = name or url.rsplit("/", 1)[-1]
        self._url = url
        self._token = token
        self._prefix, self.size = self._fetch(0, _PREFETCH)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` with the bytes from `offset` on. Raises BadHeader, HubUnavailable."""
        view = bytes_of(buffer)
        view[:] = self.read(offset, len(view))

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on. Raises BadHeader, HubUnavailable."""
        if offset + length > self.size:
            raise truncated(self.name, self.size, offset + length)
        if length == 0:  # no byte range is empty
            return b""
        if offset + length <= len(self._prefix):
            return self._prefix[offset : offset + length]
        data, size = self._fetch(offset, length)
        if len(data) != length or size != self.size:
            raise truncated(self.name, offset + len(data), offset + length)
        return data

    def close(self) -> None:
        """Nothing is held: connections belong to huggingface_hub's session."""

    def _fetch(self, offset: int, length: int) -> tuple[bytes, int]:
        """Up to `length` bytes from `offset` on, fewer at the end of the file, and the file's size."""
        for attempt in range(1, _TRIES + 1):
            try:
                return self._fetch_once(offset, length)
            except HubUnavailable as error:
                if attempt == _TRIES or error.data.get("final"):
                    raise
                time.sleep(_WAIT * attempt)
        raise AssertionError("unreachable")

    def _fetch_once(self, offset: int, length: int) -> tuple[bytes, int]:
        data = bytearray()
        with (
            hub_errors(self.name),
            open_url(self._url, self._token, f"bytes={offset}-{offset + length - 1}") as response,
        ):
            status, headers = int(response.status_code), response.headers
            if status == 416:  # an empty file has no first byte
                return b"", total_size(headers, self.name)
            skip = 0 if status == 206 else offset
            if skip > _MAX_SKIPPED:
                raise HubUnavailable(f"{self.name}: the server does not give byte ranges", final=True)
            size = total_size(headers, self.name, offset) if status == 206 else int(headers["content-length"])
            for chunk in chunks_of(response):
                data += chunk
                if len(data) >= skip + length:
                    break
        return bytes(data[skip : skip + length]), size


def hub_library(part: str = "") -> Any:
    """A module of huggingface_hub, imported when needed; untyped, since its types change with its HTTP library."""
    return importlib.import_module(f"huggingface_hub{part}")


@contextmanager
def open_url(url: str, token: str | None, byte_range: str) -> Generator[Any]:
    """A streamed response with a good status, of `httpx` or `requests`, whichever huggingface_hub is built on."""
    utils = hub_library(".utils")
    headers = {**utils.build_hf_headers(token=token), "Range": byte_range, "Accept-Encoding": "identity"}
    options: dict[str, Any] = {"max_retries": 0, "retry_on_exceptions": (), "retry_on_status_codes": ()}
    options |= {"headers": headers, "timeout": TIMEOUT}
    # Streamed, since a server that ignores the range would otherwise send a whole shard.
    if hasattr(utils, "http_stream_backoff"):
        opened = utils.http_stream_backoff("GET", url, **options)
    else:
        opened = utils.http_backoff("GET", url, stream=True, **options)
    with opened as response:
        if response.status_code >= 400 and response.status_code != 416:
            if hasattr(response, "read"):
                response.read()  # the error's text
            utils.hf_raise_for_status(response)
        yield response


def chunks_of(response: Any) -> Iterator[bytes]:
    """The body of a streamed response, in pieces."""
    return response.iter_bytes() if hasattr(response, "iter_bytes") else response.iter_content(64 * 1024)


def total_size(headers: Mapping[str, str], name: str, offset: int | None = None) -> int:
    """The file's size from Content-Range, which must start at `offset`."""
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if found is None or (offset is not None and found[1] != str(offset)):
        raise HubUnavailable(f"{name}: the server answered with the wrong byte range", final=True)
    return int(found[2])


@contextmanager
def _bars_on_terminals_only() -> Generator[None]:
    """Keep huggingface_hub from drawing progress bars into a log."""
    utils = hub_library(".utils")
    as_it_is = sys.stderr.isatty() or utils.are_progress_bars_disabled()
    if not as_it_is:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if not as_it_is:
            utils.enable_progress_bars()


def parse_hub_name(text: str) -> HubName:
    """Parse `hf://org/name[@revision]`. Raises BadName."""
    found = _NAME.fullmatch(text)
    if found is None or ".." in text or "--" in found[1]:
        raise BadName(f"not the name of a model: {text!r}", hint="write hf://org/name or hf://org/name@revision")
    return HubName(found[1], found[2])


@contextmanager
def hub_errors(what: str, doing: str = "read") -> Generator[None]:
    """Turn whatever huggingface_hub and the HTTP library under it raise into an error of deltareg.

    `doing` completes the sentence "the hub does not let you …".
    """
    try:
        yield
    except DeltaregError:
        raise
    except Exception as error:  # their classes differ from version to version
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            with translate_os_errors(f"download {what}", error.filename or "the cache"):
                raise
        raise _hub_error(what, doing, error) from error


def _hub_error(what: str, doing: str, error: Exception) -> DeltaregError:
    # "Not found locally" hides why the hub was not asked.
    origin = error.__cause__ if isinstance(error, hub_library(".errors").LocalEntryNotFoundError) else None
    origin = origin or error
    kind, message, hint = _reason(what, doing, origin)
    # What the server says, where it says something.
    first_line = getattr(origin, "server_message", None) or str(origin).strip().partition("\n")[0]
    return kind(message, cause=f"{type(origin).__name__}: {first_line}", hint=hint, final=_is_final(origin))


def _reason(what: str, doing: str, error: BaseException) -> tuple[type[DeltaregError], str, str]:
    """Which error an error of huggingface_hub is, what to tell of it, and what to do about it."""
    errors = hub_library(".errors")
    absent, login = CheckpointNotFound, "run `hf auth login`"
    reasons: list[tuple[type[BaseException], type[DeltaregError], str, str]] = [
        (
            errors.OfflineModeIsEnabled,
            HubUnavailable,
            f"{what} is on the hub, but HF_HUB_OFFLINE is set",
            "unset HF_HUB_OFFLINE",
        ),
        (errors.GatedRepoError, NotAllowed, f"{what} is gated", f"accept its conditions on its page, then {login}"),
        (errors.RevisionNotFoundError, absent, f"{what}: there is no such revision", "name a branch, tag or commit"),
        # The hub does not tell the two apart, lest names of private models leak.
        (errors.RepositoryNotFoundError, absent, f"{what}: no such model, or it is private", f"check it, or {login}"),
        (errors.EntryNotFoundError, absent, f"{what}: a file is not on the hub", "check the name and the revision"),
    ]
    for kind, ours, message, hint in reasons:  # from the special to the general
        if isinstance(error, kind):
            return ours, message, hint
    if isinstance(error, errors.HfHubHTTPError):
        if status_of(error) in (401, 403):
            return NotAllowed, f"the hub does not let you {doing} {what}", f"check your token, or {login}"
        if status_of(error) == 429:
            return HubUnavailable, f"the hub was asked too often for {what}", _waiting(error)
        return HubUnavailable, f"the hub refused {what}", "check the name, the revision and your token"
    message = f"the hub could not be reached for {what}"
    return HubUnavailable, message, "check the connection, or download it first and give its path"


def _waiting(error: BaseException) -> str:
    """What to do about a limit on requests, as far as the answer tells."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    seconds = str(headers.get("retry-after", ""))
    return f"wait {seconds} seconds, then run it again" if seconds.isdecimal() else "wait a while, then run it again"


def _is_final(error: BaseException) -> bool:
    """Whether asking again gives the same answer."""
    status = status_of(error)
    return status is not None and status < 500


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status that an error of huggingface_hub tells of."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
