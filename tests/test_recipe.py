"""Recipes are read as a whole, or refused with every fault."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltareg.errors import BadRecipe, DeltaregError
from deltareg.recipe import Recipe, RecipeDelta, parse_recipe, read_recipe

LEAST = '[build]\nbase = "b"\n'


def faults_of(text: str) -> list[str]:
    with pytest.raises(BadRecipe) as caught:
        parse_recipe(text.encode(), "deltareg.toml")
    found: Any = caught.value.data["faults"]
    assert all(fault in caught.value.message for fault in found)
    return found


def test_a_recipe_says_what_it_says() -> None:
    recipe = parse_recipe(
        b'threads = 4\n[remotes.team]\nurl = "/a"\n'
        b'[build]\nname = "acme/mix"\nbase = "./b"\nmethod = "ties"\nside-files = "target"\nwith-added = false\n'
        b'parameters = { density = 1, normalize = true, kind = "a", steps = [1, 2], by = { "*" = false, mlp = 2 } }\n'
        b'[[delta]]\nref = "acme/one"\nversion = "^1.2"\nweight = 1\n'
        b'[[delta]]\nref = "acme/two"\nchannel = "prod"\nweight = [0, 1.5]\nwhere = { mlp = 2, "model.*" = [1, 2] }\n'
    )
    assert recipe.build.side_files == "target"
    assert recipe.build.with_added is False
    settings = recipe.build.parameters
    assert settings == {
        "density": 1.0,
        "normalize": True,
        "kind": "a",
        "steps": [1.0, 2.0],
        "by": {"*": False, "mlp": 2.0},
    }
    # A truth value stays one; a whole number becomes a float.
    assert settings["normalize"] is True
    assert isinstance(settings["by"], dict) and settings["by"]["*"] is False
    assert isinstance(settings["density"], float)
    one, two = recipe.delta
    assert (one.weight, type(one.weight), one.wanted, two.wanted) == (1.0, float, "^1.2", "channel prod")
    assert (two.weight, two.where) == ([0.0, 1.5], {"mlp": 2.0, "model.*": [1.0, 2.0]})


def test_every_fault_is_told_with_its_place_and_the_nearest_key() -> None:
    text = """
