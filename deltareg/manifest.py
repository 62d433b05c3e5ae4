"""The documents of an artifact, typed: OCI manifest and descriptors, the delta's config, its inventory.

Fields that this version does not know are kept when a document is read and written. The JSON Schemas in `schemas/`
are generated from these models.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError
from pydantic.alias_generators import to_camel

from deltareg.digest import canonical_json, json_keys, parse_json
from deltareg.errors import BadManifest, BadName, UnsupportedFormat
from deltareg.names import is_version, parse_reference
from deltareg.versions import parse_range

__all__ = [
    "BLAKE3",
    "CONFIG_TYPE",
    "DELTA_TYPE",
    "EMPTY_TYPE",
    "FORMAT_VERSION",
    "INDEX_TYPE",
    "INVENTORY_TYPE",
    "MANIFEST_TYPE",
    "PACK_TYPE",
    "SIDE_FILE_TYPE",
    "TITLE",
    "Annotations",
    "Conflict",
    "DeltaConfig",
    "Descriptor",
    "DigestText",
    "Document",
    "Exactness",
    "Fingerprint",
    "Index",
    "Inventory",
    "Manifest",
    "Norms",
    "Parent",
    "Preset",
    "RecordKind",
    "ReferrerManifest",
    "Requirement",
    "TensorEntry",
    "TokenizerFingerprint",
    "encode",
    "parse",
]

FORMAT_VERSION = 1
"""Version of the artifact format, as `docs/format.md` describes it."""

DELTA_TYPE = "application/vnd.deltareg.delta.v1+json"
CONFIG_TYPE = "application/vnd.deltareg.config.v1+json"
PACK_TYPE = "application/vnd.deltareg.pack.v1+safetensors"
INVENTORY_TYPE = "application/vnd.deltareg.inventory.v1+json+zstd"
SIDE_FILE_TYPE = "application/vnd.deltareg.side-file.v1+zstd"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
"""The media type of the config that says nothing: `{}`."""
TITLE = "org.opencontainers.image.title"
"""The annotation that names a layer's file."""
BLAKE3 = "vnd.deltareg.blake3"
"""The annotation that gives a layer's BLAKE3 digest: `apply` hashes each pack on its way, and SHA-256 is slow."""

Preset = Literal["fast", "small"]
"""How hard the codec tries to be small."""

RecordKind = Literal["zero", "palette", "arithmetic", "sparse", "planes", "lowrank", "full", "removed"]
"""What the record of a tensor is."""

DigestText = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]


def _checked_name(text: str) -> str:
    try:
        parse_reference(text)
    except BadName as error:
        raise ValueError(error.message) from error
    return text


def _checked_range(text: str) -> str:
    try:
        parse_range(text)
    except BadName as error:
        raise ValueError(error.message) from error
    return text


def _checked_texts(found: Any) -> Any:
    if isinstance(found, dict):
        for key, value in cast("dict[str, Any]", found).items():
            if not isinstance(value, str):
                raise ValueError(f"the value of {key!r:.100} is no text")
    return cast("object", found)


def _checked_count(found: Any) -> Any:
    if isinstance(found, dict) and len(cast("dict[str, Any]", found)) > _MOST_KEYS:
        raise ValueError(f"more than {_MOST_KEYS} keys")
    return cast("object", found)


# All faults of millions of entries would take all memory: of lists (FailFast) and dictionaries one is enough.
_MOST_KEYS = 1000
_Few = BeforeValidator(_checked_count)
Annotations = Annotated[dict[str, str], BeforeValidator(_checked_texts)]

_PART = "[a-z0-9]+(?:[._-][a-z0-9]+)*"
RepositoryText = Annotated[str, Field(pattern=f"^{_PART}/{_PART}$", max_length=129), AfterValidator(_checked_name)]
RangeText = Annotated[str, Field(pattern=r"^[0-9A-Za-z.*^~<>=!, -]{1,256}$"), AfterValidator(_checked_range)]


class Document(BaseModel):
    """A JSON object with camel-case keys that keeps what it does not know."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        strict=True,
        alias_generator=to_camel,
        populate_by_name=True,
        serialize_by_alias=True,
    )


class Descriptor(Document):
    """An OCI content descriptor."""

    media_type: str = Field(min_length=1)
    digest: DigestText
    size: Count
    artifact_type: str | None = None
    annotations: Annotations | None = None

    @property
    def title(self) -> str | None:
        """The file name that the descriptor's annotation gives."""
        return (self.annotations or {}).get(TITLE)

    @property
    def blake3(self) -> str | None:
        """The BLAKE3 digest in hexadecimal, where it is given. Raises BadManifest where what is given is none."""
        found = (self.annotations or {}).get(BLAKE3)
        if found is not None and re.fullmatch("[0-9a-f]{64}", found) is None:
            raise BadManifest(f"{self.digest} has an annotation {BLAKE3} that is no digest: {found!r:.80}")
        return found


