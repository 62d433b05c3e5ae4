"""The store: an OCI image layout with atomic writes, garbage collection and a check of every bit."""

from __future__ import annotations

from deltareg.store.blobs import Blobs
from deltareg.store.changes import channel_moved, version_exists
from deltareg.store.collect import GcReport
from deltareg.store.index import (
    Entry,
    Signature,
    Snapshot,
    channels_by_digest,
    latest_tag,
    parse_index,
    version_among,
)
from deltareg.store.inspect import Fault, FsckReport
from deltareg.store.lock import FileLock
from deltareg.store.referrers import REFERRER_LIMIT, REFERRERS_LIMIT, parse_referrer
from deltareg.store.store import LAYOUT, MANIFEST_LIMIT, Store, is_vacant, parse_manifest
from deltareg.store.writer import BLOCK, BlobWriter

__all__ = [
    "BLOCK",
    "LAYOUT",
    "MANIFEST_LIMIT",
    "REFERRERS_LIMIT",
    "REFERRER_LIMIT",
    "BlobWriter",
    "Blobs",
    "Entry",
    "Fault",
    "FileLock",
    "FsckReport",
    "GcReport",
    "Signature",
    "Snapshot",
    "Store",
    "channel_moved",
    "channels_by_digest",
    "is_vacant",
    "latest_tag",
    "parse_index",
    "parse_manifest",
    "parse_referrer",
    "version_among",
    "version_exists",
]
