"""SHA-256 digests as OCI writes them, and the canonical JSON that they are taken of."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any, NewType

import rfc8785

from deltareg.errors import BadManifest, BadName, InvalidArgument

__all__ = ["Digest", "canonical_json", "json_keys", "parse_digest", "parse_json", "sha256"]

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hexadecimal digits."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_JSON_DEPTH = 64
# Each is an object of some 100 bytes in memory, however few it has in the document.
_JSON_CONTAINERS = 4_000_000
# Possessive, and a string may lack its end: hostile text must not make the search start again and again.
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_TOKENS = re.compile(_STRINGS.pattern + rb"|[\[{\]}]", re.DOTALL)
# What is left of a number that may be too large for a double, each digit written as 0.
_HUGE = (b"e000", b"e+000", b"E000", b"E+000", b"0" * 200)
_AS_ZERO = bytes.maketrans(b"123456789", b"000000000")
_AS_ONE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
# N and I begin NaN and Infinity.
_NO_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'[]{}":NI')


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
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice!r} occurs twice")
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text:.40} is larger than a double holds")
    return number


def parse_json(data: bytes | bytearray | memoryview, *, what: str) -> Any:
    """Parse a JSON document that came from outside.

    Duplicate keys, NaN and Infinity, numbers that a double takes for infinite, wrong UTF-8, lone surrogates, nesting
    deeper than 64 and millions of objects are refused. `what` names the document in the BadManifest that is raised.
    """
    raw = bytes(data)
    try:
        _check_depth(raw)
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        if b"\\ud" in raw or b"\\uD" in raw:
            # Half of a surrogate pair is no text: nothing could print or store it later.
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise BadManifest(f"{what} is not valid JSON: {error}", cause=str(error)) from error


def json_keys(raw: bytes) -> int | None:
    """How many keys a JSON document has, where only a lenient parser's leniency on those is in question.

    None for what such a parser might take and `parse_json` does not: escapes (of half characters), NaN and Infinity,
    numbers without bound, nesting deeper than 64, millions of objects.
    """
    if b"\\" in raw:
        return None
    try:
        outside = _check_depth(raw)
    except ValueError:
        return None
    digits = raw.translate(_AS_ZERO)
    lenient = b"N" in outside or b"I" in outside or any(part in digits for part in _HUGE)
    return None if lenient else outside.count(b":")


def _check_depth(raw: bytes) -> bytes:
    """Raise ValueError for a document that is nested too deep; returns what has a meaning outside its strings."""
    # Counted on the bytes, before the parser recurses. An inventory has a million strings: without escapes, every
    # second piece between quotation marks is one, and most are empty once letters and digits are left out.
    if b"\\" in raw:
        outside = _STRINGS.sub(b"", raw)
    else:
        outside = b"".join(raw.translate(None, delete=_NO_STRUCTURE).split(b'"')[::2])
    brackets = outside.translate(_AS_ONE, delete=_NO_BRACKETS)
    if brackets.count(b"[") > _JSON_CONTAINERS:
        raise ValueError(f"more than {_JSON_CONTAINERS} objects and arrays")
    # Each round takes away what has nothing within: as many rounds as levels. What is left is too deep, or no JSON.
    for _ in range(_JSON_DEPTH):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return outside
    place = _too_deep(raw)
    if place is not None:
        raise ValueError(f"nested deeper than {_JSON_DEPTH} at byte {place}")
    return outside


def _too_deep(raw: bytes) -> int | None:
    depth = 0
    for token in _TOKENS.finditer(raw):
        first = token.group()[:1]
        depth += (first in b"[{") - (first in b"]}")
        if depth > _JSON_DEPTH:
            return token.start()
    return None
