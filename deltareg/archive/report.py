"""What an export wrote, or an import brought."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deltareg.manifest import Document

__all__ = ["ArchiveReport", "ArchivedName"]


class ArchivedName(Document):
    """A version, or a channel, in an archive."""

    reference: str
    digest: str = Field(description="of the manifest")
    change: Literal["written", "imported", "present"] = Field(description="present: it was here with the same bytes")


class ArchiveReport(Document):
    """What an export wrote, or an import brought."""

    file: str = Field(description="path; - for a pipe")
    names: list[ArchivedName]
    blobs: int = Field(description="blobs in the archive, manifests among them")
    bytes: int = Field(description="size of the archive")
    seconds: float
    dry_run: bool
    warnings: list[str] = Field(default=[], description="what the user should know")
