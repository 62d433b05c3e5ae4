"""Where the bytes of blobs lie: in files or in an object store."""

from __future__ import annotations

from deltareg_registry.storage.storage import Storage, open_storage

__all__ = ["Storage", "open_storage"]
