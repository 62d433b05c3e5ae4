"""What commands print with `--json` where the library has no document for it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_serializer

from deltareg.catalog import CatalogRow
from deltareg.manifest import DeltaConfig, Document, Manifest, TensorEntry
from deltareg.recipe import Number, Setting
from deltareg.signing import Pin, SignatureRow

__all__ = [
    "ChannelChange",
    "ChannelList",
    "ChannelRow",
    "Check",
    "DeltaDetails",
    "DeltaList",
    "DeprecationReport",
    "DoctorReport",
    "ErrorDetails",
    "ErrorDocument",
    "InitReport",
    "KeyReport",
    "MarkedVersion",
    "MethodList",
    "MethodRow",
    "ParameterRow",
    "RecipeChange",
    "RecipeRow",
    "ReindexReport",
    "RemoteChange",
    "RemoteList",
    "RemoteRow",
    "YankReport",
]


class InitReport(Document):
    """What `init` wrote."""

    file: str
    remote: str | None = Field(description="URL or path of the first remote")
    dry_run: bool


class ParameterRow(Document):
    """A parameter of a merge method."""

    name: str
    values: str = Field(description="what it may be, for people")
    by_delta: bool = Field(description="whether it may differ by delta")
    default: float | bool | str | None = Field(description="null where it has to be given")
    meaning: str


class MethodRow(Document):
    """A merge method."""

    name: str
    summary: str
    description: str = Field(description="the equation and its source")
    least_deltas: int
    most_deltas: int | None
    random: bool = Field(description="whether it draws masks that --seed decides")
    parameters: list[ParameterRow]


class MethodList(Document):
    """What `methods` tells."""

    methods: list[MethodRow]


class DeltaList(Document):
    """What `list` found."""

    registry: str = Field(description="path of the local registry's home, or the remote's URL")
    deltas: list[CatalogRow]


class DeltaDetails(Document):
    """What `show` tells of a delta."""

    reference: str
    digest: str
    size: int = Field(description="bytes of the artifact: manifest, config and layers")
    created: str = Field(description="RFC 3339")
    yanked: str | None = Field(default=None, description="why the version was yanked; null where it was not")
    deprecated: str | None = Field(default=None, description="why it was deprecated; null where it was not")
    manifest: Manifest
    config: DeltaConfig
    signatures: list[SignatureRow] = Field(default=[], description="what is said of it; deltareg verify checks that")
    tensors: list[TensorEntry] | None = Field(default=None, description="with --tensors")

    @field_serializer("manifest", "config", "tensors")
    def _as_stored(self, value: Any) -> Any:
        # As the artifact has them: without the fields that are not set.
        if isinstance(value, list):
            return [_without_gaps(item) for item in value]  # type: ignore[misc]
        return value if value is None else _without_gaps(value)


class RemoteRow(Document):
    """One remote of the settings."""

    name: str
    url: str
    default: bool
    file: str = Field(description="the settings file that names it")
    namespaces: list[str] = Field(default=[], description="namespaces, or names, that recipes look up in it alone")


class RemoteList(Document):
    """What `remote list` found."""

    remotes: list[RemoteRow]
    default: str | None = Field(description="name, URL or path of the default remote")


class RemoteChange(Document):
    """What `remote add` or `remote remove` changed."""

    name: str
    url: str
    file: str = Field(description="the settings file")
    default: bool = Field(description="whether the file's default remote was set, or removed")
    dry_run: bool


class YankReport(Document):
    """What `yank` or `unyank` changed."""

    reference: str = Field(description="the version")
    digest: str = Field(description="of its manifest")
    registry: str = Field(description="path of the local registry's home, or the remote's URL")
    yanked: str | None = Field(description="why it is yanked now; null where it is not")
    dry_run: bool


class KeyReport(Document):
    """The key pair that `sign --generate-key` made."""

    private: str = Field(description="path of the private key, which only its owner may read")
    public: str = Field(description="path of the public key")
    fingerprint: str | None = Field(description="SHA-256 digest of the public key's PEM text; null of a dry run")
    dry_run: bool


class SignersReport(Document):
    """Whom servers have named to sign what is in their namespaces; of a change, what was remembered or forgotten."""

    change: Literal["accepted", "forgotten"] | None = Field(default=None, description="null where they are listed")
    file: str = Field(description="where it is remembered")
    signers: list[Pin]
    dry_run: bool = False


class MarkedVersion(Document):
    """A version of which something was said, or taken back."""

    reference: str
    digest: str = Field(description="of its manifest")


class DeprecationReport(Document):
    """What `deprecate` or `undeprecate` changed."""

    reference: str = Field(description="what was named: a version, or namespace/name, which is all of its versions")
    registry: str = Field(description="path of the local registry's home, or the remote's URL")
    versions: list[MarkedVersion] = Field(description="the versions that are deprecated now, or no longer")
    deprecated: str | None = Field(description="why they are deprecated now; null where they are not")
    dry_run: bool


class ChannelChange(Document):
    """What `channel set` or `channel remove` changed."""

    reference: str = Field(description="the channel")
    registry: str = Field(description="path of the local registry's home, or the remote's URL")
    version: str | None = Field(description="what it names now; null where it was removed")
    digest: str | None = Field(description="of the version's manifest")
    before: str | None = Field(description="the version that it named before; null where it is new")
    yanked: str | None = Field(default=None, description="why the version was yanked; null where it was not")
    deprecated: str | None = Field(default=None, description="why it was deprecated; null where it was not")
    dry_run: bool


class ChannelRow(Document):
    """One channel."""

    channel: str
    version: str
    digest: str
    yanked: str | None = Field(description="why the version was yanked; null where it was not")
    deprecated: str | None = Field(default=None, description="why it was deprecated; null where it was not")
    computed: bool = Field(description="follows from the versions, as latest does, and cannot be set")


class ChannelList(Document):
    """What `channel list` found."""

    registry: str = Field(description="path of the local registry's home, or the remote's URL")
    repository: str = Field(description="namespace/name")
    channels: list[ChannelRow]


class RecipeRow(Document):
    """A delta of a recipe."""

    ref: str
    wanted: str = Field(description="a range of versions, a channel or a digest")
    weight: Number
    where: dict[str, Number] = Field(default={}, description="other weights by selector")
    parameters: dict[str, Setting] = Field(default={}, description="parameters of the method for this delta alone")
    remote: str | None = Field(default=None, description="name of the remote, where the recipe says it")

    @property
    def told_weight(self) -> str:
        """The weight for people."""
        return "..".join(f"{one:g}" for one in self.weight) if isinstance(self.weight, list) else f"{self.weight:g}"


class RecipeChange(Document):
    """What `new`, `add` or `remove` did to a recipe."""

    file: str
    done: Literal["wrote", "added", "changed", "kept", "removed"]
    deltas: list[RecipeRow]
    dry_run: bool


class ReindexReport(Document):
    """What `cache reindex` built anew."""

    catalog: str = Field(description="path of the database")
    names: int
    dry_run: bool


class Check(Document):
    """One line of `doctor`."""

    name: str
    status: Literal["ok", "warning", "fault"]
    detail: str
    hint: str | None = None


class DoctorReport(Document):
    """What `doctor` found."""

    ok: bool = Field(description="no check found a fault")
    checks: list[Check]


class ErrorDetails(Document):
    """An error: see `docs/errors.md` for each code."""

    code: str = Field(pattern=r"^DR[0-9]{4}$")
    message: str
    cause: str | None
    hint: str | None
    data: dict[str, Any] = Field(description="what the message tells, as values")


class ErrorDocument(Document):
    """What a command that failed prints with `--json`."""

    error: ErrorDetails


def _without_gaps(document: Document) -> dict[str, Any]:
    return document.model_dump(mode="json", exclude_none=True)
