"""Remotes: registries reached by URL, behind one small protocol."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping

from deltareg.errors import UsageError
from deltareg.remote.bandwidth import Bandwidth, parse_rate
from deltareg.remote.directory import DirectoryRemote
from deltareg.remote.network import Network
from deltareg.remote.protocol import (
    PROTOCOL_VERSION,
    Capabilities,
    FilesRemote,
    Remote,
    RemoteEntry,
    RemovingRemote,
    SearchableRemote,
    SignersRemote,
    is_removing,
    is_searchable,
    takes_files,
    tells_signers,
)
from deltareg.remote.verified import RemoteReferrers, read_blob, read_manifest

__all__ = [
    "PROTOCOL_VERSION",
    "REMOTES",
    "Bandwidth",
    "Capabilities",
    "DirectoryRemote",
    "FilesRemote",
    "Network",
    "Remote",
    "RemoteEntry",
    "RemoteReferrers",
    "RemovingRemote",
    "SearchableRemote",
    "SignersRemote",
    "is_removing",
    "is_searchable",
    "open_meant",
    "open_remote",
    "parse_rate",
    "read_blob",
    "read_manifest",
    "takes_files",
    "tells_signers",
]


def _directory(url: str, network: Network) -> Remote:
    return DirectoryRemote(url)


def _hub(url: str, network: Network) -> Remote:
    # Not before it is needed: it loads what reads checkpoints.
    from deltareg.remote.hub import HubRemote

    return HubRemote(url, bandwidth=network.bandwidth)


def _later(module: str, name: str) -> Callable[[str, Network], Remote]:
    """A kind of remote whose module is loaded at its first use: HTTP takes long to load, and few commands need it."""

    def make(url: str, network: Network) -> Remote:
        return getattr(importlib.import_module(f"deltareg.remote.{module}"), name)(url, network)

    return make


REMOTES: Mapping[str, Callable[[str, Network], Remote]] = {
    "file": _directory,
    "oci": _later("oci_remote", "OciRemote"),
    "oci+http": _later("oci_remote", "OciRemote"),
    "https": _later("web", "WebRemote"),
    "http": _later("web", "WebRemote"),
    "hf": _hub,
    "s3": _later("mirror", "BucketMirror"),
    "gs": _later("mirror", "BucketMirror"),
    "az": _later("mirror", "BucketMirror"),
}
"""The kinds of remotes, by the scheme of their URLs."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(file):")


def open_remote(url: str, network: Network | None = None) -> Remote:
    """The remote at `url`, whose scheme says of which kind it is; a plain path is a directory.

    Nothing is reached yet. Without `network` no limit of bandwidth holds and no token of the environment is sent.
    Raises UsageError for an unknown scheme, naming the known ones, and for a URL with a password in it.
    """
    found = _SCHEME.match(url)
    scheme = "file" if found is None else (found[1] or found[2]).lower()
    if scheme not in REMOTES:
        raise UsageError(
            f"remotes of the kind {scheme}:// are not known",
            hint=f"known are {', '.join(f'{name}://' for name in sorted(REMOTES))} and plain paths",
        )
    return REMOTES[scheme](url, network or Network())


def open_meant(remote: Remote | str) -> Remote:
    """A remote as it is, or the one at a URL that the user has written: the token of the environment may go there."""
    return open_remote(remote, Network.of(os.environ, [remote])) if isinstance(remote, str) else remote
