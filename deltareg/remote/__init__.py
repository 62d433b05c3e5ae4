"""Remotes: registries reached by URL, behind one small protocol."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from deltareg.errors import UsageError
from deltareg.remote.directory import DirectoryRemote
from deltareg.remote.protocol import (
    PROTOCOL_VERSION,
    Capabilities,
    FilesRemote,
    Remote,
    RemoteEntry,
    RemovingRemote,
    SearchableRemote,
    is_removing,
    is_searchable,
    takes_files,
)
from deltareg.remote.verified import RemoteReferrers, read_blob, read_manifest

__all__ = [
    "PROTOCOL_VERSION",
    "REMOTES",
    "Capabilities",
    "DirectoryRemote",
    "FilesRemote",
    "Remote",
    "RemoteEntry",
    "RemoteReferrers",
    "RemovingRemote",
    "SearchableRemote",
    "is_removing",
    "is_searchable",
    "open_remote",
    "read_blob",
    "read_manifest",
    "takes_files",
]


def _hub(url: str) -> Remote:
    # Not before it is needed: it loads what reads checkpoints.
    from deltareg.remote.hub import HubRemote

    return HubRemote(url)


REMOTES: Mapping[str, Callable[[str], Remote]] = {"file": DirectoryRemote, "hf": _hub}
"""The kinds of remotes, by the scheme of their URLs."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(file):")


def open_remote(url: str) -> Remote:
    """The remote at `url`, whose scheme says of which kind it is; a plain path is a directory.

    Nothing is reached yet. Raises UsageError for an unknown scheme, naming the known ones.
    """
    found = _SCHEME.match(url)
    scheme = "file" if found is None else (found[1] or found[2]).lower()
    if scheme not in REMOTES:
        raise UsageError(
            f"remotes of the kind {scheme}:// are not known",
            hint=f"known are {', '.join(f'{name}://' for name in sorted(REMOTES))} and plain paths",
        )
    return REMOTES[scheme](url)