thread = 4
[build]
bas = "x"
seed = true
method = 3
dtype = "bf16"
parameters = { k = [1], l = { a = [1, 2], b = { c = 1 } }, m = inf }
exclude-newer = 3
with_added = true
allow-licence = ["!!"]
[[delta]]
ref = "acme/med:1.0.0"
weight = "1"
[[delta]]
ref = "acme/chat"
weigth = 1
weight = nan
version = "^"
[[delta]]
ref = "acme/other"
where = { mlp = true, attention = [1], norm = -inf }
[[delta]]
weight = [1, "a"]
[[delta]]
ref = "acme/chat"
"""
    assert sorted(faults_of(text)) == sorted(
        [
            "unknown key thread (did you mean threads?)",
            "build.base: it is missing",
            "unknown key build.bas (did you mean build.base?)",
            "unknown key build.with_added (did you mean build.with-added?)",
            "build.seed: takes a whole number, not true",
            "build.method: takes a text, not 3",
            "build.dtype: takes 'bfloat16', 'float16', 'float32' or 'float64'",
            "build.parameters.k: a gradient has at least two numbers: write a number, or [first, …, last]",
            "build.parameters.l: for b it takes a number, a text, true, false or [first, …, last], not a table",
            "build.parameters.m: takes finite numbers of at most 3.4e+38, not inf",
            "build.exclude-newer: takes a date, such as 2026-01-31, not 3",
            "build.allow-licence.0: '!!' is not written as a licence: at most 128 letters, digits, '.', '+' and '-', "
            "joined by AND, OR or WITH",
            "delta 1 (acme/med:1.0.0).ref: 'acme/med:1.0.0' is more than a name: write ref = 'acme/med' and "
            "version = …",
            "delta 1 (acme/med:1.0.0).weight: takes a number, or several as [first, …, last], not '1'",
            "unknown key delta 2 (acme/chat).weigth (did you mean delta 2 (acme/chat).weight?)",
            "delta 2 (acme/chat).weight: takes finite numbers of at most 3.4e+38, not nan",
            "delta 2 (acme/chat).version: '^' is no range of versions: '^' is no condition; write ^1.2 (nothing that "
            "breaks), ~1.2.3 (patches alone), 1.2.3 (exactly this), 1.* or >=2, <3",
            "delta 3 (acme/other).where.mlp: takes a number, or several as [first, …, last], not true",
            "delta 3 (acme/other).where.attention: a gradient has at least two numbers: write a number, or "
            "[first, …, last]",
            "delta 3 (acme/other).where.norm: takes finite numbers of at most 3.4e+38, not -inf",
            "acme/chat is named more than once: give it one weight",
            "delta 4.ref: it is missing",
            "delta 4.weight: takes a number, or several as [first, …, last], not 'a'",
        ]
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[delta]]\nref = "a/b"\n', "build: it is missing"),
        ("build = 3\n", "build: takes a table, not 3"),
        (LEAST + '[delta]\nref = "a/b"\n', "delta: takes an array, not a table"),
        ("delta = [1]\n" + LEAST, "delta 1: takes a table, not 1"),
        (LEAST + '[[delta]]\nref = "a/b"\n' * 2, "a/b is named more than once: give it one weight"),
        (
            LEAST + '[[delta]]\nref = "a/b"\nversion = "1"\nchannel = "x"\n',
            "delta 1 (a/b): it has version and channel: give one of them",
        ),
        (LEAST + "parameters = 1\n", "build.parameters: takes a table, not 1"),
        (LEAST + '[[delta]]\nref = "a/b"\ndigest = "sha256:12"\n', "delta 1 (a/b).digest: "),
        (LEAST + '[[delta]]\nref = "a/b"\nchannel = "No"\n', "delta 1 (a/b).channel: 'No' is no channel"),
        (LEAST + f'[[delta]]\nref = "a/b"\nweight = {"9" * 400}\n', "delta 1 (a/b).weight: takes finite numbers"),
        (LEAST + 'exclude-newer = "soon"\n', "build.exclude-newer: takes a date"),
        (LEAST + "exclude-newer = 12:00:00\n", "build.exclude-newer: takes a date"),
        (LEAST + 'exclude-newer = "9999-12-31T23:59:59-10:00"\n', "build.exclude-newer: takes a date"),
        (LEAST + "seed = -1\n", "build.seed: "),
    ],
)
def test_what_a_recipe_must_not_say(text: str, told: str) -> None:
    (fault,) = faults_of(text)
    assert fault.startswith(told)
    assert not any(word in fault for word in ("RecipeDelta", "function-", "constrained", "Input should"))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
        ('"2026-01-02"', datetime(2026, 1, 2, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ('"2026-01-02T03:04:05Z"', datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
    ],
)
def test_dates_are_those_of_toml_or_texts(written: str, meant: datetime) -> None:
    assert parse_recipe(f"{LEAST}exclude-newer = {written}\n".encode()).build.exclude_newer == meant


@pytest.mark.parametrize(
    "data",
    [b"", b"threads = 4\n", b"[build\n", b"\xff\xfe", b"[build]\nbase = '\xff'\n", b"a = " + b"[" * 5000 + b"]" * 5000],
    ids=["empty", "settings", "cut", "utf16", "latin1", "deep"],
)
def test_what_is_no_recipe_is_refused(data: bytes) -> None:
    with pytest.raises(BadRecipe):
        parse_recipe(data)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: (LEAST + text).encode("utf-8", "ignore")))
def test_any_bytes_are_a_recipe_or_refused(data: bytes) -> None:
    with suppress(BadRecipe):
        assert isinstance(parse_recipe(data), Recipe)


def test_what_lies_in_its_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="there is no recipe") as caught:
        read_recipe(tmp_path / "deltareg.toml")
    assert "deltareg new" in str(caught.value.hint)
    with pytest.raises(DeltaregError, match="could not read the recipe"):
        read_recipe(tmp_path)
    (tmp_path / "huge.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(BadRecipe, match="larger"):
        read_recipe(tmp_path / "huge.toml")


def test_the_digest_is_that_of_the_meaning() -> None:
    one = parse_recipe(b'[build]\nbase = "b"\n[[delta]]\nref = "a/b"\nweight = 1\n')
    same = parse_recipe(b'# words\n[[delta]]\nweight = 1.0\nref = "a/b"\n[build]\nmethod = "linear"\nbase = "b"\n')
    other = parse_recipe(b'[build]\nbase = "b"\n[[delta]]\nref = "a/b"\nweight = 1.5\n')
    assert one.digest == same.digest != other.digest


def test_a_recipe_is_read_from_its_json_again() -> None:
    recipe = parse_recipe(
        (LEAST + 'exclude-newer = 2026-01-02\n[[delta]]\nref = "a/b"\nwhere = { mlp = 1 }\n').encode()
    )
    again = Recipe.model_validate(json.loads(recipe.model_dump_json(by_alias=True)))
    assert again == recipe


def test_a_delta_without_a_version_wants_any() -> None:
    delta = RecipeDelta(ref="a/b")
    assert (delta.wanted, str(delta.range), delta.weight) == ("*", "*", 1.0)
