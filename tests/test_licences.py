"""Which licences are allowed, and what the licences of its parents make of an output's."""

from __future__ import annotations

import pytest

from deltareg.errors import LicenceRefused
from deltareg.licences import derive, is_allowed, refuse_conflicts
from deltareg.names import is_licence

_NO_EXPRESSIONS = ["", "?", "(", ")", "MIT)", "(MIT", "MIT OR", "OR MIT", "MIT MIT", "MIT OR OR MIT", "()", "(MIT) MIT"]
_NO_EXPRESSIONS += ["MIT WITH", "MIT WITH (MIT)", "WITH MIT", "MIT (MIT)", ")MIT(", "MIT WITH MIT WITH MIT", "( OR )"]

# --- allowed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "allowed", "expected"),
    [
        ("MIT", ["mit"], True),
        ("mit", ["Apache-2.0"], False),
        ("Apache 2.0", ["apache-2.0"], True),
        ("GPL-3.0-only", ["gpl-3.0"], True),
        ("GPL-3.0-or-later", ["gpl-3.0"], False),
        ("GPL-2.0+", ["GPL-2.0-or-later"], True),
        ("MIT OR GPL-3.0", ["mit"], True),
        ("GPL-3.0 OR MIT", ["mit"], True),
        ("MIT AND GPL-3.0", ["mit"], False),
        ("MIT AND GPL-3.0", ["mit", "gpl-3.0"], True),
        ("MIT OR GPL-3.0 AND ISC", ["mit"], True),  # AND binds before OR
        ("MIT AND GPL-3.0 OR ISC", ["isc"], True),
        ("MIT AND (GPL-3.0 OR ISC)", ["isc"], False),
        ("MIT AND (GPL-3.0 OR ISC)", ["isc", "mit"], True),
        ("((MIT))", ["mit"], True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ["gpl-2.0"], False),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ["gpl-2.0 with classpath-exception-2.0"], True),
        ("llama3.1", ["llama3.1"], True),
        ("mit", [], False),
        (None, ["mit"], False),
    ],
)
def test_what_can_be_had_under_allowed_licences_is_allowed(
    expression: str | None, allowed: list[str], expected: bool
) -> None:
    assert is_allowed(expression, allowed) is expected


@pytest.mark.parametrize(
    "text",
    _NO_EXPRESSIONS,
)
def test_what_is_no_expression_is_not_allowed(text: str) -> None:
    assert not is_allowed(text, ["mit", "or", "with", "and"])
    assert derive({"base": text}).expression is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(" * 200_000 + "MIT" + ")" * 200_000, True),
        ("(" * 200_000, False),
        ("(" * 200_000 + "MIT" + ")" * 199_999, False),
        (" OR ".join(["GPL-3.0"] * 100_000 + ["MIT"]), True),
        ("(MIT OR ISC) AND " * 20_000 + "MIT", True),
        ("MIT OR (" * 50_000 + "ISC" + ")" * 50_000, True),
    ],
)
def test_hostile_depth_and_length_neither_crash_nor_take_long(text: str, expected: bool) -> None:
    assert is_allowed(text, ["mit"]) is expected
    derived = derive({"base": text})
    assert derived.expression is None and "base" in derived.warnings[0]


# --- derived ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("licences", "expression", "hub", "hub_name"),
    [
        (["mit", "mit"], "mit", "mit", None),
        (["Apache-2.0", "apache 2.0", "APACHE-2.0"], "Apache-2.0", "apache-2.0", None),
        (["llama3.1", "llama3.1"], "llama3.1", "llama3.1", None),
        (["mit", "apache-2.0", "MIT"], "apache-2.0 AND mit", "other", "apache-2.0-and-mit"),
        (["mit AND isc", "isc"], "isc AND mit", "other", "isc-and-mit"),
        (["MIT OR ISC", "apache-2.0"], "(mit OR isc) AND apache-2.0", "other", "mit-or-isc-and-apache-2.0"),
        (["GPL-3.0-only", "gpl-3.0"], "GPL-3.0-only", "gpl-3.0", None),
        (["deepseek-license"], "deepseek-license", "other", "deepseek-license"),
        (["other", "other"], "other", "other", None),
        (["LicenseRef-Own", "mit"], "licenseref-own AND mit", "other", "licenseref-own-and-mit"),
        ([None, "mit"], None, None, None),
        (["unknown"], None, None, None),
        ([], None, None, None),
    ],
)
def test_output_has_the_licences_of_all_parents(
    licences: list[str | None], expression: str | None, hub: str | None, hub_name: str | None
) -> None:
    derived = derive({f"parent-{number}": licence for number, licence in enumerate(licences)})
    assert (derived.expression, derived.hub, derived.hub_name) == (expression, hub, hub_name)
    assert not derived.conflicts
    # What is written into a delta's config, or a lock, is read again as a licence.
    assert expression is None or is_licence(expression)


