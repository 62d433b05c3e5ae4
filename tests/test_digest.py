"""Digests, canonical JSON, and JSON that comes from anywhere."""

from __future__ import annotations

import hashlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltareg.digest import canonical_json, parse_digest, parse_json, sha256
from deltareg.errors import BadManifest, BadName, InvalidArgument

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-(2**53) + 1, 2**53 - 1)
    # Surrogates are no text.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_digest_is_that_of_sha256(make: type) -> None:
    assert sha256(make(b"delta")) == "sha256:" + hashlib.sha256(b"delta").hexdigest()
    assert parse_digest(sha256(b"")) == sha256(b"")


GOOD = "0" * 64
WRONG = ["", GOOD, f"sha256:{GOOD[1:]}", f"sha256:{GOOD}0", f"sha256:{GOOD[1:]}A", f"SHA256:{GOOD}", f"sha256:{GOOD}\n"]


@pytest.mark.parametrize("text", [*WRONG, f" sha256:{GOOD}", f"blake3:{GOOD}", f"sha256:{GOOD[4:]}٣٣٣٣"])
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(BadName, match="not a digest"):
        parse_digest(text)


# --- canonical JSON -----------------------------------------------------------------------------------------------


def test_canonical_json_is_that_of_rfc_8785() -> None:
    # The example of §3.2.2, and the order of keys by UTF-16 of §3.2.3.
    numbers = [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001, -0.0, 1.0]
    assert canonical_json(numbers) == b"[333333333.3333333,1e+30,4.5,0.002,1e-27,0,1]"
    assert canonical_json('€$\u000f\nA\'B"\\\\"/') == '"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'.encode()
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    ordered = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(json.loads(canonical_json(dict.fromkeys(keys, 0)))) == ordered


@given(JSON)
def test_canonical_json_reads_back_and_is_the_same_again(value: object) -> None:
    data = canonical_json(value)
    again = parse_json(data, what="test")
    assert again == value
    assert canonical_json(again) == data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {"\udfff": 1}, 2**53, object()])
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgument):
        canonical_json(value)


# --- JSON from outside --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"{} {}", "Extra data"),
        (b"[1,]", ""),
        (b'{"a":1,"a":1}', "'a' occurs twice"),
        (b'{"x":{"a":1,"a":2}}', "'a' occurs twice"),
        (b'{"a":1,"\\u0061":2}', "'a' occurs twice"),
        (b"NaN", "NaN is not JSON"),
        (b"[Infinity]", "Infinity is not JSON"),
        (b'{"a":-Infinity}', "-Infinity is not JSON"),
        (b"1e999", "the number 1e999 is larger than a double holds"),
        (b'{"a":[-1e999]}', "the number -1e999 is larger"),
        (b"1" * 400 + b".5", "is larger than a double holds"),
        (b'"\xff"', "utf-8"),
        (b'"\xed\xa0\x80"', "utf-8"),
        ("{}".encode("utf-16"), "utf-8"),
        (b"\xef\xbb\xbf{}", ""),
        (b'"a\nb"', "control character"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64 at byte 64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested deeper than 64"),
        (b'["\\"]", ' + b"[" * 64, "nested deeper than 64"),
        (b"[" * 1_000_000, "nested deeper than 64"),
        (b"1" * 5000, ""),
    ],
)
def test_what_is_no_strict_json_is_refused_by_its_name(data: bytes, why: str) -> None:
    with pytest.raises(BadManifest, match="the test is not valid JSON") as raised:
        parse_json(data, what="the test")
    assert why in raised.value.message


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a": [1, 2.5, null, true, "\\u00e9"]}', {"a": [1, 2.5, None, True, "é"]}),
        (b"[1e308, 1e-999, 2E+2]", [1e308, 0.0, 200.0]),
        (b" null ", None),
        (b'"' + b"[" * 100 + b'"', "[" * 100),
        (b'"\\"' + b"{" * 100 + b'"', '"' + "{" * 100),
        (b'["\\\\",' + b"[" * 63 + b"]" * 64, None),
        (b"[[],[]," * 32 + b"1" + b"]" * 32, None),
        (b"[" + b"[]," * 1000 + b"[]]", [[]] * 1001),
    ],
)
def test_strict_json_is_read(data: bytes, value: object) -> None:
    found = parse_json(memoryview(data), what="test")
    assert found == (json.loads(data) if value is None else value)


@pytest.mark.parametrize("data", [b'"' * 1_000_001, b'"\\' * 500_000, b'"' + b"\\" * 1_000_001, b'{"' * 500_000])
def test_hostile_text_takes_no_time(data: bytes) -> None:
    begun = time.monotonic()
    with pytest.raises(BadManifest):
        parse_json(data, what="test")
    assert time.monotonic() - begun < 2