class Manifest(Document):
    """An OCI image manifest that holds one delta."""

    schema_version: Literal[2] = 2
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = MANIFEST_TYPE
    artifact_type: Literal["application/vnd.deltareg.delta.v1+json"] = DELTA_TYPE
    config: Descriptor
    layers: Annotated[list[Descriptor], FailFast()]
    annotations: Annotations | None = None

    def layers_of(self, media_type: str) -> list[Descriptor]:
        """The layers of one media type, in order."""
        return [layer for layer in self.layers if layer.media_type == media_type]

    @property
    def blobs(self) -> list[Descriptor]:
        """Every blob that the manifest needs, each once: config and layers."""
        return list({blob.digest: blob for blob in [self.config, *self.layers]}.values())


class ReferrerManifest(Document):
    """An OCI image manifest about another one, its subject: a signature, a bill of materials, a scan."""

    schema_version: Literal[2] = 2
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = MANIFEST_TYPE
    artifact_type: str | None = Field(default=None, min_length=1, max_length=255)
    config: Descriptor
    layers: list[Descriptor] = Field(max_length=100)
    subject: Descriptor
    annotations: Annotations | None = None

    @property
    def kind(self) -> str:
        """The artifact type, which is the config's media type where none is given."""
        return self.artifact_type or self.config.media_type

    @property
    def blobs(self) -> list[Descriptor]:
        """Every blob that the manifest needs, each once: config and layers."""
        return list({blob.digest: blob for blob in [self.config, *self.layers]}.values())

    @property
    def size(self) -> int:
        """Bytes of these blobs."""
        return sum(blob.size for blob in self.blobs)


class Index(Document):
    """An OCI image index: the `index.json` of a store."""

    schema_version: Literal[2] = 2
    media_type: Literal["application/vnd.oci.image.index.v1+json"] = INDEX_TYPE
    manifests: Annotated[list[Descriptor], FailFast()] = []
    annotations: Annotations | None = None


class Parent(Document):
    """The identity of a checkpoint that a delta was taken from."""

    id: str = Field(description="hf:// name, or the directory's name")
    revision: str | None = Field(default=None, description="commit of the hub repository")
    digest: str = Field(
        pattern=r"^blake3:[0-9a-f]{64}$", description="digest of the tensors: names, dtypes, shapes, bytes"
    )
    dtypes: Annotated[dict[str, Count], _Few] = Field(max_length=_MOST_KEYS, description="elements of each dtype")
    parameters: Count = Field(description="elements of all tensors")
    size: Count = Field(description="bytes of all tensors")
    licence: str | None = Field(default=None, description="SPDX identifier")


class TokenizerFingerprint(Document):
    """A tokenizer in three layers; two of one core read text alike, but for their added tokens."""

    core: DigestText = Field(description="digest of the vocabulary and of how text becomes tokens")
    added: DigestText = Field(description="digest of the added tokens")
    chat_template: DigestText | None = Field(default=None, description="digest of the chat template")
    kind: str = Field(description="bpe, wordpiece, unigram, wordlevel or char")
    rows: Count = Field(description="the highest id and one: rows that the embedding must have")


class Fingerprint(Document):
    """What must agree for two checkpoints to share a parameter space, and what is reported beside it."""

    digest: DigestText = Field(description="digest of the structure, and of names and shapes without wrapper prefixes")
    space: DigestText = Field(description="the same without what a remedy can bridge: vocabulary, heads, tying")
    inventory: DigestText = Field(description="digest of the base's tensor names and shapes")
    model_type: str | None = Field(default=None, description="model_type of the base's config.json")
    structure: dict[str, Any] = Field(default={}, description="canonical fields of config.json that must agree")
    behaviour: dict[str, Any] = Field(default={}, description="fields that may differ, and are reported")
    tokenizer: TokenizerFingerprint | None = None


class Exactness(Document):
    """Whether weight 1 on the base gives post bit for bit."""

    kind: Literal["exact", "lossy"] = "exact"
    relative_error: float | None = Field(default=None, ge=0, description="measured, of a lossy delta: ‖Δ − Δ̂‖ / ‖Δ‖")
    codec: str | None = Field(default=None, description="what a lossy delta was approximated with, such as int4")

    def __str__(self) -> str:
        told = [self.codec] if self.codec else []
        if self.relative_error is not None:
            told.append(f"relative error {self.relative_error:.4g}")
        return ", ".join([self.kind, *told])


class Norms(Document):
    """Frobenius norms over the tensors of one module class."""

    base: float = Field(ge=0)
    delta: float = Field(ge=0)
    parameters: Count


class Requirement(Document):
    """Another delta that has to be applied too: one that a stacked delta was taken on top of."""

    reference: RepositoryText = Field(description="namespace/name of the other delta")
    version: RangeText = Field(default="*", description="range of its versions")
    digest: DigestText | None = Field(default=None, description="its manifest, where just these bytes are required")
    weight: float = Field(
        default=1.0, ge=-3.4e38, le=3.4e38, allow_inf_nan=False, description="weight that it is to be applied with"
    )

    @property
    def name(self) -> str:
        """What to type for it: VERSION stands for any of its range, where that is no version and not every one."""
        if self.version == "*":
            return self.reference
        return f"{self.reference}:{self.version if is_version(self.version) else 'VERSION'}"

    def __str__(self) -> str:
        told = [] if self.weight == 1 else [f"weight {self.weight:g}"]
        told += [] if self.digest is None else [self.digest]
        return f"{self.reference} {self.version}" + (f" ({'; '.join(told)})" if told else "")


