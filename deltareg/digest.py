"""SHA-256 digests as OCI writes them, and the canonical JSON that they are taken of."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, NewType

import rfc8785

from deltareg.errors import BadManifest, BadName

__all__ = ["Digest", "canonical_json", "parse_digest", "parse_json", "sha256", "sha256_of"]

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hexadecimal digits."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_JSON_DEPTH = 64


def parse_digest(text: str) -> Digest:
    """Return `text` as a digest. Raises BadName."""
    if _DIGEST.fullmatch(text) is None:
        raise BadName(f"not a digest: {text!r}", hint="a digest is sha256: and 64 lower-case hexadecimal digits")
    return Digest(text)


def sha256(data: bytes | bytearray | memoryview) -> Digest:
    """The digest of `data`."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def sha256_of(chunks: Iterable[bytes | memoryview]) -> Digest:
    """The digest of the concatenation of `chunks`."""
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return Digest("sha256:" + hasher.hexdigest())


def canonical_json(value: Any) -> bytes:
    """`value` as canonical JSON (RFC 8785): the same value always gives the same bytes."""
    return rfc8785.dumps(value)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} occurs twice")
        found[key] = value
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def parse_json(data: bytes | bytearray | memoryview, *, what: str) -> Any:
    """Parse a JSON document that came from outside.

    Duplicate keys, NaN and Infinity, wrong UTF-8 and nesting deeper than 64 are refused. `what` names the document in
    the BadManifest that is raised.
    """
    raw = bytes(data)
    try:
        _check_depth(raw)
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadManifest(f"{what} is not valid JSON: {error}", cause=str(error)) from error


def _check_depth(raw: bytes) -> None:
    # Counted on the bytes, before the parser recurses. Brackets inside strings are skipped with the strings.
    depth = 0
    for token in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[{\]}]', raw):
        first = token.group()[:1]
        if first in b"[{":
            depth += 1
            if depth > _JSON_DEPTH:
                raise ValueError(f"nested deeper than {_JSON_DEPTH} at byte {token.start()}")
        elif first in b"]}":
            depth -= 1
