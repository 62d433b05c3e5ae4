"""SHA-256 digests as OCI writes them, and the canonical JSON that they are taken of."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NewType

import rfc8785

from deltareg.errors import BadManifest, BadName, InvalidArgument

__all__ = ["Digest", "canonical_json", "parse_digest", "parse_json", "sha256"]

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hexadecimal digits."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_JSON_DEPTH = 64
# Each is an object of some 100 bytes in memory, however few it has in the document.
_JSON_CONTAINERS = 4_000_000


def parse_digest(text: str) -> Digest:
    """Return `text` as a digest. Raises BadName."""
    if _DIGEST.fullmatch(text) is None:
        raise BadName(f"not a digest: {text!r}", hint="a digest is sha256: and 64 lower-case hexadecimal digits")
    return Digest(text)


def sha256(data: bytes | bytearray | memoryview) -> Digest:
    """The digest of `data`."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def canonical_json(value: Any) -> bytes:
    """`value` as canonical JSON (RFC 8785): the same value always gives the same bytes.

    Raises InvalidArgument for what JSON cannot say, such as text that is no Unicode.
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeError) as error:
        raise InvalidArgument(
            f"this cannot be written as JSON: {error}", cause=str(error), hint="mend names and texts that are no UTF-8"
        ) from error


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

    Duplicate keys, NaN and Infinity, wrong UTF-8, lone surrogates, nesting deeper than 64 and millions of objects are
    refused. `what` names the document in the BadManifest that is raised.
    """
    raw = bytes(data)
    try:
        _check_depth(raw)
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
        if b"\\ud" in raw or b"\\uD" in raw:
            # Half of a surrogate pair is no text: nothing could print or store it later.
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise BadManifest(f"{what} is not valid JSON: {error}", cause=str(error)) from error


def _check_depth(raw: bytes) -> None:
    # Counted on the bytes, before the parser recurses. Brackets inside strings are skipped with the strings.
    depth = containers = 0
    # Possessive, and a string may lack its end: hostile text must not make the search start again and again.
    for token in re.finditer(rb'"(?:[^"\\]++|\\.)*+"?|[\[{\]}]', raw, re.DOTALL):
        first = token.group()[:1]
        if first in b"[{":
            depth += 1
            containers += 1
            if containers > _JSON_CONTAINERS:
                raise ValueError(f"more than {_JSON_CONTAINERS} objects and arrays")
            if depth > _JSON_DEPTH:
                raise ValueError(f"nested deeper than {_JSON_DEPTH} at byte {token.start()}")
        elif first in b"]}":
            depth -= 1
