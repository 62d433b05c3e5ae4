"""What the catalog tells of a delta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from deltareg.digest import Digest
from deltareg.errors import DeltaregError
from deltareg.manifest import CONFIG_TYPE, DeltaConfig, Descriptor, Document, Manifest, parse
from deltareg.store import Entry, Store

__all__ = ["CatalogRow", "columns_of", "describe", "described", "named"]


class CatalogRow(Document):
    """One published version. What could not be read is None, and `fault` says why."""

    reference: str
    digest: str
    created: str = Field(description="RFC 3339")
    manifest_size: int = Field(description="bytes of the manifest")
    size: int | None = Field(default=None, description="bytes of the artifact: manifest, config and layers")
    raw_size: int | None = Field(default=None, description="bytes of post's tensors")
    parameters: int | None = Field(default=None, description="elements of post's tensors")
    base: str | None = Field(default=None, description="id of the base")
    fingerprint: str | None = Field(default=None, description="digest of the base's fingerprint")
    space: str | None = Field(default=None, description="digest of the fingerprint without what a remedy can bridge")
    tokenizer_core: str | None = Field(default=None, description="digest of the base's tokenizer, added tokens apart")
    tokenizer_added: str | None = Field(default=None, description="digest of its added tokens")
    namespace: str | None = None
    model_type: str | None = None
    licence: str | None = None
    description: str | None = None
    preset: str | None = None
    exactness: str | None = None
    channels: list[str] = Field(default=[], description="channels that point to it")
    yanked: str | None = Field(default=None, description="why it was yanked; null where it was not")
    deprecated: str | None = Field(default=None, description="why it was deprecated; null where it was not")
    fault: str | None = None


def describe(store: Store, entry: Entry) -> CatalogRow:
    """Read what is known of a name. Damage to one delta must not hide the others: it ends up in `fault`."""
    try:
        return described(entry, store.manifest(entry.digest), lambda blob: store.read(Digest(blob.digest)))
    except DeltaregError as error:
        return named(entry).model_copy(update={"fault": error.message})


def named(entry: Entry) -> CatalogRow:
    """What a name tells of itself."""
    return CatalogRow(
        reference=str(entry.reference),
        digest=entry.digest,
        created=entry.created,
        manifest_size=entry.size,
        namespace=entry.reference.namespace,
        yanked=entry.yanked,
        deprecated=entry.deprecated,
    )


def described(entry: Entry, manifest: Manifest, read: Callable[[Descriptor], bytes]) -> CatalogRow:
    """What a name and its documents tell; `read` gives the config's verified bytes. Raises what that raises."""
    known = named(entry)
    if manifest.config.media_type != CONFIG_TYPE:
        return known.model_copy(update={"fault": f"unknown config type {manifest.config.media_type}"})
    config = parse(DeltaConfig, read(manifest.config), what=f"the config of {entry.reference}")
    size = entry.size + sum(blob.size for blob in manifest.blobs)
    return known.model_copy(update={"size": size, **columns_of(config)})


def columns_of(config: DeltaConfig) -> dict[str, Any]:
    """What a config tells, by the names that the columns of a catalog have."""
    tokenizer = config.fingerprint.tokenizer
    return {
        "raw_size": config.post.size,
        "parameters": config.post.parameters,
        "base": config.base.id,
        "fingerprint": config.fingerprint.digest,
        "space": config.fingerprint.space,
        "tokenizer_core": None if tokenizer is None else tokenizer.core,
        "tokenizer_added": None if tokenizer is None else tokenizer.added,
        "model_type": config.fingerprint.model_type,
        "licence": config.licence,
        "description": config.description,
        "preset": config.preset,
        "exactness": config.exactness.kind,
    }
