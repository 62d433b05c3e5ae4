"""Checkpoints in object stores, `s3://bucket/prefix`, `gs://…`, `az://…`: names, errors, byte ranges of objects."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deltareg.checkpoint.layout import side_files_of
from deltareg.checkpoint.source import bytes_of, too_large, truncated
from deltareg.errors import (
    BadCheckpoint,
    BadName,
    BucketUnavailable,
    CheckpointNotFound,
    DeltaregError,
    InvalidArgument,
    NotAllowed,
)

if TYPE_CHECKING:
    from deltareg.checkpoint.source import Buffer

__all__ = [
    "BucketFolder",
    "BucketName",
    "BucketSource",
    "is_bucket",
    "library",
    "listed",
    "open_store",
    "parse_bucket_name",
    "status_of",
    "translated",
]

_SCHEMES = ("s3", "gs", "az")
_BUCKET = r"[A-Za-z0-9$][A-Za-z0-9._-]{1,220}[A-Za-z0-9]"
_NAME = re.compile(rf"({'|'.join(_SCHEMES)})://({_BUCKET})(?:/(.*))?", re.DOTALL)
_COLLAPSED = re.compile(rf"({'|'.join(_SCHEMES)}):/[^/]")
# Control characters, and what object stores encode or ask not to use.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff\\{}^%`"<>\[\]~#|*?]')
_LONGEST_KEY = 1024

_PREFETCH = 16 * 1024
_STEP = 16 * 2**20
# A request may take so long with all of its bytes: 16 MiB in it are slow, not dead.
_TIMEOUT = timedelta(seconds=120)
_RETRIES = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|::1")

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
_METADATA_HOSTS = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or GOOGLE_SKIP_SIGNATURE=true",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true",
}


@dataclass(frozen=True)
class BucketName:
    """`s3://bucket/prefix`; `prefix` has no slash at its ends, and is "" for the whole bucket."""

    scheme: str
    bucket: str
    prefix: str = ""

    @property
    def text(self) -> str:
        """The name as it is written."""
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def last(self) -> str:
        """The last part, as a directory has a name."""
        return self.prefix.rpartition("/")[2] or self.bucket

    @property
    def parent(self) -> BucketName:
        """What the name's last part lies in."""
        return BucketName(self.scheme, self.bucket, self.prefix.rpartition("/")[0])

    def key(self, relative: str) -> str:
        """The key of a file, by its path below the prefix."""
        return f"{self.prefix}/{relative}" if self.prefix else relative

    def relative(self, key: str) -> str:
        """The path below the prefix of an object that lies there."""
        return key[len(self.prefix) + 1 :] if self.prefix else key

    def holds(self, other: BucketName) -> bool:
        """Whether `other` is this place or lies in it."""
        same = (self.scheme, self.bucket) == (other.scheme, other.bucket)
        return same and (not self.prefix or f"{other.prefix}/".startswith(f"{self.prefix}/"))