def test_order_of_parents_does_not_matter() -> None:
    parents = {"a": "mit", "b": "gemma", "c": "cc-by-4.0 OR gpl-2.0-only", "d": "apache-2.0"}
    assert derive(parents) == derive(dict(reversed(parents.items())))


def test_whose_licence_is_unknown_is_told() -> None:
    derived = derive({"base": None, "acme/a:1.0.0": "mit", "acme/b:1.0.0": "do what | you want"})
    assert derived.expression is None
    (warning,) = derived.warnings
    assert "base and acme/b:1.0.0 is unknown" in warning
    assert any("mit" in one for one in derived.obligations)


def test_other_is_a_licence_that_has_to_be_read() -> None:
    (warning,) = derive({"base": "other", "acme/a:1.0.0": "mit"}).warnings
    assert "base" in warning and "read its text" in warning


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("cc-by-sa-4.0", "gpl-2.0", "CC BY-SA"),
        ("cc-by-sa-3.0", "gpl-3.0", "CC BY-SA"),
        ("cc-by-sa-4.0", "agpl-3.0", "CC BY-SA"),
        ("gpl-2.0-only", "apache-2.0", "patent"),
        ("GPL-2.0", "Apache 2.0", "patent"),
        ("gpl-2.0-only", "gpl-3.0", "later version"),
        ("gpl-2.0", "agpl-3.0", "later version"),
        ("gpl-2.0", "GPL-3.0-or-later", "later version"),
        ("gpl-2.0", "lgpl-3.0", "later version"),
        ("gpl-3.0", "cc-by-nc-4.0", "commercial"),
        ("agpl-3.0", "cc-by-nc-2.0", "commercial"),
        ("cc-by-sa-4.0", "cc-by-nc-4.0", "commercial"),
        ("cc-by-sa-4.0", "cc-by-nc-sa-4.0", "commercial"),
        ("gpl-3.0", "cc-by-nc-sa-4.0", ""),
        ("gpl-3.0", "llama2", "rules of use"),
        ("agpl-3.0", "llama3.3", "rules of use"),
        ("cc-by-sa-4.0", "gemma", "rules of use"),
        ("gpl-2.0", "openrail", "rules of use"),
        ("gpl-3.0", "bigscience-bloom-rail-1.0", "rules of use"),
        ("gpl-3.0", "deepseek-license", "rules of use"),
        ("cc-by-sa-4.0", "creativeml-openrail-m", "rules of use"),
        ("gpl-3.0", "epl-2.0", "for themselves"),
        ("gpl-2.0 OR gpl-3.0", "cc-by-nc-4.0", "commercial"),
        ("mit AND gpl-2.0", "apache-2.0", "patent"),
    ],
)
def test_licences_that_do_not_go_together_are_told_with_whose_they_are(first: str, second: str, reason: str) -> None:
    for parents in ({"base": first, "acme/a:1.0.0": second}, {"base": second, "acme/a:1.0.0": first}):
        derived = derive(parents)
        (conflict,) = derived.conflicts
        assert sorted(conflict.parents) == [("acme/a:1.0.0",), ("base",)]
        assert reason in conflict.reason
        assert "base" in str(conflict) and "acme/a:1.0.0" in str(conflict)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("cc-by-sa-4.0", "gpl-3.0"),
        ("cc-by-sa-4.0", "GPL-2.0-or-later"),
        ("cc-by-sa-3.0", "cc-by-sa-4.0"),
        ("gpl-3.0", "agpl-3.0"),
        ("gpl-3.0", "apache-2.0"),
        ("gpl-2.0-or-later", "apache-2.0"),
        ("gpl-2.0-or-later", "gpl-3.0"),
        ("gpl-2.0-or-later", "gpl-2.0"),
        ("gpl-2.0", "lgpl-2.1"),
        ("gpl-2.0", "mit"),
        ("gpl-3.0", "mpl-2.0"),
        ("llama3.1", "gemma"),
        ("llama3.1", "apache-2.0"),
        ("llama3.1", "cc-by-nc-4.0"),
        ("cc-by-nc-4.0", "apache-2.0"),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
        ("cc-by-sa-4.0", "mit"),
        ("mit OR gpl-2.0", "apache-2.0"),
        ("gpl-2.0 OR mit", "llama3.1"),
        ("other", "gpl-3.0"),
        ("cc-by-nd-4.0 OR mit", "apache-2.0"),
    ],
)
def test_licences_that_go_together_are_no_conflict(first: str, second: str) -> None:
    assert not derive({"base": first, "acme/a:1.0.0": second}).conflicts
    assert not derive({"base": second, "acme/a:1.0.0": first}).conflicts


