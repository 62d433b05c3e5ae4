"""Reading a tar that may come from anywhere, as a stream: its members are bytes under a name, and never files."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from deltareg.errors import BadArchive, translate_os_errors

__all__ = ["Member", "Readable", "members"]

_BLOCK = 512
_PIECE = 1 << 20
_MEMBERS = 1_000_000
_PAX_LIMIT = 64 << 10
_SIZE_LIMIT = 1 << 53
_PADDING_LIMIT = 16 << 20
_REFUSED_KEYS = ("path", "size", "linkpath", "GNU.sparse")
"""What an extended header may not change: two readers could see two archives in one file."""


class Readable(Protocol):
    """Where the bytes come from; a pipe will do."""

    def read(self, count: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        ...


@dataclass
class Member:
    """One file of the tar, whose bytes have to be read before the next member is."""

    name: str
    size: int
    _source: _Source

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, in pieces of at most 1 MiB."""
        left = self.size
        while left:
            piece = self._source.take(min(left, _PIECE), f"{self.name} has {self.size} bytes")
            left -= len(piece)
            yield piece
        self._source.take(-self.size % _BLOCK, f"{self.name} ends with its block")

    def read(self, limit: int) -> bytes:
        """All of its bytes. Raises BadArchive for more than `limit`."""
        if self.size > limit:
            raise BadArchive(f"{self.name} in the archive has {self.size} bytes; at most {limit} are allowed")
        return b"".join(self.pieces())


class _Source:
    """Bytes that have to come."""

    def __init__(self, file: Readable, name: str) -> None:
        self._file = file
        self._name = name
        self.count = 0

    def some(self, count: int) -> bytes:
        """`count` bytes, or fewer at the end."""
        parts: list[bytes] = []
        with translate_os_errors("read the archive", self._name):
            while count and (part := self._file.read(count)):
                parts.append(part)
                count -= len(part)
        data = b"".join(parts)
        self.count += len(data)
        return data

    def take(self, count: int, why: str) -> bytes:
        """Just `count` bytes. Raises BadArchive."""
        data = self.some(count)
        if len(data) < count:
            raise BadArchive(
                f"{self._name} was cut short after {self.count} bytes, or is no archive: {why}",
                cause="the file ends there",
                hint="copy the file again; what can be imported is what deltareg export wrote",
            )
        return data


def members(file: BinaryIO | Readable, name: str) -> Iterator[Member]:
    """The regular files of a tar in their order; directories are passed over.

    Raises BadArchive for links, devices, sparse files, names that occur twice, headers that rename or resize what
    follows, a file that is cut short, and for anything but zeros behind the end.
    """
    source = _Source(file, name)
    seen: set[str] = set()
    while True:
        header = _header(source, name)
        if header is None:
            _check_end(source, name)
            return
        if header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):
            _check_extended(Member("an extended header", header.size, source))
            continue
        path = header.name.removeprefix("./").rstrip("/")
        if header.type == tarfile.DIRTYPE and header.size == 0:
            continue
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise BadArchive(f"{path!r} in {name} is no plain file", cause=f"its type is {header.type!r}")
        if path in seen:
            raise BadArchive(f"{path!r} is twice in {name}")
        if len(seen) >= _MEMBERS:
            raise BadArchive(f"{name} holds more than {_MEMBERS} files")
        seen.add(path)
        yield Member(path, header.size, source)


def _header(source: _Source, name: str) -> tarfile.TarInfo | None:
    """The next header; None at the end."""
    at = source.count
    block = source.take(_BLOCK, "an archive ends with two blocks of zeros")
    if not any(block):
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        packed = block.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ"))
        hint = "copy the file again; what can be imported is what deltareg export wrote"
        if packed and at == 0:
            hint = "it is compressed: unpack it first, as gunzip or zstd -d do"
        message = f"{name} is no tar, or is damaged, at byte {at}: {error}"
        raise BadArchive(message, cause=str(error), hint=hint) from error
    if not 0 <= header.size < _SIZE_LIMIT:
        raise BadArchive(f"{name} has a member of {header.size} bytes at byte {at}")
    return header


def _check_extended(member: Member) -> None:
    """Refuse an extended header that changes what the next member is; others, such as times, mean nothing here."""
    data = member.read(_PAX_LIMIT)
    while data:
        length, space, _ = data.partition(b" ")
        count = int(length) if length.isdigit() and len(length) < 6 else 0
        record = data[len(length) + 1 : count]
        key, equals, _ = record.partition(b"=")
        if not space or not equals or not record.endswith(b"\n"):
            raise BadArchive("an extended header in the archive is damaged")
        if key.decode("utf-8", "replace").startswith(_REFUSED_KEYS):
            raise BadArchive(f"an extended header in the archive sets {key.decode('utf-8', 'replace')!r}")
        data = data[count:]


def _check_end(source: _Source, name: str) -> None:
    """Refuse what follows the first block of zeros, unless it is more of them."""
    begun = source.count
    source.take(_BLOCK, "an archive ends with two blocks of zeros")
    while True:
        data = source.some(_PIECE)
        if any(data) or source.count - begun > _PADDING_LIMIT:
            raise BadArchive(f"{name} goes on after its end", cause="two archives in one file, or a damaged one")
        if not data:
            return