class Conflict(Document):
    """Another delta that must not be applied with this one."""

    reference: RepositoryText = Field(description="namespace/name of the other delta")
    version: RangeText = Field(default="*", description="range of its versions")
    reason: str | None = Field(default=None, max_length=1000)

    def __str__(self) -> str:
        return f"{self.reference} {self.version}" + (f" ({self.reason})" if self.reason else "")


class DeltaConfig(Document):
    """The description of a delta: the artifact's config blob."""

    format_version: Literal[1] = 1
    fingerprint: Fingerprint
    base: Parent
    post: Parent
    exactness: Exactness
    licence: str | None = Field(default=None, description="SPDX identifier of the delta")
    preset: Preset
    norms: Annotated[dict[str, Norms], _Few] = Field(
        max_length=_MOST_KEYS, description="by module class: attention, mlp, embedding, norm, lm_head, other"
    )
    requires: list[Requirement] = Field(
        default=[], max_length=100, description="deltas that this one is stacked on, or needs"
    )
    conflicts: list[Conflict] = Field(
        default=[], max_length=1000, description="deltas that must not be applied with this one"
    )
    producer: str = Field(description="program and version that wrote the artifact")
    description: str | None = None


class TensorEntry(Document):
    """One tensor of the delta."""

    name: str = Field(min_length=1)
    kind: RecordKind = Field(description="kind of the frames that hold most of the record's bytes")
    base_dtype: str | None = Field(default=None, description="absent where base lacks the tensor")
    post_dtype: str | None = Field(default=None, description="absent where post lacks the tensor")
    delta_dtype: str | None = Field(default=None, description="dtype of D1; absent where it is post's")
    shape: list[Count]
    rank: Count | None = Field(default=None, description="rank of the factors; absent where none are stored")
    packs: list[Count] = Field(default=[], description="numbers of the packs that hold the record's parts, in order")
    size: Count = Field(default=0, description="bytes of the record")
    changed: Count = Field(
        default=0, description="lanes that differ: elements, but halves of C64, and bytes of F4 and F6"
    )
    mended: Count = Field(default=0, description="lanes with a second term D2")
    overwritten: Count = Field(default=0, description="lanes that no sum can give")
    base_norm: float = Field(default=0, ge=0)
    delta_norm: float = Field(default=0, ge=0)
    error: float | None = Field(default=None, ge=0, description="‖Δ − Δ̂‖ / ‖Δ‖, measured; absent where it is exact")


class Inventory(Document):
    """Every tensor of base and post, ordered by name's place in the checkpoint."""

    format_version: Literal[1] = 1
    tensors: Annotated[list[TensorEntry], FailFast()]


DocumentType = TypeVar("DocumentType", bound=Document)


def encode(document: Document) -> bytes:
    """The canonical JSON of a document; fields that are None are left out."""
    return canonical_json(document.model_dump(by_alias=True, exclude_none=True))


def parse(kind: type[DocumentType], data: bytes | bytearray | memoryview, *, what: str) -> DocumentType:
    """Read a document.

    Raises BadManifest with every fault that the schema finds, UnsupportedFormat for another format version.
    """
    if kind is Inventory:
        found = _read_inventory(bytes(data))
        if found is not None:
            return cast("DocumentType", found)
    value = parse_json(data, what=what)
    version = _format_version(value)
    if version is not None and version != FORMAT_VERSION:
        raise UnsupportedFormat(
            f"{what} has format version {version!r}; this deltareg reads version {FORMAT_VERSION}",
            hint="install a newer deltareg",
            version=version,
        )
    try:
        return kind.model_validate(value, by_name=False, by_alias=True)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'document'}: {fault['msg']}" for fault in error.errors()]
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise BadManifest(f"{what} is not a valid {kind.__name__}: {shown}", cause=shown, faults=faults) from error


def _read_inventory(raw: bytes) -> Inventory | None:
    """The inventory, in half of the time that it takes by way of dictionaries; None where that has to judge.

    pydantic's own parser lets a key occur twice: the document is as strict as `parse_json` has it if as many keys were
    read as it holds. An entry with a field that is an object is left to `parse_json` too.
    """
    keys = json_keys(raw)
    if keys is None:
        return None
    try:
        found = Inventory.model_validate_json(raw, by_name=False, by_alias=True)
    except ValidationError:
        return None
    read = len(found.model_fields_set) + sum(len(entry.model_fields_set) for entry in found.tensors)
    return found if read == keys else None


def _format_version(value: Any) -> Any:
    return cast("dict[str, Any]", value).get("formatVersion") if isinstance(value, dict) else None
