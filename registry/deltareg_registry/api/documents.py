"""What the documents of this interface share: how requests are read, and the forms of names, pages and times."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path, Query
from pydantic import ConfigDict

from deltareg.manifest import Document

__all__ = [
    "DOCUMENT_LIMIT",
    "NAME",
    "PRINTED",
    "After",
    "Change",
    "IdPath",
    "Limit",
    "NamespacePath",
    "NamespaceQuery",
    "RoleText",
    "Shown",
    "TimeQuery",
    "UserPath",
    "UserQuery",
    "WordQuery",
]

DOCUMENT_LIMIT = 1 << 20
"""Bytes of a document that says what is to change."""

NAME = r"^[a-z0-9]+([._-][a-z0-9]+)*$"
PRINTED = r"^[^\x00-\x1f\x7f]+$"

RoleText = Literal["reader", "publisher", "owner"]
NamespacePath = Annotated[str, Path(pattern=NAME, max_length=64)]
UserPath = Annotated[str, Path(pattern=NAME, max_length=64)]
IdPath = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
Limit = Annotated[int, Query(ge=1, le=1000, description="how many at most")]
After = Annotated[str | None, Query(pattern=NAME, max_length=64, description="the cursor of the page before")]
NamespaceQuery = Annotated[str | None, Query(pattern=NAME, max_length=64)]
UserQuery = Annotated[str | None, Query(pattern=NAME, max_length=64)]
WordQuery = Annotated[str | None, Query(pattern=PRINTED, max_length=100)]
TimeQuery = Annotated[str | None, Query(max_length=40, description="RFC 3339; a date alone is its beginning in UTC")]


class Change(Document):
    """What a client asks for. A field that is not known is an error: it may be a slip of the pen."""

    model_config = ConfigDict(extra="forbid")


class Shown(Document):
    """A page of a list."""

    cursor: str | None = None
    """Asked for with `cursor=`, the next page comes; null where this is the last."""
