"""What is a name, which version is the latest, and what is written as a licence."""

from __future__ import annotations

import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltareg.digest import Digest
from deltareg.errors import BadName, InvalidArgument
from deltareg.names import (
    Reference,
    as_reason,
    is_licence,
    is_version,
    latest_of,
    parse_licence,
    parse_reason,
    parse_reference,
    version_key,
)

DIGEST = Digest("sha256:" + "0123456789abcdef" * 4)

# --- references ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("acme/search", Reference("acme", "search")),
        ("acme/search:1.0.0", Reference("acme", "search", "1.0.0")),
        ("acme/search:1.0.0-rc.1", Reference("acme", "search", "1.0.0-rc.1")),
        ("acme/search:prod", Reference("acme", "search", "prod")),
        ("acme/search:latest", Reference("acme", "search", "latest")),
        ("acme/search:pre-2", Reference("acme", "search", "pre-2")),
        (f"acme/search@{DIGEST}", Reference("acme", "search", digest=DIGEST)),
        ("a.b_c-d/0.1:0.0.0", Reference("a.b_c-d", "0.1", "0.0.0")),
        (f"{'a' * 64}/{'b' * 64}", Reference("a" * 64, "b" * 64)),
    ],
)
def test_reference_is_parsed_and_written_as_it_was(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert str(reference) == text


WRONG = [
    "",
    "/",
    "search",
    "/search",
    "acme/",
    "Acme/search",
    "acme/Search",
    "acme/a/b",
    "acme /search",
    "acme/search ",
    "acme/search\n",
    "äcme/search",
    "acme/se..arch",
    "acme/-search",
    "acme/search-",
    "../search",
    f"{'a' * 65}/b",
    f"a/{'b' * 65}",
    "acme/search:",
    "acme/search:1.0",
    "acme/search:v1.0.0",
    "acme/search:01.0.0",
    "acme/search:1.0.0+7",
    "acme/search:1.0.0\n",
    "acme/search:Prod",
    "acme/search:prod_2",
    "acme/search:prod:1.0.0",
    f"acme/search:{'a' * 65}",
    f"acme/search:1.0.0-{'a' * 64}",
    "acme/search@",
    "acme/search@sha256:12",
    f"acme/search@{DIGEST.upper()}",
    f"acme/search@{DIGEST}\n",
    f"acme/search@{DIGEST}@{DIGEST}",
    f"acme/search:1.0.0@{DIGEST}",
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(BadName):
        parse_reference(text)


@pytest.mark.parametrize("text", ["acme/search", "acme/search:prod", "acme/search:latest", f"acme/search@{DIGEST}"])
def test_only_a_version_can_be_published(text: str) -> None:
    with pytest.raises(BadName, match="does not name a version"):
        parse_reference(text, version_required=True)


def test_build_metadata_is_told_as_the_cause() -> None:
    with pytest.raises(BadName) as raised:
        parse_reference("acme/search:1.0.0+7")
    assert "build metadata" in (raised.value.cause or "")


def test_parts_of_a_reference_are_known() -> None:
    reference = parse_reference("acme/search:1.0.0")
    assert (reference.repository, reference.version) == ("acme/search", "1.0.0")
    assert reference.with_tag("prod") == parse_reference("acme/search:prod")
    assert parse_reference("acme/search:prod").version is None
    assert parse_reference("acme/search").version is None


# --- versions -----------------------------------------------------------------------------------------------------

# From the text of SemVer 2.0.0, §11.
RISING = [
    "0.9.0",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.9.0",
    "1.10.0",
    "2.0.0",
]


def test_versions_are_ordered_as_semver_has_it() -> None:
    shuffled = random.Random(1).sample(RISING, len(RISING))
    assert sorted(shuffled, key=version_key) == RISING


@pytest.mark.parametrize(
    ("tags", "latest"),
    [
        ([], None),
        (["prod", "latest"], None),
        (["1.0.0", "1.10.0", "1.9.0", "prod"], "1.10.0"),
        (["1.0.0", "2.0.0-rc.1"], "1.0.0"),
        (["2.0.0-rc.1", "2.0.0-rc.2", "prod"], "2.0.0-rc.2"),
        (["1.0.0", "9.0.0+1", "9.0"], "1.0.0"),
    ],
)
def test_latest_is_the_highest_release_and_a_prerelease_only_without_one(tags: list[str], latest: str | None) -> None:
    assert latest_of(tags) == latest


@pytest.mark.parametrize("text", ["1", "1.0", "v1.0.0", "1.0.0+1", "1.0.0-", "1.0.0-01", " 1.0.0", "1.0.0-" + "a" * 64])
def test_what_is_no_version_is_none(text: str) -> None:
    assert not is_version(text)


# --- licences -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "apache-2.0",
        "MIT",
        "llama3.1",
        "bigscience-bloom-rail-1.0",
        "other",
        "GPL-2.0+",
        "MIT OR Apache-2.0",
        "(MIT OR Apache-2.0) AND GPL-2.0-only WITH Classpath-exception-2.0",
        "((MIT))",
        "LicenseRef-own",
        "m" * 128,
    ],
)
def test_spdx_expressions_and_ids_of_the_hub_are_licences(text: str) -> None:
    assert is_licence(text)
    assert parse_licence(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Apache 2.0",
        "MIT OR",
        "AND MIT",
        "MIT OR OR MIT",
        "(MIT",
        "MIT)",
        ")MIT(",
        "()",
        "(MIT) MIT",
        "MIT (MIT)",
        "mit\n",
        "mit\tOR mit",
        "mit\x1b[31m",
        "mit|gpl",
        "<b>mit</b>",
        "[x](y)",
        '"mit"',
        "caf\xe9",
        "\udce9",
        "+mit",
        "m" * 129,
        "(" * 128,
    ],
)
def test_what_is_not_written_as_a_licence_is_refused(text: str) -> None:
    assert not is_licence(text)
    with pytest.raises(InvalidArgument, match="not written as a licence") as raised:
        parse_licence(text)
    assert len(raised.value.message) < 1000


def test_long_text_is_no_licence_and_takes_no_time() -> None:
    assert not is_licence("(" * 10_000_000)


@pytest.mark.parametrize(
    ("tags", "yanked", "latest"),
    [
        (["1.0.0", "1.1.0"], {"1.1.0"}, "1.0.0"),
        (["1.0.0", "1.1.0"], {"1.0.0"}, "1.1.0"),
        (["1.0.0", "1.1.0"], {"1.0.0", "1.1.0"}, "1.1.0"),
        (["1.0.0", "2.0.0-rc.1"], {"1.0.0"}, "2.0.0-rc.1"),
        (["2.0.0-rc.1", "2.0.0-rc.2"], {"2.0.0-rc.2"}, "2.0.0-rc.1"),
        (["prod", "1.0.0"], {"1.0.0"}, "1.0.0"),
        (["prod"], {"prod"}, None),
        ([], {"1.0.0"}, None),
    ],
)
def test_latest_skips_what_is_yanked_unless_all_are(tags: list[str], yanked: set[str], latest: str | None) -> None:
    assert latest_of(tags, yanked) == latest


@given(st.text())
def test_what_is_taken_of_any_text_is_a_reason_or_nothing(text: str) -> None:
    kept = as_reason(text)
    assert kept == "" or parse_reason(kept) == kept == as_reason(kept)
    if all(not unicodedata.category(char).startswith(("Z", "C")) for char in text):
        assert kept == text[:1000]
