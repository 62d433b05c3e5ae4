"""Which known word was meant."""

from __future__ import annotations

import pytest

from deltareg.spelling import did_you_mean, nearest

KNOWN = ("version", "channel", "digest", "weight", "where")


@pytest.mark.parametrize(
    ("word", "known"),
    [
        ("versoin", "version"),
        ("verion", "version"),
        ("version", "version"),
        ("wieght", "weight"),
        ("wher", "where"),
        ("zebra", None),
        ("", None),
    ],
)
def test_a_slip_leads_to_the_word_that_was_meant(word: str, known: str | None) -> None:
    assert nearest(word, KNOWN) == known


def test_of_several_near_words_the_nearest_is_proposed() -> None:
    assert nearest("remotes", ["remote", "remotes"]) == "remotes"
    assert nearest("remoet", ["remotes", "remote"]) == "remote"


def test_the_question_names_the_place_of_the_word() -> None:
    assert did_you_mean("versoin", KNOWN) == " (did you mean version?)"
    assert did_you_mean("versoin", KNOWN, "delta 2.") == " (did you mean delta 2.version?)"


def test_without_a_near_word_nothing_is_asked() -> None:
    assert did_you_mean("zebra", KNOWN) == ""
    assert did_you_mean("version", []) == ""


def test_known_words_may_come_from_anywhere() -> None:
    assert nearest("versoin", (word for word in KNOWN)) == "version"
