"""Locks: what a recipe was found to mean, by digests, so that anybody can build the same bytes again.

`deltareg.lock` is JSON, a field on each line, always in the same order: two locks can be compared by `diff`. It holds a
checksum of itself: what was changed by hand is refused, because a digest in it would no longer vouch for anything. The
checksum heeds the order of keys, as the meaning of weights by selector does; it is not taken of spaces between them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from deltareg.digest import parse_json, sha256
from deltareg.editing import replace_text
from deltareg.errors import (
    BadLock,
    BadManifest,
    BadName,
    InvalidArgument,
    LockStale,
    UnsupportedFormat,
    translate_os_errors,
)
from deltareg.manifest import Count, DigestText, Document, Exactness
from deltareg.names import Reference, parse_reference
from deltareg.recipe import Dtype, Number, Setting

__all__ = [
    "LOCK_NAME",
    "Lock",
    "LockedBase",
    "LockedDelta",
    "LockedOutput",
    "LockedSignature",
    "parse_lock",
    "read_lock",
    "write_lock",
]

LOCK_NAME = "deltareg.lock"
"""The file of a lock, beside the recipe's, and in the output."""

LOCK_VERSION = 1
"""Version of the lock's format."""

_LIMIT = 64 * 2**20

_FAULTS_SHOWN = 8
_CONFLICT = re.compile(rb"^(<<<<<<<|>>>>>>>)", re.MULTILINE)


def _versioned(text: str) -> str:
    try:
        parse_reference(text, version_required=True)
    except BadName as error:
        raise ValueError(error.message) from error
    return text


FileDigest = Annotated[str, Field(pattern=r"^blake3:[0-9a-f]{64}$")]
VersionReference = Annotated[str, Field(pattern="^[^@]+/[^@]+:[^@]+$"), AfterValidator(_versioned)]


class LockedBase(Document):
    """The checkpoint to start from."""

    location: str = Field(description="where it is, as the recipe says")
    id: str | None = Field(
        default=None, description="what it is called in model cards; absent where only its fingerprint is known"
    )
    revision: str | None = Field(default=None, description="commit of the hub repository")
    digest: FileDigest | None = Field(
        default=None, description="digest of its tensors: names, dtypes, shapes, bytes; absent where it was not read"
    )
    licence: str | None = Field(default=None, description="SPDX identifier")
    fingerprint: DigestText = Field(description="digest of its fingerprint")
    tokenizer: DigestText | None = Field(default=None, description="digest of its tokenizer, added tokens apart")


class LockedSignature(Document):
    """A signature that was verified when the lock was written."""

    digest: DigestText = Field(description="of the signature's manifest")
    kind: Literal["key", "certificate", "sigstore"]
    signer: str = Field(
        min_length=1, description="whose it was verified to be: key and fingerprint, a certificate, IDENTITY@ISSUER"
    )
    key: str | None = Field(
        default=None, description="the public key, PEM, by which it is verified again; absent unless kind is key"
    )


class LockedDelta(Document):
    """One delta that is applied."""

    reference: VersionReference = Field(description="namespace/name:version")
    digest: DigestText = Field(description="digest of the manifest")
    remote: str = Field(description="name of the remote that it comes from; local is the registry of a machine")
    wanted: str | None = Field(default=None, description="what the recipe asks for; absent where another delta does")
    required_by: list[str] = Field(default=[], description="deltas that require it, namespace/name")
    weight: Number = Field(description="weight, or a gradient of weights along the layers")
    where: dict[str, Number] = Field(default={}, description="other weights by selector; the last that matches counts")
    parameters: dict[str, Setting] = Field(default={}, description="parameters of the method for this delta alone")
    licence: str | None = Field(default=None, description="SPDX identifier")
    exactness: Exactness
    size: Count = Field(description="bytes of the artifact")
    signatures: list[LockedSignature] = Field(
        default=[], description="who signed it, as far as a policy asked for that when the lock was written"
    )

    @property
    def name(self) -> Reference:
        """Its reference, parsed."""
        return parse_reference(self.reference)


def _companions(deltas: list[LockedDelta]) -> list[LockedDelta]:
    counts = Counter(one.name.repository for one in deltas)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named more than once")
    strangers = [by for one in deltas for by in one.required_by if by not in counts]
    if strangers:
        raise ValueError(f"{strangers[0]!r} requires one of them and is not among them")
    return deltas


class LockedOutput(Document):
    """What was built: every file but the lock itself."""

    digest: FileDigest = Field(description="digest of the files: names, sizes, bytes")
    files: dict[str, FileDigest] = Field(description="digest of each file, by path")


def _with_checksum(schema: dict[str, Any]) -> None:
    schema["properties"]["checksum"] = {
        "description": "digest of the other fields as they stand, as JSON without spaces",
        "pattern": "^sha256:[0-9a-f]{64}$",
        "title": "Checksum",
        "type": "string",
    }
    schema["required"] = [*schema["required"], "checksum"]


