"""Ranges of versions, beside a statement of what they mean that is made of tuples alone."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltareg.errors import BadName
from deltareg.names import is_version
from deltareg.versions import ANY, parse_range

# --- what ranges mean, said anew ----------------------------------------------------------------------------------
# A version is its three numbers and the parts of its pre-release, None for a release. A condition is a sign and one to
# three numbers; a pre-release goes with three.

Parsed = tuple[tuple[int, ...], tuple[str, ...] | None]
Asked = tuple[str, tuple[int, ...], tuple[str, ...] | None]


def rank(version: Parsed) -> tuple[object, ...]:
    """SemVer 2.0.0, rule 11: numbers, then pre-releases before the release, part by part, numbers before words."""
    numbers, parts = version
    if parts is None:
        return (numbers, 1)
    return (numbers, 0, tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts))


def before(left: Parsed, right: Parsed) -> bool:
    return rank(left) < rank(right)


def filled(numbers: tuple[int, ...]) -> tuple[int, ...]:
    return (*numbers, 0, 0)[:3]


def holds(asked: Asked, version: Parsed) -> bool:
    """Whether a single condition holds, whatever is thought of pre-releases."""
    sign, numbers, parts = asked
    length, (mine, mine_parts) = len(numbers), version
    first: Parsed = (filled(numbers), parts)
    at_least = not before(version, first)
    if sign == "^":
        kept = next((place for place in range(length) if numbers[place]), length - 1) + 1
        return at_least and mine[:kept] == numbers[:kept]
    if sign == "~":
        return at_least and mine[:2] == numbers[:2] if length > 1 else at_least and mine[:1] == numbers
    if length == 3:
        later = before(first, version)
        return {
            "=": not later and at_least,
            "!=": later or not at_least,
            ">": later,
            ">=": at_least,
            "<": not at_least,
            "<=": not later,
        }[sign]
    begun = at_least and mine[:length] == numbers
    return {
        "=": begun,
        "!=": not begun,
        # The pre-releases of the first release behind 1.2.* are on neither side of it.
        ">": mine[:length] > numbers and not (mine_parts and mine == filled((*numbers[:-1], numbers[-1] + 1))),
        ">=": at_least,
        "<": mine < filled(numbers),
        "<=": mine[:length] <= numbers,
    }[sign]


def is_wanted(conditions: list[Asked], version: Parsed) -> bool:
    """Whether all hold, and a pre-release is named by one that names a pre-release of the same three numbers."""
    named = any(sign != "!=" and parts and numbers == version[0] for sign, numbers, parts in conditions)
    return (version[1] is None or named) and all(holds(one, version) for one in conditions)


def written(version: Parsed) -> str:
    numbers, parts = version
    return ".".join(map(str, numbers)) + (f"-{'.'.join(parts)}" if parts else "")


NUMBERS = st.integers(0, 2)
PARTS = st.lists(st.sampled_from(["0", "1", "2", "10", "a", "b", "rc", "A", "-", "0a"]), min_size=1, max_size=3).map(
    tuple
)
TRIPLES = list(itertools.product(range(4), repeat=3))
SIGNS = st.sampled_from(["^", "~", "=", "!=", ">", ">=", "<", "<="])


@st.composite
def conditions(draw: st.DrawFn) -> tuple[str, Asked]:
    """A condition as text, in one of its spellings, and what it asks."""
    sign = draw(SIGNS)
    numbers = tuple(draw(st.lists(NUMBERS, min_size=1, max_size=3)))
    parts = draw(st.none() | PARTS) if len(numbers) == 3 else None
    text = written((numbers, parts))
    if len(numbers) < 3 and sign in ("=", "!="):
        text += ".*" * draw(st.integers(0, 3 - len(numbers)))
    shown = "" if sign == "=" and draw(st.booleans()) else sign
    return shown + " " * draw(st.integers(0, 2)) + text, (sign, numbers, parts)


@given(st.lists(conditions(), min_size=1, max_size=3), PARTS)
def test_a_range_has_the_versions_that_every_condition_wants(
    asked: list[tuple[str, Asked]], others: tuple[str, ...]
) -> None:
    text = " , ".join(one for one, _ in asked)
    found = parse_range(text)
    pre_releases = {None, ("0",), others, *(parts for _, (_, _, parts) in asked)}
    for version in itertools.product(TRIPLES, pre_releases):
        assert found.has(written(version)) == is_wanted([one for _, one in asked], version), (text, written(version))


@given(conditions(), st.sampled_from(TRIPLES), PARTS)
def test_pre_releases_that_are_let_in_meet_a_condition_as_stated(
    asked: tuple[str, Asked], numbers: tuple[int, int, int], others: tuple[str, ...]
) -> None:
    text, one = asked
    opened: Asked = (">=", numbers, ("0",))
    found = parse_range(f"{text}, >={written((numbers, ('0',)))}")
    for parts in {("0",), others, *([one[2]] if one[2] else [])}:
        assert found.has(written((numbers, parts))) == is_wanted([one, opened], (numbers, parts)), (
            text,
            numbers,
            parts,
        )


@given(st.from_regex(r"\A(0|[1-9][0-9]{0,19})\.(0|[1-9][0-9]{0,19})\.(0|[1-9][0-9]{0,19})(-[a-z0-9-]{1,9})?\Z"))
def test_every_version_is_the_range_of_itself(text: str) -> None:
    if is_version(text):
        found = parse_range(text)
        assert found.has(text)
        assert str(found) == text
        assert not parse_range(f"!={text}").has(text)


# --- by hand ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "has", "lacks"),
    [
        ("*", "0.0.0 1.2.3 99.0.0", "1.0.0-rc.1 0.0.0-0"),
        (" * ", "1.2.3", "1.0.0-rc.1"),
        ("1.2.3", "1.2.3", "1.2.2 1.2.4 1.2.3-rc.1"),
        ("=1.2.3", "1.2.3", "1.2.4"),
        ("= 1.2.3", "1.2.3", "1.2.4"),
        ("1.2.3-rc.1", "1.2.3-rc.1", "1.2.3 1.2.3-rc.2"),
        ("1.2", "1.2.0 1.2.99", "1.1.9 1.3.0 1.2.0-rc.1 1.3.0-rc.1"),
        ("1", "1.0.0 1.99.99", "0.9.9 2.0.0"),
        ("1.*", "1.0.0 1.99.99", "0.9.9 2.0.0 2.0.0-0"),
        ("1.*.*", "1.0.0 1.99.99", "0.9.9 2.0.0"),
        ("1.2.*", "1.2.0 1.2.99", "1.3.0"),
        ("0", "0.0.0 0.9.9", "1.0.0"),
        ("^1.2.3", "1.2.3 1.2.4 1.3.0 1.99.0", "1.2.2 2.0.0 2.0.0-rc.1 1.3.0-rc.1"),
        ("^1.2", "1.2.0 1.9.9", "1.1.9 2.0.0 1.9.0-rc.1"),
        ("^1", "1.0.0 1.9.9", "0.9.9 2.0.0"),
        ("^0.2.3", "0.2.3 0.2.9", "0.2.2 0.3.0"),
        ("^0.2", "0.2.0 0.2.9", "0.1.9 0.3.0"),
        ("^0.0.3", "0.0.3", "0.0.2 0.0.4"),
        ("^0.0.0", "0.0.0", "0.0.1"),
        ("^0.0", "0.0.0 0.0.9", "0.1.0"),
        ("^0", "0.0.0 0.9.9", "1.0.0"),
        ("^1.2.3-rc.1", "1.2.3-rc.1 1.2.3-rc.2 1.2.3 1.9.0", "1.2.3-beta 1.2.4-rc.1 2.0.0-rc.1 2.0.0"),
        ("~1.2.3", "1.2.3 1.2.99", "1.2.2 1.3.0 1.3.0-rc.1"),
        ("~1.2", "1.2.0 1.2.99", "1.1.9 1.3.0"),
        ("~1", "1.0.0 1.99.0", "0.9.9 2.0.0"),
        ("~0", "0.0.0 0.9.0", "1.0.0"),
        (">1.2.3", "1.2.4 2.0.0", "1.2.3 1.2.4-rc.1"),
        (">1.2", "1.3.0 2.0.0", "1.2.0 1.2.99"),
        (">1", "2.0.0", "1.0.0 1.99.0"),
        (">=1.2", "1.2.0 9.0.0", "1.1.9 1.2.0-rc.1"),
        ("<1.2", "1.1.99 0.0.0", "1.2.0 1.2.0-rc.1"),
        ("<=1.2", "1.2.99 0.0.0", "1.3.0"),
        ("<=1.2.3", "1.2.3", "1.2.4"),
        ("!=1.2.3", "1.2.2 1.2.4", "1.2.3 1.2.3-rc.1"),
        ("!=1.2", "1.1.0 1.3.0", "1.2.0 1.2.9"),
        ("!=1.*", "0.9.0 2.0.0", "1.0.0 1.9.0"),
        ("!=1.2.3-rc.1", "1.2.3", "1.2.3-rc.1 1.2.3-rc.2"),
        (">=2, <3", "2.0.0 2.9.9", "1.9.9 3.0.0"),
        (">=2,<3,!=2.4.0", "2.3.9 2.4.1", "2.4.0"),
        (">=2, <2", "", "1.9.9 2.0.0 2.0.1"),
        (">=1.2.3-rc.2, <2", "1.2.3-rc.2 1.2.3-rc.10 1.2.3 1.9.9", "1.2.3-rc.1 1.2.3-beta 1.9.0-rc.1 2.0.0-rc.1"),
        # A range ends before the pre-releases of the version that it does not reach, even where they are named.
        ("^1.2, >=2.0.0-alpha", "", "1.9.0 2.0.0-alpha 2.0.0-rc.1 2.0.0"),
        ("<2, >=2.0.0-alpha", "", "2.0.0-rc.1"),
        ("<2.0.0, >=2.0.0-alpha", "2.0.0-alpha 2.0.0-rc.1", "2.0.0 2.0.0-0 1.9.9"),
        ("18446744073709551616", "18446744073709551616.1.0", "18446744073709551615.9.9 18446744073709551617.0.0"),
    ],
)
def test_table(text: str, has: str, lacks: str) -> None:
    found = parse_range(text)
    assert [version for version in has.split() if not found.has(version)] == []
    assert [version for version in lacks.split() if found.has(version)] == []


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "a condition is missing"),
        ("   ", "a condition is missing"),
        (",", "a condition is missing"),
        (">=1,", "a condition is missing"),
        (",>=1", "a condition is missing"),
        (">=1,,<2", "a condition is missing"),
        ("^", "'^' is no condition"),
        (">=", "'>=' is no condition"),
        ("1.2.3.4", "'1.2.3.4' is no condition"),
        ("1.2.3+build", "'1.2.3+build' is no condition"),
        ("1.2.3-rc.1+build", "'1.2.3-rc.1+build' is no condition"),
        ("01.2", "'01.2' is no condition"),
        ("1.", "'1.' is no condition"),
        (".1", "'.1' is no condition"),
        ("1..2", "'1..2' is no condition"),
        ("-1", "'-1' is no condition"),
        ("v1.2.3", "'v1.2.3' is no condition"),
        ("1.x", "'1.x' is no condition"),
        ("latest", "'latest' is no condition"),
        ("^1.*", "'^1.*' is no condition"),
        (">=1.*", "'>=1.*' is no condition"),
        ("1.*.2", "'1.*.2' is no condition"),
        ("1.2.3.*", "'1.2.3.*' is no condition"),
        ("1.*.*.*", "'1.*.*.*' is no condition"),
        ("*.*", "'*.*' is no condition"),
        ("**", "'**' is no condition"),
        (">=1, *", "'*' is no condition"),
        ("=*", "'=*' is no condition"),
        ("1.2-rc.1", "'1.2-rc.1' is no condition"),
        ("1.2.3-", "'1.2.3-' is no condition"),
        ("1.2.3-01", "1.2.3-01 is no version"),
        ("1.2.3-a..b", "1.2.3-a..b is no version"),
        ("^1 <2", "'^1 <2' is no condition"),
        ("^1 || ^2", "'^1 || ^2' is no condition"),
        ("==1.2.3", "'==1.2.3' is no condition"),
        ("~=1.2", "'~=1.2' is no condition"),
        ("=<1", "'=<1' is no condition"),
        ("> =1", "'> =1' is no condition"),
        ("٣", "'٣' is no condition"),
        ("1.٣", "'1.٣' is no condition"),
        ("１.２.３", "'１.２.３' is no condition"),
        ("1.2.3\n", r"'1.2.3\n' is no condition"),
        ("\t1.2.3", r"'\t1.2.3' is no condition"),
        ("1.2.3\0", r"'1.2.3\x00' is no condition"),
        (">=1,\u20031", r"'\u20031' is no condition"),
        ("1.2.3-é", "'1.2.3-é' is no condition"),
        ("\udcff", r"'\udcff' is no condition"),
        (f"1.2.3-{'a' * 80}", f"1.2.3-{'a' * 80} is no version"),
        ("1" * 63, f"{'1' * 63}.0.0 is no version"),
        ("1" * 100, f"'{'1' * 100}' is no condition"),
        ("1" * 257, "it has more than 256 characters"),
        (" " * 300 + "*", "it has more than 256 characters"),
        (">=1," * 1_000_000, "it has more than 256 characters"),
    ],
    ids=lambda text: repr(text[:40]),
)
def test_what_is_no_range(text: str, cause: str) -> None:
    with pytest.raises(BadName, match="is no range of versions") as caught:
        parse_range(text)
    assert caught.value.cause == cause
    assert caught.value.hint is not None and "^1.2" in caught.value.hint
    assert len(caught.value.message) < 1000


@given(st.text(max_size=300) | st.text("0123456789.*^~<>=!, -arc", max_size=40))
def test_whatever_is_written_is_a_range_or_a_bad_name(text: str) -> None:
    try:
        found = parse_range(text)
    except BadName:
        return
    assert found.has("1.2.3") in (True, False)
    # As it is written it can be stored and read again.
    assert parse_range(str(found)) == found


def test_a_range_is_told_as_it_was_written() -> None:
    assert str(parse_range("  >=2,  <3 ")) == ">=2,  <3"
    assert str(parse_range("*")) == "*"
    assert parse_range("*") is ANY
