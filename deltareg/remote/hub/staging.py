"""What was sent to a repository of the Hub and waits for the commit that shows it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deltareg.digest import Digest
from deltareg.names import Reference

__all__ = ["StagedBlob", "Staging"]


@dataclass(frozen=True)
class StagedBlob:
    """A blob that was sent: its size, its part of the commit, and its bytes where it is a delta's config."""

    size: int
    operation: Any
    config: bytes | None = None


class Staging:
    """What one client sent for one delta. Safe for several threads."""

    def __init__(self) -> None:
        self.founding = threading.Lock()
        """Held while the repository is made."""
        self.committing = threading.Lock()
        """Held while a change is committed: one client must not race itself."""
        self.founded = False
        self._lock = threading.Lock()
        self._blobs: dict[Digest, StagedBlob] = {}
        self._files: dict[Reference, dict[str, Any]] = {}

    def add(self, digest: Digest, blob: StagedBlob) -> None:
        """Remember a blob."""
        with self._lock:
            self._blobs.setdefault(digest, blob)

    def blob(self, digest: str) -> StagedBlob | None:
        """A blob that was sent."""
        with self._lock:
            return self._blobs.get(Digest(digest))

    def add_files(self, reference: Reference, operations: dict[str, Any]) -> None:
        """Remember the files that are to lie beside a version."""
        with self._lock:
            self._files[reference] = operations

    def files(self, reference: Reference) -> dict[str, Any]:
        """Those files, by name."""
        with self._lock:
            return dict(self._files.get(reference, {}))

    def forget_files(self, reference: Reference) -> None:
        """Drop the files of a version that is published."""
        with self._lock:
            self._files.pop(reference, None)

    def forget(self, digests: Iterable[str]) -> None:
        """Drop blobs, which are committed or have to be sent again."""
        with self._lock:
            for digest in digests:
                self._blobs.pop(Digest(digest), None)