@pytest.mark.parametrize("licence", ["cc-by-nd-4.0", "CC-BY-NC-ND-3.0", "mit AND cc-by-nd-4.0"])
def test_licence_that_forbids_derivatives_conflicts_by_itself(licence: str) -> None:
    (conflict,) = derive({"base": "mit", "acme/a:1.0.0": licence, "acme/b:1.0.0": licence}).conflicts
    assert conflict.parents == (("acme/a:1.0.0", "acme/b:1.0.0"),)
    assert "derivatives" in conflict.reason


def test_choices_that_only_suit_one_another_in_pairs_conflict() -> None:
    parents = {"base": "gpl-2.0 OR llama3.1", "acme/a:1.0.0": "apache-2.0", "acme/b:1.0.0": "agpl-3.0 OR cc-by-nc-4.0"}
    assert not derive(parents).conflicts  # llama3.1, apache-2.0 and cc-by-nc-4.0
    (conflict,) = derive({**parents, "acme/b:1.0.0": "agpl-3.0 OR gpl-2.0"}).conflicts
    assert len(conflict.licences) == 3


def test_very_many_parents_with_choices_take_no_time() -> None:
    parents = {f"acme/d{number}:1.0.0": f"gpl-2.0 OR gpl-3.0 OR x-{number}" for number in range(200)}
    assert not derive(parents).conflicts
    (warning,) = derive(dict.fromkeys(parents)).warnings
    assert len(warning) < 500


@pytest.mark.parametrize(
    ("licence", "words"),
    [
        ("llama3.1", ['"Built with Llama"', 'begin with "Llama"', "rules of use", "copy of the agreement"]),
        ("llama3", ['"Built with Meta Llama 3"', 'begin with "Llama 3"']),
        ("llama2", ["Notice file"]),
        ("gemma", ["ai.google.dev/gemma/terms", "rules of use"]),
        ("openrail++", ["rules of use"]),
        ("cc-by-nc-sa-4.0", ["no commercial use", "name the authors", "same licence"]),
        ("agpl-3.0", ["network", "whole output"]),
        ("apache-2.0", ["NOTICE"]),
        ("mit", ["copyright notice"]),
        ("Apache-2.0 OR gpl-3.0", ["NOTICE"]),
    ],
)
def test_what_a_licence_obliges_to_is_told(licence: str, words: list[str]) -> None:
    told = "\n".join(derive({"base": licence}).obligations)
    assert all(word in told for word in words)


def test_two_named_licences_both_oblige() -> None:
    told = "\n".join(derive({"base": "llama3.1", "acme/a:1.0.0": "gemma"}).obligations)
    assert "Built with Llama" in told and "gemma/terms" in told


def test_licence_that_is_free_of_duties_obliges_to_nothing() -> None:
    assert derive({"base": "cc0-1.0"}).obligations == ()


def test_conflict_is_refused_unless_accepted() -> None:
    derived = derive({"base": "gpl-3.0", "acme/a:1.0.0": "llama3.1"})
    with pytest.raises(LicenceRefused, match=r"gpl-3\.0 \(base\) and llama3\.1 \(acme/a:1\.0\.0\)") as raised:
        refuse_conflicts(derived)
    assert "--accept-licence" in (raised.value.hint or "")
    refuse_conflicts(derived, accept=True)
    refuse_conflicts(derive({"base": None}))
