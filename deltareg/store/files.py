"""Files that appear whole, outlive a power cut, and are locked while somebody writes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from deltareg.editing import sync_directory
from deltareg.errors import translate_os_errors
from deltareg.store.lock import try_lock

__all__ = ["open_locked", "sync_directory", "write_atomically"]


def write_atomically(path: Path, data: bytes, *, temporary: Path) -> None:
    """Replace `path` by `data` at once. `temporary` is a free name on the same file system."""
    with translate_os_errors("write", path):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                _make_younger(file.fileno(), path)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def _make_younger(handle: int, old: Path) -> None:
    # Clocks of file systems tick in milliseconds and inodes are used again: without this, a file that was replaced
    # twice could look untouched to those who compare (time, size, inode).
    try:
        before = old.stat().st_mtime_ns
    except FileNotFoundError:
        return
    if os.fstat(handle).st_mtime_ns <= before:
        os.utime(handle, ns=(before + 1, before + 1))


def open_locked(name: Callable[[], Path], *, otherwise: Callable[[], Path] | None = None) -> tuple[int, Path]:
    """Open or make a file and lock it; where another process has it or owns it, the file that `otherwise` names.

    Raises OSError.
    """
    while True:
        path = name()
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except PermissionError:
            if otherwise is None or name is otherwise:
                raise
            name = otherwise
            continue
        if not try_lock(handle):
            name = otherwise or name
        elif _is_at(handle, path):
            return handle, path
        # Or it was renamed or collected between the opening and the locking.
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False
