"""The hidden directory in which an output is built, and the one rename that makes it visible."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from deltareg.checkpoint.layout import belongs
from deltareg.errors import InvalidArgument, OutputExists, translate_os_errors

__all__ = [
    "adopt_stale",
    "check_free",
    "create_staging",
    "is_locked",
    "left_beside",
    "publish",
    "remove_stale",
    "replace_by_renames",
]

_MARK = ".deltareg-"
_OLD = ".old"
_SHOWN = 5
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def check_free(out: Path, overwrite: bool) -> None:
    """Raise OutputExists unless `out` is absent or an empty directory; with `overwrite` it may be a checkpoint.

    With anything else in it, it is refused all the same: overwriting removes whatever is there.
    """
    with translate_os_errors("look at the output", out):
        if not os.path.lexists(out):
            return
        if not out.is_dir():
            raise _exists(out, "it is a file")
        if out.is_mount():
            raise InvalidArgument(
                f"{out} is a mount point, which cannot appear at once", hint=f"name a directory in it: {out / 'model'}"
            )
        names = sorted(path.name for path in out.iterdir())
        strangers = _strangers(out) if overwrite else []
    if not names:
        return
    if not overwrite:
        raise _exists(out, "it is a directory with files in it")
    # Overwriting removes all that is there: only for what is a checkpoint and nothing else.
    if strangers or not any(name.endswith(".safetensors") for name in names):
        shown = ", ".join((strangers or names)[:_SHOWN]) + (", …" if len(strangers or names) > _SHOWN else "")
        raise _exists(out, f"it holds other things than a checkpoint, and is not overwritten: {shown}")


def _strangers(out: Path) -> list[str]:
    """What lies in a directory and belongs to no checkpoint, directories with a slash at their end."""
    found: list[str] = []
    for entry in sorted(os.scandir(out), key=lambda entry: entry.name):
        if not entry.is_dir(follow_symlinks=False):
            if not belongs(entry.name):
                found.append(entry.name)
        elif not _holds_side_files_only(Path(entry.path)):
            found.append(f"{entry.name}/")
    return found


def _holds_side_files_only(directory: Path) -> bool:
    """Whether a directory is a module's, as `1_Pooling` with its config is."""
    inside = list(os.scandir(directory))
    return bool(inside) and all(
        not entry.is_dir(follow_symlinks=False) and belongs(f"{directory.name}/{entry.name}") for entry in inside
    )


def _exists(out: Path, cause: str) -> OutputExists:
    return OutputExists(f"the output exists already: {out}", cause=cause, hint="choose another output", path=out)


def create_staging(out: Path) -> tuple[Path, int]:
    """A new locked directory beside `out`, with the descriptor that holds the lock."""
    while True:
        path = out.with_name(f".{out.name}{_MARK}{secrets.token_hex(4)}")
        try:
            # Not by tempfile: the checkpoint is to have the permissions that the user's umask gives.
            path.mkdir()
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:  # an interrupt, too, leaves nothing behind
            with suppress(OSError):
                path.rmdir()
            raise
        if _lock(lock) is not False and path.exists():
            return path, lock
        # A cleaner was between our mkdir and our lock, and has taken the directory for a stale one.
        os.close(lock)


def _lock(file: int) -> bool | None:
    """Whether the lock was taken; None where the file system has none for directories (NFS)."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_locked(file: int) -> bool:
    """Whether the directory whose descriptor holds its lock is locked: not where the file system has no such locks."""
    return _lock(file) is True


def remove_stale(out: Path, keep: Callable[[Path], bool] = lambda path: False) -> None:
    """Remove what killed writers to `out` have left, but for what to `keep`: directories that nobody holds locked."""
    for path in left_beside(out):
        _remove_unlocked(path, out, keep)


def adopt_stale(out: Path, wanted: Callable[[Path], bool]) -> tuple[Path, int] | None:
    """One of the directories that killed writers to `out` have left, locked, with the descriptor that holds the lock.

    The first for which `wanted` says so; None where there is none, and where the file system has no locks: a writer
    that lives could not be told from one that does not.
    """
    for path in left_beside(out):
        if path.name.endswith(_OLD):
            continue
        try:
            file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        if _is_ours(file) and _lock(file) is True and path.exists() and wanted(path):
            return path, file
        os.close(file)
    return None


def _is_ours(file: int) -> bool:
    """Whether an open directory is this user's, and not everybody's to write to: only then is it gone on with."""
    status = os.fstat(file)
    return status.st_uid == os.geteuid() and not status.st_mode & stat.S_IWOTH


def left_beside(out: Path) -> list[Path]:
    """The directories beside `out` that are, or were, some writer's to it."""
    staging = re.compile(rf"\.{re.escape(out.name + _MARK)}[0-9a-f]{{8}}({re.escape(_OLD)})?")
    try:
        entries = sorted(os.scandir(out.parent), key=lambda entry: entry.name)
    except OSError:  # absent, or not to be listed: then there is nothing that can be removed
        return []
    return [
        Path(entry.path) for entry in entries if staging.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
    ]


def _remove_unlocked(path: Path, out: Path, keep: Callable[[Path], bool]) -> None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if _lock(file) is not True:
            return
        if path.name.endswith(_OLD) and not os.path.lexists(out):
            if _is_ours(file):
                path.rename(out)  # killed in `replace_by_renames`
        elif not keep(path):
            shutil.rmtree(path, ignore_errors=True)
    except OSError:
        return
    finally:
        os.close(file)


def publish(staging: Path, out: Path, *, overwrite: bool) -> Path | None:
    """Make what `staging` holds durable and visible as `out`.

    Returns where an overwritten directory lies now, to be removed. Raises OutputExists if another process was faster.
    """
    for folder, _, _ in os.walk(staging):
        _sync_directory(Path(folder))
    old: Path | None = None
    try:
        if overwrite and out.exists():
            old = staging if _exchange(staging, out) else replace_by_renames(staging, out)
        else:
            staging.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _exists(out, "another process wrote it meanwhile") from error
        raise
    _sync_directory(out.parent)
    return old


def _sync_directory(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def replace_by_renames(new: Path, out: Path) -> Path:
    """Put `new` in the place of the directory `out` where the two cannot be swapped; returns where the old one lies.

    A kill between the renames leaves no `out`, but a directory that `remove_stale` brings back.
    """
    old = new.with_name(new.name + _OLD)
    file = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(file)  # other writers must not take it for what a killed one left
        out.rename(old)
        try:
            new.rename(out)
        except OSError:
            old.rename(out)
            raise
    finally:
        os.close(file)
    return old


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step; False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