class Lock(Document):
    """What a recipe was found to mean."""

    # The checksum is of the file, and no field of what it says.
    model_config = ConfigDict(json_schema_extra=_with_checksum)

    format_version: Literal[1] = LOCK_VERSION
    producer: str = Field(description="program and version that wrote the lock")
    recipe: DigestText = Field(description="digest of what the recipe says")
    name: str | None = Field(default=None, description="namespace/name of what is built")
    base: LockedBase
    method: str
    parameters: dict[str, Setting] = Field(description="every parameter of the method, defaults included")
    seed: Count
    dtype: Dtype | None = Field(default=None, description="dtype of the output; absent where it is the base's")
    side_files: Literal["post", "target"]
    with_added: bool | None = None
    accept_licence: bool = False
    deltas: Annotated[list[LockedDelta], AfterValidator(_companions)] = Field(
        description="in the order in which they are applied"
    )
    output: LockedOutput | None = Field(default=None, description="what was built; absent before the first build")

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """The lock in a file: see `read_lock`."""
        return cast(Self, read_lock(Path(path)))

    @property
    def meaning(self) -> bytes:
        """What the lock says, as bytes that can be compared: all but who wrote it, who signed, and what came out."""
        told: dict[str, Any] = {"producer": True, "output": True, "deltas": {"__all__": {"signatures"}}}
        return _compact(self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=told))

    @property
    def deciding(self) -> bytes:
        """What decides the output, as bytes that can be compared: not how the deltas were asked for."""
        told = {"recipe", "producer", "output", "accept_licence", "deltas"}
        deltas = [
            one.model_dump(mode="json", exclude={"wanted", "required_by", "remote", "signatures"})
            for one in self.deltas
        ]
        return _compact({**self.model_dump(mode="json", by_alias=True, exclude=told), "deltas": deltas})

    def delta(self, repository: str) -> LockedDelta | None:
        """The delta of that namespace/name."""
        return next((one for one in self.deltas if one.name.repository == repository), None)


def read_lock(path: Path) -> Lock:
    """Read a lock. Raises LockStale where there is none, BadLock, UnsupportedFormat, NotAllowed."""
    with translate_os_errors("read the lock", path):
        try:
            with path.open("rb") as file:
                data = file.read(_LIMIT + 1)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise LockStale(
                f"there is no lock {path}", hint="deltareg lock makes it from the recipe", path=path
            ) from error
    return parse_lock(data, path)


def parse_lock(data: bytes, path: Path | str = LOCK_NAME) -> Lock:
    """The lock in the text of the file at `path`. Raises BadLock, UnsupportedFormat."""
    if len(data) > _LIMIT:
        raise _bad(path, f"it is larger than {_LIMIT} bytes")
    try:
        value = parse_json(data, what=str(path))
    except BadManifest as error:
        conflict = _CONFLICT.search(data) is not None
        why = "it holds two versions that are to be merged" if conflict else f"it is not valid JSON: {error.cause}"
        raise _bad(path, why) from error
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    version = fields.get("formatVersion")
    if version is not None and (type(version) is not int or version != LOCK_VERSION):
        raise UnsupportedFormat(
            f"{path} has format version {version!r}; this deltareg reads version {LOCK_VERSION}",
            hint="install a newer deltareg, or write the lock anew: deltareg lock",
            version=version,
        )
    checksum = fields.pop("checksum", None)
    if checksum is None:
        raise _bad(path, "its checksum is missing")
    if checksum != sha256(_compact(fields)):
        raise _bad(path, "it is not what its checksum says")
    try:
        return Lock.model_validate(fields, by_name=False, by_alias=True)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        ]
        more = f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
        raise _bad(path, "; ".join(faults[:_FAULTS_SHOWN]) + more) from error


def lock_bytes(lock: Lock) -> bytes:
    """The text of a lock's file. Raises InvalidArgument for what JSON cannot say."""
    fields = lock.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"checksum"})
    checksum = sha256(_compact(fields))
    return (json.dumps({**fields, "checksum": checksum}, indent=2, ensure_ascii=False) + "\n").encode()


def write_lock(lock: Lock, path: Path) -> None:
    """Replace a lock's file as a whole; links and permissions stay. Raises DiskFull, NotAllowed."""
    replace_text(path, lock_bytes(lock).decode())


def _compact(fields: dict[str, Any]) -> bytes:
    """Fields as JSON without spaces, their order kept. Raises InvalidArgument for what JSON cannot say."""
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise InvalidArgument(
            f"this cannot be written into a lock: {error}",
            cause=str(error),
            hint="mend names and texts that are no UTF-8, and numbers that are not finite",
        ) from error


def _bad(path: Path | str, why: str) -> BadLock:
    return BadLock(
        f"{path} is not what deltareg wrote: {why}",
        cause=why,
        hint="deltareg lock writes it anew from the recipe; or take it from version control again",
        path=path,
    )
