"""Changing files that people have written: as a whole or not at all, and without touching what was not meant."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from deltareg.errors import translate_os_errors

__all__ = ["read_text", "replace_text", "sync_directory"]


def read_text(path: Path) -> str:
    """The text of a file, with the line ends that it has. Raises NotAllowed, UnicodeDecodeError."""
    with translate_os_errors("read the file", path):
        return path.read_bytes().decode("utf-8")


def replace_text(path: Path, text: str) -> None:
    """Write a file anew, or for the first time; links and modes stay. Raises DiskFull, NotAllowed."""
    # A link, as many keep their settings under version control, stays a link.
    place = path.resolve()
    with translate_os_errors("write the file", place):
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
        try:
            with temporary.open("xb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            if place.exists():
                temporary.chmod(stat.S_IMODE(place.stat().st_mode))
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(place.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory outlive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems know no sync of directories.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
