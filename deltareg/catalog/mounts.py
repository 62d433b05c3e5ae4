"""Which file system a path lies on."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from deltareg.errors import NetworkFilesystem

__all__ = ["NETWORK_TYPES", "file_system_of", "network_type", "parse_mounts", "refuse_network", "type_of"]

NETWORK_TYPES = {
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse.ceph",
    "fuse.gcsfuse",
    "fuse.glusterfs",
    "fuse.juicefs",
    "fuse.mfs",
    "fuse.rclone",
    "fuse.s3fs",
    "fuse.sshfs",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "orangefs",
    "pvfs2",
    "smb3",
    "smbfs",
    "wekafs",
}
"""Types of file systems whose shared memory does not reach other machines: SQLite's write-ahead log corrupts there."""

_MOUNTS = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")


def refuse_network(path: Path, mounts: Path = _MOUNTS) -> None:
    """Raise NetworkFilesystem where `path` lies, or will lie, on one. Systems without a mount table are trusted."""
    kind = network_type(path, mounts)
    if kind is not None:
        raise NetworkFilesystem(
            f"{path} lies on a network file system ({kind})",
            cause="SQLite's write-ahead log corrupts there",
            hint="set DELTAREG_HOME to a directory on a local disk",
            path=path,
        )


def network_type(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """The type of the network file system that `path` lies, or will lie, on; None for a local or an unknown one."""
    kind = type_of(path, mounts)
    return kind if kind in NETWORK_TYPES else None


def type_of(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """The type of the file system that `path` lies, or will lie, on, as the file `mounts` tells; None without it."""
    try:
        text = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    # realpath: `resolve` fails on a link that leads to itself.
    return file_system_of(PurePosixPath(os.path.realpath(path)), parse_mounts(text))


def parse_mounts(text: str) -> list[tuple[PurePosixPath, str]]:
    """Mount points and their types, from the text of Linux's `mountinfo`, in its order."""
    mounts: list[tuple[PurePosixPath, str]] = []
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if dash and len(fields) > 4 and after:
            point = _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), fields[4])
            mounts.append((PurePosixPath(point), after.split(" ")[0]))
    return mounts


def file_system_of(path: PurePosixPath, mounts: list[tuple[PurePosixPath, str]]) -> str | None:
    """The type of the file system that `path`, which is absolute and resolved, lies on."""
    # The longest prefix; of mounts on one point the last, which hides the others.
    over = [(len(point.parts), place, kind) for place, (point, kind) in enumerate(mounts) if path.is_relative_to(point)]
    return max(over)[2] if over else None
