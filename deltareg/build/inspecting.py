"""What an output was made of, and whether it still is what was made: by the lock that it carries."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field

from deltareg.build.digests import file_digests, output_digest
from deltareg.errors import (
    BadLock,
    CheckpointNotFound,
    InvalidArgument,
    LockStale,
    OutputDiffers,
    translate_os_errors,
)
from deltareg.licences import DerivedLicence, derive
from deltareg.lock import LOCK_NAME, FileDigest, Lock, LockedBase, LockedDelta, LockedOutput, read_lock
from deltareg.manifest import Count, DigestText, Document
from deltareg.paths import expand_home
from deltareg.progress import SILENT, Progress
from deltareg.recipe import Dtype, Number, Setting
from deltareg.threads import thread_count

__all__ = ["InspectReport", "inspect"]

_SHOWN = 12
_MOST_TOLD = 1000
# What git and the Hub's tools lay beside the files of a repository; nothing loads it.
_NOT_OURS = (".git", ".gitattributes", ".cache/huggingface")


class InspectReport(Document):
    """What `inspect` tells of an output that is what its lock says."""

    out: str
    name: str | None = Field(description="namespace/name of what was built")
    producer: str = Field(description="program and version that wrote the lock")
    recipe: DigestText = Field(description="digest of what the recipe said")
    base: LockedBase
    deltas: list[LockedDelta] = Field(description="in the order in which they were applied")
    method: str
    parameters: dict[str, Setting]
    seed: Count
    dtype: Dtype | None = Field(description="dtype that the recipe asked for; null where it is the base's")
    side_files: Literal["post", "target"]
    with_added: bool | None
    licence: str | None = Field(description="licence of the output, as far as names tell; null where one is unknown")
    obligations: list[str] = Field(description="what the licences oblige to")
    licence_warnings: list[str] = Field(description="licences that are unknown, or do not go together")
    digest: FileDigest = Field(description="digest of the files: names, sizes, bytes")
    files: Count = Field(description="files of the output, all but the lock")
    bytes: Count
    verified: bool = Field(description="whether every byte was read; false with quick, which compares names alone")
    seconds: float


def inspect(
    out: str | os.PathLike[str], *, quick: bool = False, threads: int | None = None, progress: Progress = SILENT
) -> InspectReport:
    """Tell what the output `out` was made of, and verify every file of it by the lock that it carries.

    Nothing may be changed, missing or added; what git and the Hub's tools lay beside a repository's files is passed
    over. With `quick` only names are compared. A lock vouches for the files beside it, and nobody vouches for the lock:
    who can write both can make both agree.

    Raises OutputDiffers, naming the files; LockStale where there is no lock, BadLock, UnsupportedFormat,
    CheckpointNotFound, NotAllowed.
    """
    started = time.monotonic()
    count = thread_count(threads)
    root = _directory(out)
    lock, output = _lock_in(root)
    found = _files_in(root)
    wrong = _other_names(found, output.files)
    sizes = {name: size for name in output.files if (size := found.get(name)) is not None}
    if not quick:
        digests = file_digests(root, sizes, count, progress)
        wrong["changed"] += [name for name, digest in digests.items() if digest != output.files[name]]
        _refuse(root, wrong)
        if output_digest({name: (sizes[name], digest) for name, digest in digests.items()}) != output.digest:
            raise _bad_lock(root, "its digest of the output is not that of the files that it lists")
    _refuse(root, wrong)
    licence = _licence(lock)
    return InspectReport(
        out=str(out),
        name=lock.name,
        producer=lock.producer,
        recipe=lock.recipe,
        base=lock.base,
        deltas=lock.deltas,
        method=lock.method,
        parameters=lock.parameters,
        seed=lock.seed,
        dtype=lock.dtype,
        side_files=lock.side_files,
        with_added=lock.with_added,
        licence=licence.expression,
        obligations=list(licence.obligations),
        licence_warnings=licence.doubts,
        digest=output.digest,
        files=len(output.files),
        bytes=sum(sizes.values()),
        verified=not quick,
        seconds=time.monotonic() - started,
    )


def _directory(out: str | os.PathLike[str]) -> Path:
    text = os.fspath(out)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", text):
        raise InvalidArgument(
            f"{text} is no directory of this machine", hint="copy the output, deltareg.lock too, and inspect the copy"
        )
    root = expand_home(text)
    with translate_os_errors("look at the output", root):
        if text and root.is_dir():
            return root
        what = "is a file" if root.exists() and text else "does not exist"
    raise CheckpointNotFound(
        f"{text or 'the output'} {what}", hint="name the directory that apply or build made", path=root
    )


def _lock_in(root: Path) -> tuple[Lock, LockedOutput]:
    """The lock that an output carries, and what it says of the files. Raises LockStale, BadLock."""
    path = root / LOCK_NAME
    with translate_os_errors("look at the lock", path):
        if not os.path.lexists(path):
            raise LockStale(
                f"{root} carries no {LOCK_NAME}: nothing tells what it should be",
                hint="deltareg build writes one with what it builds; deltareg apply alone does not",
                path=path,
            )
        # A pipe would be waited for, and a link lead anywhere.
        if not stat.S_ISREG(path.lstat().st_mode):
            raise _bad_lock(root, "it is no regular file")
    lock = read_lock(path)
    if lock.output is None:
        raise LockStale(
            f"{path} tells of no files: it was made before anything was built",
            hint="deltareg build writes the lock of what it builds into the output",
            path=path,
        )
    strange = [name for name in lock.output.files if not _is_inside(name)]
    if strange:
        raise _bad_lock(root, f"it names what is no file of an output: {_first(map(repr, strange))}")
    return lock, lock.output


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    plain = bool(name) and str(path) == name and not path.is_absolute() and ".." not in path.parts
    return plain and "\0" not in name and name not in (".", LOCK_NAME)


def _files_in(root: Path) -> dict[str, int | None]:
    """What lies below a directory, by path, with its size; None for what is no regular file, such as a link."""
    found: dict[str, int | None] = {}
    waiting = [""]
    while waiting:
        above = waiting.pop()
        with translate_os_errors("list the output", root / above), os.scandir(root / above) as entries:
            for entry in entries:
                name = above + entry.name
                if name in _NOT_OURS:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{name}/")
                else:
                    status = entry.stat(follow_symlinks=False)
                    found[name] = status.st_size if stat.S_ISREG(status.st_mode) else None
    found.pop(LOCK_NAME, None)
    return found


def _other_names(found: Mapping[str, int | None], locked: Mapping[str, str]) -> dict[str, list[str]]:
    return {
        "changed": [],
        "missing": [name for name in locked if name not in found],
        "not in the lock": [name for name in found if name not in locked],
        "no regular file": [name for name in locked if name in found and found[name] is None],
    }


def _refuse(root: Path, wrong: Mapping[str, Sequence[str]]) -> None:
    """Raise OutputDiffers where anything is wrong, naming it."""
    told = {kind: sorted(names) for kind, names in wrong.items() if names}
    if not told:
        return
    links = " (links: copy it again with cp -rL)" if "no regular file" in told else ""
    raise OutputDiffers(
        f"{root} is not what its lock says: " + "; ".join(f"{kind}: {_first(names)}" for kind, names in told.items()),
        hint=f"build or fetch it again{links}; remove what was added, or do not load it: it may hold code",
        counts={kind: len(names) for kind, names in told.items()},
        files={kind: names[:_MOST_TOLD] for kind, names in told.items()},
    )


def _bad_lock(root: Path, why: str) -> BadLock:
    return BadLock(
        f"{root / LOCK_NAME} is not what deltareg wrote: {why}",
        cause=why,
        hint="build or fetch the output again; nothing vouches for this one",
        path=root / LOCK_NAME,
    )


def _licence(lock: Lock) -> DerivedLicence:
    applied = [one for one in lock.deltas if any(_numbers(number) for number in (one.weight, *one.where.values()))]
    return derive({lock.base.location: lock.base.licence, **{one.reference: one.licence for one in applied}})


def _numbers(number: Number) -> bool:
    return any(number) if isinstance(number, list) else bool(number)


def _first(names: Sequence[str] | map[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(name[:200] for name in listed[:_SHOWN]) + more
