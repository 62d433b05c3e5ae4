"""What the catalog tells of a delta."""

from __future__ import annotations

from pydantic import Field

from deltareg.digest import Digest
from deltareg.errors import DeltaregError
from deltareg.manifest import CONFIG_TYPE, DeltaConfig, Document, parse
from deltareg.store import Entry, Store

__all__ = ["CatalogRow", "describe"]


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
    known = CatalogRow(
        reference=str(entry.reference),
        digest=entry.digest,
        created=entry.created,
        manifest_size=entry.size,
        namespace=entry.reference.namespace,
        yanked=entry.yanked,
        deprecated=entry.deprecated,
    )
    try:
        manifest = store.manifest(entry.digest)
        if manifest.config.media_type != CONFIG_TYPE:
            return known.model_copy(update={"fault": f"unknown config type {manifest.config.media_type}"})
        data = store.read(Digest(manifest.config.digest))
        config = parse(DeltaConfig, data, what=f"the config of {entry.reference}")
    except DeltaregError as error:
        return known.model_copy(update={"fault": error.message})
    tokenizer = config.fingerprint.tokenizer
    return known.model_copy(
        update={
            "size": entry.size + sum(blob.size for blob in manifest.blobs),
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
    )