def is_bucket(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a place in an object store. Raises BadName for one that has been made a `Path`."""
    text = os.fspath(name)
    if not isinstance(name, str) and _COLLAPSED.match(text):
        raise BadName(f"{text} was a name in an object store before it became a Path", hint="give it as a str")
    return text.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))


def parse_bucket_name(text: str) -> BucketName:
    """Parse `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`. Raises BadName."""
    found = _NAME.fullmatch(text)
    prefix = "" if found is None else (found[3] or "").removesuffix("/")
    parts = prefix.split("/") if prefix else []
    wrong = any(part in ("", ".", "..") or _FORBIDDEN.search(part) for part in parts)
    if found is None or wrong or len(prefix.encode(errors="replace")) > _LONGEST_KEY:
        # Somebody may have written a password or a signature into it.
        shown = re.sub(r"\?.*", "?…", re.sub(r"//[^/]*@", "//…@", text), flags=re.DOTALL)
        raise BadName(
            f"not the name of a place in an object store: {shown!r:.300}",
            hint="write s3://bucket/prefix, gs://bucket/prefix or az://container/prefix; credentials come from the "
            "environment",
        )
    return BucketName(found[1], found[2], prefix)


def library(part: str = "") -> Any:
    """A module of obstore, imported when needed: most commands never do."""
    return importlib.import_module(f"obstore{part}")


def open_store(name: BucketName) -> Any:
    """The bucket, as the environment says how to reach it. Nothing is asked of it. Raises NotAllowed."""
    stores = library(".store")
    make = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}[name.scheme]
    options: dict[str, Any] = {"timeout": _TIMEOUT}
    if any(_is_loopback(os.environ.get(variable, "")) for variable in _ENDPOINTS):
        options["allow_http"] = True
    try:
        return make(name.bucket, client_options=options, retry_config=_RETRIES)
    except (library(".exceptions").BaseError, ValueError) as error:
        failure = NotAllowed(
            f"the settings in the environment do not do for {name.text}",
            cause=_first_line(error),
            hint=_CREDENTIALS[name.scheme],
        )
    raise failure


def _is_loopback(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "http" and _LOOPBACK.fullmatch(parts.hostname or "") is not None


def listed(store: Any, name: BucketName) -> Iterator[dict[str, Any]]:
    """What obstore tells of each object below a prefix, at any depth. Raises as `translated` does."""
    with translated(name):
        for batch in library().list(store, name.prefix or None, chunk_size=1000):
            yield from batch


class BucketFolder:
    """The objects below a prefix, read by byte ranges."""

    def __init__(self, name: BucketName) -> None:
        self.label = name.text
        self._name = name
        self._store = open_store(name)
        self._files = self._list()

    def names(self) -> Sequence[str]:
        """The files at the top, and `config.json` of each directory there that is a module's."""
        return self._files

    def open(self, name: str) -> BucketSource:
        """Open one file, which fetches its first bytes."""
        return BucketSource(self._store, self._name, name)

    def read(self, name: str, limit: int) -> bytes:
        """One small file as a whole."""
        source = self.open(name)
        if source.size > limit:
            raise too_large(name, self.label, source.size, limit)
        return source.read(0, source.size)

    def _list(self) -> list[str]:
        # Not all that lies below: a bucket may hold millions of objects.
        with translated(self._name):
            found = library().list_with_delimiter(self._store, self._name.prefix or None)
        files = [self._name.relative(meta["path"]) for meta in found["objects"]]
        configs = [f"{self._name.relative(prefix)}/config.json" for prefix in found["common_prefixes"]]
        return sorted([*filter(None, files), *filter(self._exists, side_files_of(configs))])

    def _exists(self, relative: str) -> bool:
        with translated(self._name, relative):
            try:
                library().head(self._store, self._name.key(relative))
            except FileNotFoundError:
                return False
        return True


class BucketSource:
    """An object, read by byte ranges.

    The first 16 KiB are kept from the first request, which also tells size and ETag: later reads are of the same object
    or fail, where the store has ETags.
    """

    def __init__(self, store: Any, folder: BucketName, name: str) -> None:
        self.name = name
        self._folder = folder
        self._store = store
        self._prefix, meta = self._open()
        self.size: int = meta["size"]
        self._etag: str | None = meta["e_tag"]
        self.stamp = self._etag or ""

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` with the bytes from `offset` on. Raises BadHeader, BadCheckpoint, BucketUnavailable."""
        view = bytes_of(buffer)
        if offset + len(view) > self.size:
            raise truncated(self.name, self.size, offset + len(view))
        if offset + len(view) <= len(self._prefix):
            view[:] = self._prefix[offset : offset + len(view)]
            return
        for start in range(0, len(view), _STEP):
            part = view[start : start + _STEP]
            part[:] = self._fetch(offset + start, len(part))

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on. Raises as `read_into` does."""
        if offset + length > self.size:  # before the buffer is allocated
            raise truncated(self.name, self.size, offset + length)
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def close(self) -> None:
        """Nothing is held: connections belong to the store."""

    def _open(self) -> tuple[bytes, dict[str, Any]]:
        key = self._folder.key(self.name)
        with translated(self._folder, self.name):
            try:
                result = library().get(self._store, key, options={"range": (0, _PREFETCH)})
                return bytes(result.bytes()), result.meta
            except library(".exceptions").GenericError as error:
                if status_of(error) != 416:  # an empty object has no first byte
                    raise
            return b"", library().head(self._store, key)

    def _fetch(self, offset: int, length: int) -> memoryview:
        options: dict[str, Any] = {"range": (offset, offset + length)}
        if self._etag is not None:
            options["if_match"] = self._etag
        with translated(self._folder, self.name):
            try:
                result = library().get(self._store, self._folder.key(self.name), options=options)
                data = memoryview(result.bytes())
            except library(".exceptions").PreconditionError:
                raise self._changed() from None
        if result.meta["size"] != self.size:
            raise self._changed()
        if len(data) != length:
            raise truncated(self.name, offset + len(data), offset + length)
        return data

    def _changed(self) -> BadCheckpoint:
        return BadCheckpoint(
            f"{self.name} of {self._folder.text} was replaced while it was read",
            hint="run this again once nobody writes to it",
            file=self.name,
        )


# --- errors -------------------------------------------------------------------------------------------------------


@contextmanager
def translated(name: BucketName, file: str | None = None) -> Generator[None]:
    """Turn whatever obstore raises of a place, or of a file in it, into an error of deltareg."""
    try:
        yield
    except DeltaregError:
        raise
    except (library(".exceptions").BaseError, OSError, ValueError, NotImplementedError) as error:
        # Not chained: what obstore tells may hold a signed URL, and what a server answers an access key.
        raise _failure(name, file, error) from None


def status_of(error: Exception) -> int | None:
    """The HTTP status that an error of obstore tells of."""
    found = _STATUS.search(_told(error))
    return None if found is None else int(found[1])


def _failure(name: BucketName, file: str | None, error: Exception) -> DeltaregError:
    kind, message, hint = _reason(name, file, error)
    status, code = status_of(error), _CODE.search(_told(error))
    cause = _first_line(error) if status is None else " ".join([str(status), *(code.groups() if code else ())])
    return kind(message, cause=cause, hint=hint, path=name.text)


def _reason(name: BucketName, file: str | None, error: Exception) -> tuple[type[DeltaregError], str, str]:
    """Which error an error of obstore is, what to tell of it, and what to do about it."""
    exceptions = library(".exceptions")
    told, status = _told(error), status_of(error)
    what = name.text if file is None else f"{file} of {name.text}"
    if "NoSuchBucket" in told or "ContainerNotFound" in told:
        return (
            CheckpointNotFound,
            f"there is no bucket {name.bucket}: {name.text}",
            "check the name, or make the bucket",
        )
    if any(host in told for host in _METADATA_HOSTS):
        return NotAllowed, f"there are no credentials for {name.text}", _CREDENTIALS[name.scheme]
    if status in (401, 403) or isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)):
        return NotAllowed, f"the object store does not let you at {what}", _CREDENTIALS[name.scheme]
    if isinstance(error, FileNotFoundError) or status == 404:
        return CheckpointNotFound, f"there is no {what}", "check the name"
    if isinstance(error, (ValueError, exceptions.InvalidPathError)):
        return InvalidArgument, f"no object can be called so: {what}", "give it another name"
    if "builder error" in told:
        hint = "for an endpoint without TLS set AWS_ALLOW_HTTP=true (AZURE_ALLOW_HTTP for az://)"
        return InvalidArgument, f"the endpoint of {name.text} is no https:// URL", hint
    endpoint = "check the connection, and AWS_ENDPOINT_URL and AWS_REGION" if name.scheme == "s3" else None
    hint = f"{endpoint or 'check the connection'}, then run this again"
    if status is not None:
        return BucketUnavailable, f"the object store refused {what}", hint
    return BucketUnavailable, f"the object store could not be reached for {what}", hint


def _told(error: Exception) -> str:
    return str(error).partition("\n\nDebug source")[0]


def _first_line(error: Exception) -> str:
    """What an error says, without the query of an URL, where signatures stand."""
    return re.sub(r"\?[^\s\"')]*", "?…", _told(error).strip().partition("\n")[0])[:300]
