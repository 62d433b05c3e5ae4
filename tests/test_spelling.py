"""Slips are told from strangers."""

from __future__ import annotations

from deltareg.spelling import did_you_mean, nearest


def test_the_nearest_word_is_found() -> None:
    assert nearest("weigth", ["ref", "weight", "where"]) == "weight"
    assert nearest("zebra", ["ref", "weight", "where"]) is None
    assert nearest("weight", []) is None


def test_the_question_has_the_place_in_front() -> None:
    assert did_you_mean("bas", ["base"], "build.") == " (did you mean build.base?)"
    assert did_you_mean("zebra", ["base"], "build.") == ""
