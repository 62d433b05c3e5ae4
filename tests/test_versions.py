"""Ranges of versions, against what their signs are said to mean."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltareg.errors import BadName
from deltareg.versions import ANY, parse_range

numbers = st.integers(min_value=0, max_value=3)
pre_releases = st.sampled_from(["", "", "", "-0", "-1", "-2", "-10", "-a", "-rc.1", "-rc.2", "-rc.10", "-rc.1.0"])
versions = st.builds(lambda a, b, c, pre: f"{a}.{b}.{c}{pre}", numbers, numbers, numbers, pre_releases)
partial = st.builds(lambda parts: ".".join(map(str, parts)), st.lists(numbers, min_size=1, max_size=2))
signs = st.sampled_from(["", "=", "!=", "^", "~", ">", ">=", "<", "<="])
conditions = st.builds(lambda sign, one: sign + one, signs, st.one_of(versions, partial)) | st.builds(
    lambda sign, one, stars: (
        sign + ".".join([*one.split("."), *"*"][: one.count(".") + 2]) + (stars if "." not in one else "")
    ),
    st.sampled_from(["", "=", "!="]),
    partial,
    st.sampled_from(["", ".*"]),
)


# --- the oracle: no bounds, but the numbers that have to agree ------------------------------------------------------


def order(version: str) -> tuple:  # type: ignore[type-arg]
    """A key that sorts as SemVer 2.0.0, 11, says."""
    core, _, pre = version.partition("-")
    parts = [(0, int(one), "") if one.isdigit() else (1, 0, one) for one in pre.split(".")] if pre else []
    return [int(one) for one in core.split(".")], not pre, parts


def has_condition(condition: str, version: str) -> bool:
    found = re.fullmatch(r"(\D*)(.*)", condition)
    assert found is not None
    sign, text = found.groups()
    text = text.replace(".*", "")
    core, _, pre = text.partition("-")
    want = [int(one) for one in core.split(".")]
    have, _, _ = order(version)
    begins = have[: len(want)] == want
    floor = ".".join(map(str, [*want, 0, 0][:3])) + (f"-{pre}" if pre else "")
    at_least = order(version) >= order(floor)
    is_whole = len(want) == 3
    same = order(version) == order(floor) if is_whole else begins and at_least
    if sign == "^":
        kept = next((place for place, one in enumerate(want) if one), len(want) - 1) + 1
        return at_least and have[:kept] == want[:kept]
    if sign == "~":
        return at_least and have[:2][: len(want)] == want[:2]
    return {
        "": same,
        "=": same,
        "!=": not same,
        ">=": at_least,
        "<": not at_least,
        ">": order(version) > order(floor) if is_whole else at_least and not begins and have[: len(want)] > want,
        "<=": order(version) <= order(floor) if is_whole else have[: len(want)] <= want,
    }[sign]


def has(text: str, version: str) -> bool:
    every = [one.strip() for one in text.split(",")]
    core, _, pre = version.partition("-")
    named = any(
        "-" in one and not one.startswith("!=") and re.sub(r"^\D*", "", one).split("-")[0] == core for one in every
    )
    return (not pre or named) and all(has_condition(one, version) for one in every)


@given(st.lists(conditions, min_size=1, max_size=3), versions)
def test_a_range_has_what_its_signs_say(every: list[str], version: str) -> None:
    text = ", ".join(every)
    assert parse_range(text).has(version) == has(text, version)


@given(st.lists(conditions, min_size=1, max_size=3), versions)
def test_a_range_reads_back_as_it_was_written(every: list[str], version: str) -> None:
    once = parse_range("  " + " ,".join(every) + " ")
    again = parse_range(str(once))
    assert again == once
    assert again.has(version) == once.has(version)


# --- examples of the documentation of node-semver, which uses blanks for commas --------------------------------------


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("^1.2.3", "1.2.3 1.9.9", "1.2.2 2.0.0 2.0.0-rc.1 1.3.0-rc.1"),
        ("^0.2.3", "0.2.3 0.2.9", "0.3.0 0.2.2 1.0.0"),
        ("^0.0.3", "0.0.3", "0.0.4 0.0.2"),
        ("^0.0", "0.0.0 0.0.9", "0.1.0"),
        ("^0", "0.0.0 0.9.9", "1.0.0"),
        ("^1", "1.0.0 1.9.9", "0.9.9 2.0.0"),
        ("^1.2.3-beta.2", "1.2.3-beta.2 1.2.3-beta.4 1.2.3 1.9.0", "1.2.3-beta.1 1.2.4-beta.2 2.0.0"),
        ("^0.0.3-beta", "0.0.3-pr.2 0.0.3", "0.0.4"),
        ("~1.2.3", "1.2.3 1.2.9", "1.3.0 1.2.2"),
        ("~1.2", "1.2.0 1.2.9", "1.3.0 1.1.9"),
        ("~1", "1.0.0 1.9.9", "2.0.0"),
        ("~0.2.3", "0.2.3 0.2.9", "0.3.0"),
        ("~1.2.3-beta.2", "1.2.3-beta.4 1.2.4", "1.2.4-beta.2 1.3.0"),
        (">1.2.3-alpha.3", "1.2.3-alpha.7 3.4.5", "3.4.5-alpha.9 1.2.3-alpha.3"),
        ("*", "0.0.0 9.9.9", "1.0.0-rc.1"),
        ("1.*", "1.0.0 1.9.9", "2.0.0 0.9.9"),
        ("1.2.*", "1.2.0 1.2.9", "1.3.0"),
        (">1.2", "1.3.0", "1.2.9"),
        ("<=1.2", "1.2.9 0.0.1", "1.3.0"),
        ("!=1.2", "1.1.9 1.3.0", "1.2.0 1.2.5"),
        ("^1.2, <2.0.0-rc.5", "1.9.9", "2.0.0-rc.1 2.0.0"),
        (">=2.0.0-a, <2", "", "2.0.0 2.0.1"),
        (">=1.2, <3, !=2.0.1", "1.2.0 2.0.0 2.9.9", "2.0.1 3.0.0 1.1.9"),
    ],
)
def test_documented_examples(text: str, inside: str, outside: str) -> None:
    found = parse_range(text)
    assert [one for one in inside.split() if not found.has(one)] == []
    assert [one for one in outside.split() if found.has(one)] == []


def test_a_star_is_any_version() -> None:
    assert parse_range(" * ") is ANY
    assert str(ANY) == "*"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "1.2,",
        ",1",
        "^",
        "~",
        ">",
        ">=,<2",
        "1.2.3.4",
        "01.2.3",
        "1.02",
        "v1.2",
        "1.2.3+build",
        "1.2-rc.1",
        "^1.*",
        "~1.2.*",
        ">1.*",
        "1.2.3.*",
        "*.1",
        "1.*.1",
        "**",
        "*, 1",
        "==1",
        "=>1",
        "^^1",
        "1 2",
        "1.2.3-",
        "1.2.3-rc..1",
        "1.2.3-01",
        "١.٢",
        "1.２",
        "1.2.3-ä",
        "１",
        "1\u200b",
        "latest",
        "-1",
        "1.-2",
        "9" * 40,
        "1." * 90,
        "^1," * 90 + "1",
        "x" * 100_000,
        "1.2.3-" + "a" * 100,
        "^1.2.3\x00",
        "1\ud800",
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(BadName) as caught:
        parse_range(text)
    assert caught.value.hint
    assert len(caught.value.message) < 400


@given(st.text(max_size=40) | st.text(alphabet="0123456789.*^~<>=!,- rc", max_size=30))
def test_any_text_is_a_range_or_refused(text: str) -> None:
    try:
        found = parse_range(text)
    except BadName:
        return
    assert isinstance(found.has("1.2.3-rc.1"), bool)
