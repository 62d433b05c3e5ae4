"""The index of the registry in one file: for mirrors, and for search without a network."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from deltareg.digest import canonical_json
from deltareg.manifest import Document
from deltareg_registry.access.principal import Principal
from deltareg_registry.api.asking import PROBLEMS, Asking
from deltareg_registry.api.caching import Cache
from deltareg_registry.records.index import index_revision, index_rows
from deltareg_registry.state import State, state_of

__all__ = ["NDJSON", "IndexLine", "index_router", "lines_of"]

NDJSON = "application/x-ndjson"

# Level 6: the file is sent far more often than it is made.
_LEVEL = 6
_GZIP = 16 + zlib.MAX_WBITS
_CACHED = 64 << 20
_PIECE = 1 << 18

index_router = APIRouter(prefix="/api/v1/index.ndjson", tags=["search"], responses=PROBLEMS)


class IndexLine(Document):
    """A line of the index: a version, or with the first four fields alone a channel. What is absent is null."""

    reference: str
    digest: str = Field(description="of the manifest")
    manifest_size: int = Field(description="bytes of the manifest")
    created: str = Field(description="RFC 3339")
    yanked: str | None = None
    deprecated: str | None = None
    size: int | None = Field(default=None, description="bytes of the artifact: manifest, config and layers")
    raw_size: int | None = Field(default=None, description="bytes of post's tensors")
    parameters: int | None = Field(default=None, description="elements of post's tensors")
    base: str | None = Field(default=None, description="id of the base")
    fingerprint: str | None = None
    space: str | None = None
    tokenizer_core: str | None = None
    tokenizer_added: str | None = None
    namespace: str | None = None
    model_type: str | None = None
    licence: str | None = None
    description: str | None = None
    preset: str | None = None
    exactness: str | None = None


_CACHE: Cache[bytes] = Cache(_CACHED, len)
"""The compressed index of the last few who asked, by revision: most of the time nothing has changed."""


@index_router.get(
    "",
    response_class=Response,
    responses={
        200: {
            "content": {NDJSON: {"schema": {"type": "string"}}},
            "description": "A line of JSON for each version and channel, sorted by namespace, name and tag.",
        },
        304: {"description": "Nothing has changed since the answer whose ETag If-None-Match names."},
    },
)
def index(request: Request, asking: Asking) -> Response:
    """Every version and channel that whoever asks may read; with `If-None-Match` only where something changed."""
    state = state_of(request)
    with state.database.reading() as connection:
        revision = index_revision(connection, asking)
    zipped = _takes_gzip(request.headers.get("accept-encoding", ""))
    headers = {
        # Two encodings of one thing are two things to a strong validator.
        "ETag": f'"{revision}{"-gzip" if zipped else ""}"',
        "Vary": "Accept-Encoding, Authorization",
        "Cache-Control": "private, no-cache",
    }
    if _matches(request.headers.get("if-none-match", ""), revision):
        return Response(status_code=304, headers=headers)
    data, made = _compressed(state, asking, revision)
    headers["ETag"] = headers["ETag"].replace(revision, made)
    if zipped:
        return Response(data, media_type=NDJSON, headers={**headers, "Content-Encoding": "gzip"})
    return StreamingResponse(_inflated(data), media_type=NDJSON, headers=headers)


def _compressed(state: State, asking: Principal, revision: str) -> tuple[bytes, str]:
    """The index, compressed, and its revision, which may be newer than the one that is asked for."""
    data = _CACHE.get(revision)
    if data is not None:
        return data, revision
    with state.database.reading() as connection:
        made = index_revision(connection, asking)
        data = b"".join(_deflated(lines_of(index_rows(connection, asking))))
    _CACHE.put(made, data)
    return data, made


def lines_of(rows: Iterable[dict[str, object]]) -> Iterator[bytes]:
    """The lines of rows, as `index_rows` gives them."""
    for row in rows:
        line = IndexLine.model_validate(row, by_name=True).model_dump(by_alias=True, exclude_none=True)
        yield canonical_json(line) + b"\n"


def _deflated(lines: Iterable[bytes]) -> Iterator[bytes]:
    packing = zlib.compressobj(_LEVEL, wbits=_GZIP)
    for line in lines:
        yield packing.compress(line)
    yield packing.flush()


def _inflated(data: bytes) -> Iterator[bytes]:
    unpacking = zlib.decompressobj(wbits=_GZIP)
    piece = unpacking.decompress(data, _PIECE)
    while piece:
        yield piece
        piece = unpacking.decompress(unpacking.unconsumed_tail, _PIECE)


def _takes_gzip(accepted: str) -> bool:
    for part in accepted.lower().split(","):
        name, _, quality = part.strip().partition(";")
        if name.strip() in ("gzip", "*"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _matches(asked: str, revision: str) -> bool:
    tags = {tag.strip().removeprefix("W/").strip('"').removesuffix("-gzip") for tag in asked.split(",")}
    return "*" in tags or revision in tags
