"""Recipes: what they can say, and that everything else is told at once with its place."""

from __future__ import annotations

import json
import os
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from deltareg.build.settings import parameter_schedules
from deltareg.errors import BadRecipe, DeltaregError, NotAllowed
from deltareg.recipe import Build, Recipe, RecipeDelta, parse_recipe, read_recipe
from deltareg.versions import ANY, parse_range

DIGEST = "sha256:" + "0123456789abcdef" * 4

WHOLE = f"""
[build]
name = "acme/med-chat"
base = "hf://acme/base@main"
method = "ties"
dtype = "bfloat16"
seed = 9007199254740991
side-files = "target"
with-added = false
exact = true
allow-licence = ["Apache-2.0", "MIT OR Apache-2.0"]
accept-licence = true
exclude-newer = 2026-05-01T12:00:00Z

[build.parameters]
density = {{ "*" = 0.5, mlp = [0.2, 0.8], "model.layers.1?.*" = 0.9 }}
normalize = true
elect = "mass"
lambda = 1

[[delta]]
ref = "acme/instruct"
version = ">=1.2, <3"
weight = 0.5

[[delta]]
ref = "acme/med"
channel = "prod"
remote = "team"
weight = [0, 0.5, 1]
where = {{ mlp = 0, "*.q_proj.*" = [1, 2] }}
parameters = {{ density = {{ "*" = 0.3, mlp = [0.1, 0.2] }} }}

[[delta]]
ref = "acme/pinned"
digest = "{DIGEST}"
"""

MINIMAL = '[build]\nbase = "base"\n'
DELTA = '[[delta]]\nref = "acme/chat"\n'


def built(line: str) -> str:
    return f"{MINIMAL}{line}\n"


def asked(line: str) -> str:
    return f"{MINIMAL}{DELTA}{line}\n"


def faults_of(text: str) -> list[str]:
    with pytest.raises(BadRecipe) as caught:
        parse_recipe(text.encode(errors="surrogateescape"))
    found = caught.value.data["faults"]
    assert isinstance(found, list)
    return [str(fault) for fault in found]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


# --- what a recipe says -------------------------------------------------------------------------------------------


def test_every_key_is_read() -> None:
    recipe = parse_recipe(WHOLE.encode())
    build = recipe.build
    assert (build.name, build.base, build.method) == ("acme/med-chat", "hf://acme/base@main", "ties")
    assert (build.dtype, build.seed, build.side_files) == ("bfloat16", 2**53 - 1, "target")
    assert (build.with_added, build.exact, build.accept_licence) == (False, True, True)
    assert build.allow_licence == ["Apache-2.0", "MIT OR Apache-2.0"]
    assert build.exclude_newer == datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert build.parameters == {
        "density": {"*": 0.5, "mlp": [0.2, 0.8], "model.layers.1?.*": 0.9},
        "normalize": True,
        "elect": "mass",
        "lambda": 1.0,
    }
    instruct, med, pinned = recipe.delta
    assert (instruct.range, instruct.weight, instruct.wanted) == (parse_range(">=1.2, <3"), 0.5, ">=1.2, <3")
    assert (med.channel, med.remote, med.weight) == ("prod", "team", [0, 0.5, 1])
    assert (med.where, med.range, med.wanted) == ({"mlp": 0, "*.q_proj.*": [1, 2]}, ANY, "channel prod")
    assert (instruct.parameters, med.parameters) == ({}, {"density": {"*": 0.3, "mlp": [0.1, 0.2]}})
    assert (pinned.digest, pinned.wanted, pinned.reference.repository) == (DIGEST, DIGEST, "acme/pinned")


def test_what_is_not_said_has_its_default() -> None:
    recipe = parse_recipe((MINIMAL + DELTA).encode())
    assert recipe == Recipe(build=Build(base="base"), delta=[RecipeDelta(ref="acme/chat")])
    assert recipe.build.method == "linear"
    (delta,) = recipe.delta
    assert (delta.weight, delta.where, delta.range, delta.wanted) == (1.0, {}, ANY, "*")
    # A recipe may be begun without deltas: something adds them.
    assert parse_recipe(MINIMAL.encode()).delta == []


def test_a_value_keeps_its_type() -> None:
    """A bool is no number, a whole number is one, a list is a gradient, a table are rules."""
    recipe = parse_recipe(
        built(
            'parameters = { yes = true, one = 1, zero = 0, half = 0.5, word = "1", along = [1, 2], '
            "rules = { mlp = false, norm = 0, head = [0, 1] } }"
        ).encode()
    )
    found = recipe.build.parameters
    assert {name: type(value) for name, value in found.items()} == {
        "yes": bool,
        "one": float,
        "zero": float,
        "half": float,
        "word": str,
        "along": list,
        "rules": dict,
    }
    rules = found["rules"]
    assert isinstance(rules, dict)
    assert [(key, type(value)) for key, value in rules.items()] == [("mlp", bool), ("norm", float), ("head", list)]
    assert found["along"] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ('"2026-01-31"', datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T10:30:00", datetime(2026, 1, 31, 10, 30, tzinfo=UTC)),
        ("2026-01-31 10:30:00", datetime(2026, 1, 31, 10, 30, tzinfo=UTC)),
        ('"2026-01-31T10:30:00"', datetime(2026, 1, 31, 10, 30, tzinfo=UTC)),
        ("2026-01-31T10:30:00Z", datetime(2026, 1, 31, 10, 30, tzinfo=UTC)),
        ("2026-01-31T10:30:00+02:00", datetime(2026, 1, 31, 8, 30, tzinfo=UTC)),
        ('"2026-01-31T10:30:00-02:00"', datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
    ],
)
def test_a_date_is_read_in_all_its_spellings(written: str, moment: datetime) -> None:
    found = parse_recipe(built(f"exclude-newer = {written}").encode()).build.exclude_newer
    assert found == moment
    assert found is not None and found.tzinfo is UTC


def test_settings_in_the_same_file_are_let_be() -> None:
    settings = 'home = "registry"\nthreads = 4\nremote = "team"\n[remotes.team]\nurl = "/srv"\nanything = 1\n'
    assert parse_recipe(f"{settings}{MINIMAL}".encode()) == parse_recipe(MINIMAL.encode())


# --- digests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (asked("weight = 1"), asked("weight = 1.0")),
        (asked("weight = 1"), asked("")),
        (asked("weight = [0, 1]"), asked("weight = [0.0, 1e0]")),
        (asked("where = { mlp = 1, norm = 2 }"), asked("where.mlp = 1.0\nwhere.norm = 2.0")),
        (built("parameters = { a = 1, b = 2 }"), built("parameters = { b = 2.0, a = 1.0 }")),
        (built("exclude-newer = 2026-01-01"), built('exclude-newer = "2026-01-01T01:00:00+01:00"')),
        (built("seed = 0\nmethod = 'linear'"), f"# a comment\n\nthreads = 3\n{MINIMAL}"),
        (asked('version = "^1"'), asked('version = " ^1 "')),
        (MINIMAL + DELTA, DELTA + MINIMAL),
    ],
)
def test_what_says_the_same_has_the_same_digest(one: str, other: str) -> None:
    assert parse_recipe(one.encode()).digest == parse_recipe(other.encode()).digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (asked("weight = 1"), asked("weight = 2")),
        (asked("weight = [1, 2]"), asked("weight = [2, 1]")),
        (asked('version = "^1"'), asked('channel = "prod"')),
        (built("parameters = { a = true }"), built("parameters = { a = 1 }")),
        (built('parameters = { a = "1" }'), built("parameters = { a = 1 }")),
        (f"{MINIMAL}{DELTA}[[delta]]\nref = 'acme/med'\n", f"{MINIMAL}[[delta]]\nref = 'acme/med'\n{DELTA}"),
        # Of the selectors that match a tensor the last counts.
        (asked('where = { mlp = 1, "*" = 2 }'), asked('where = { "*" = 2, mlp = 1 }')),
        (built('parameters = { a = { mlp = 1, "*" = 2 } }'), built('parameters = { a = { "*" = 2, mlp = 1 } }')),
        (asked('parameters = { a = { mlp = 1, "*" = 2 } }'), asked('parameters = { a = { "*" = 2, mlp = 1 } }')),
        (asked("parameters = { a = 1 }"), asked("")),
        (asked("parameters = { a = 1 }"), built("parameters = { a = 1 }")),
    ],
)
def test_what_says_something_else_has_another_digest(one: str, other: str) -> None:
    assert parse_recipe(one.encode()).digest != parse_recipe(other.encode()).digest


NUMBERS = st.floats(-3.4e38, 3.4e38) | st.integers(-(10**12), 10**12)
SELECTORS = st.text(min_size=1, max_size=12)


@given(
    weight=NUMBERS | st.lists(NUMBERS, min_size=2, max_size=4),
    where=st.dictionaries(SELECTORS, NUMBERS | st.lists(NUMBERS, min_size=2, max_size=3), max_size=3),
    seed=st.integers(0, 2**53 - 1),
)
def test_a_recipe_reads_back_as_it_is_written_down(weight: Any, where: dict[str, Any], seed: int) -> None:
    said = {
        "build": {"base": "base", "seed": seed},
        "delta": [{"ref": "acme/chat", "weight": weight, "where": where}],
    }
    recipe = Recipe.model_validate(said, by_alias=True, by_name=False)
    dumped = json.loads(recipe.model_dump_json(by_alias=True))
    again = Recipe.model_validate(dumped, by_alias=True, by_name=False)
    assert again == recipe
    assert again.digest == recipe.digest
    assert list(again.delta[0].where) == list(where)


# --- faults -------------------------------------------------------------------------------------------------------

NUMBER = "takes a number of at most 3.4e+38, or two and more in a list, from first layer to last, not"
PLAIN = "takes a number, true or false, a text, or a list of two numbers and more"
SETTING = f"{PLAIN}, or a table of such values by selector, not"
MOMENT = "takes a date or a time, such as 2026-01-31 or 2026-01-31T12:00:00Z, not"
TABLES = "delta: takes tables, each under [[delta]] in double brackets, not"
MORE = "is more than a name: write ref ="
SEED = "takes a whole number from 0 to 9007199254740991, not"


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        # Unknown keys, at every level.
        (f"biuld = 1\n{MINIMAL}", ["unknown key biuld (did you mean build?)"]),
        (f"thread = 1\n{MINIMAL}", ["unknown key thread (did you mean threads?)"]),
        (f"zebra = 1\n{MINIMAL}", ["unknown key zebra"]),
        (f'{MINIMAL}[[deltas]]\nref = "a/b"', ["unknown key deltas (did you mean delta?)"]),
        (built("methd = 'ties'"), ["unknown key build.methd (did you mean build.method?)"]),
        (built("side_files = 'post'"), ["unknown key build.side_files (did you mean build.side-files?)"]),
        (built('"a.b" = 1'), ['unknown key build."a.b"']),
        (asked("versoin = '^1'"),
         ["unknown key delta 1 (acme/chat).versoin (did you mean delta 1 (acme/chat).version?)"]),
        (f"{MINIMAL}{DELTA}{DELTA.replace('chat', 'med')}wieght = 1",
         ["unknown key delta 2 (acme/med).wieght (did you mean delta 2 (acme/med).weight?)"]),
        # What is missing.
        (DELTA, ["build is missing"]),
        ("[build]\n", ["build.base is missing"]),
        (f"{MINIMAL}[[delta]]\nweight = 1", ["delta 1.ref is missing"]),
        # Tables.
        ("build = 'x'", ["build: takes a table, not 'x'"]),
        ("[[build]]\nbase = 'x'", ["build: takes a table, not [{'base': 'x'}]"]),
        (f'{MINIMAL}[delta]\nref = "a/b"', [f"{TABLES} {{'ref': 'a/b'}}"]),
        (f"delta = 'x'\n{MINIMAL}", [f"{TABLES} 'x'"]),
        (f"delta = ['x', 1]\n{MINIMAL}", ["delta 1: takes a table, not 'x'", "delta 2: takes a table, not 1"]),
        (built("parameters = 1"), ["build.parameters: takes a table, not 1"]),
        (asked("where = [1, 2]"), ["delta 1 (acme/chat).where: takes a table, not [1, 2]"]),
        # Texts, choices and switches.
        ("[build]\nbase = ''", ["build.base: is empty"]),
        ("[build]\nbase = 1", ["build.base: takes a text, not 1"]),
        (built("dtype = 'int8'"), ["build.dtype: takes 'bfloat16', 'float16', 'float32' or 'float64', not 'int8'"]),
        (built("side-files = 'base'"), ["build.side-files: takes 'post' or 'target', not 'base'"]),
        (built("exact = 1"), ["build.exact: takes true or false, not 1"]),
        (built("with-added = 'yes'"), ["build.with-added: takes true or false, not 'yes'"]),
        (built("allow-licence = 'MIT'"), ["build.allow-licence: takes a list, not 'MIT'"]),
        (built("allow-licence = ['MIT', 1]"), ["build.allow-licence 2: takes a text, not 1"]),
        (asked("remote = ''"), ["delta 1 (acme/chat).remote: is empty"]),
        (asked("ref = 1").replace('ref = "acme/chat"\n', ""), ["delta 1.ref: takes a text, not 1"]),
        # Numbers.
        (built("seed = -1"), [f"build.seed: {SEED} -1"]),
        (built("seed = true"), [f"build.seed: {SEED} true"]),
        (built("seed = 1.0"), [f"build.seed: {SEED} 1.0"]),
        (built("seed = 9007199254740992"), [f"build.seed: {SEED} 9007199254740992"]),
        *[
            (asked(f"weight = {value}"), [f"delta 1 (acme/chat).weight: {NUMBER} {shown}"])
            for value, shown in [
                ("true", "true"),
                ("'1'", "'1'"),
                ("nan", "nan"),
                ("inf", "inf"),
                ("-inf", "-inf"),
                ("3.5e38", "3.5e+38"),
                ("[]", "[]"),
                ("[1]", "[1]"),
                ("[1, true]", "[1, True]"),
                ("[1, nan]", "[1, nan]"),
                ("[1, '2']", "[1, '2']"),
                ("{ mlp = 1 }", "{'mlp': 1}"),
                ("2026-01-01", "2026-01-01"),
                ("1" + "0" * 400, "1" + "0" * 59 + "…"),
            ]
        ],
        (asked("where = { mlp = true, norm = 1 }"), [f"delta 1 (acme/chat).where.mlp: {NUMBER} true"]),
        (asked('where = { "model.layers.1?.*" = nan }'),
         [f'delta 1 (acme/chat).where."model.layers.1?.*": {NUMBER} nan']),
        # A key that is called as a type is: the place must name it all the same.
        (asked("where = { float = '1' }"), [f"delta 1 (acme/chat).where.float: {NUMBER} '1'"]),
        (asked('where = { "" = 1 }'), ['delta 1 (acme/chat).where."": is empty']),
        *[
            (built(f"parameters = {{ density = {value} }}"), [f"build.parameters.density: {SETTING} {shown}"])
            for value, shown in [
                ("nan", "nan"),
                ("inf", "inf"),
                ("[1]", "[1]"),
                ("['a', 'b']", "['a', 'b']"),
                ("[true, false]", "[True, False]"),
                ("[1, nan]", "[1, nan]"),
                ("{}", "{}"),
                ("2026-01-01", "2026-01-01"),
            ]
        ],
        (built("parameters = { density = { mlp = { x = 1 }, norm = 1, head = nan } }"),
         [f"build.parameters.density: mlp {PLAIN}, not {{'x': 1}}; head {PLAIN}, not nan"]),
        (built('parameters = { density = { "" = 1 } }'), ["build.parameters.density: a selector is empty"]),
        # Dates.
        (built("exclude-newer = 'yesterday'"), [f"build.exclude-newer: {MOMENT} 'yesterday'"]),
        (built("exclude-newer = ''"), [f"build.exclude-newer: {MOMENT} ''"]),
        (built("exclude-newer = '2026-02-30'"), [f"build.exclude-newer: {MOMENT} '2026-02-30'"]),
        (built("exclude-newer = 20260131"), [f"build.exclude-newer: {MOMENT} 20260131"]),
        (built("exclude-newer = true"), [f"build.exclude-newer: {MOMENT} true"]),
        (built("exclude-newer = 0001-01-01T00:00:00+10:00"),
         [f"build.exclude-newer: {MOMENT} 0001-01-01 00:00:00+10:00"]),
        # Names and versions.
        (asked("").replace("acme/chat", "acme/chat:1.0.0"),
         [f'delta 1 (acme/chat:1.0.0).ref: \'acme/chat:1.0.0\' {MORE} "acme/chat" and version = "1.0.0"']),
        (asked("").replace("acme/chat", "acme/chat:prod"),
         [f'delta 1 (acme/chat:prod).ref: \'acme/chat:prod\' {MORE} "acme/chat" and channel = "prod"']),
        (asked("").replace("acme/chat", f"acme/chat@{DIGEST}"),
         [f'delta 1 (acme/chat@{DIGEST}).ref: \'acme/chat@{DIGEST}\' {MORE} "acme/chat" and digest = "{DIGEST}"']),
        (asked("").replace("acme/chat", "chat"), ["delta 1 (chat).ref: 'chat' has no namespace"]),
        (built("name = 'acme/chat:1.0.0'"), ["build.name: 'acme/chat:1.0.0' is more than a name: write 'acme/chat'"]),
        (asked("channel = 'Prod'"),
         ["delta 1 (acme/chat).channel: 'Prod' is no channel: channels are lower-case words, such as latest or prod"]),
        (asked("digest = 'sha256:12'"),
         ["delta 1 (acme/chat).digest: takes sha256: and 64 lower-case hexadecimal digits, not 'sha256:12'"]),
        # Between keys.
        (asked("version = '1'\nchannel = 'prod'"),
         ["delta 1 (acme/chat): it has version and channel: give one of them"]),
        (MINIMAL + DELTA + DELTA, ["acme/chat is named more than once: give it one weight"]),
    ],
    ids=lambda value: repr(value[-40:]) if isinstance(value, str) else "",
)  # fmt: skip
def test_what_a_recipe_must_not_say(text: str, faults: list[str]) -> None:
    assert faults_of(text) == faults


@pytest.mark.parametrize("version", ["latest", "", "1.2.3.4", "^"])
def test_what_is_no_range_is_told_with_what_would_be_one(version: str) -> None:
    (fault,) = faults_of(asked(f"version = '{version}'"))
    assert fault.startswith(f"delta 1 (acme/chat).version: {version!r} is no range of versions: ")
    assert "write ^1.2" in fault


def test_every_fault_is_told_at_once() -> None:
    text = """
    thread = 1
    [build]
    methd = "ties"
    seed = true
    exclude-newer = "x"
    [[delta]]
    ref = "acme/chat"
    version = "x"
    channel = "prod"
    weight = nan
    [[delta]]
    ref = "acme/chat"
    colour = "red"
    """
    faults = faults_of(text)
    assert [re.split(r": | is missing| is named| \(did", fault)[0] for fault in faults] == [
        "build.base",
        "build.seed",
        "build.exclude-newer",
        "unknown key build.methd",
        "delta 1 (acme/chat).version",
        "delta 1 (acme/chat).weight",
        "unknown key delta 2 (acme/chat).colour",
        "unknown key thread",
        "delta 1 (acme/chat)",
        "acme/chat",
    ]
    with pytest.raises(BadRecipe) as caught:
        parse_recipe(text.encode(), "there/deltareg.toml")
    assert caught.value.message == "there/deltareg.toml: " + "; ".join(faults)
    assert caught.value.hint == "docs/recipes.md lists every key"


def test_of_very_many_faults_the_first_are_told() -> None:
    text = MINIMAL + "".join(f"x{number} = 1\n" for number in range(1000))
    assert len(faults_of(text)) == 1000
    with pytest.raises(BadRecipe, match=r"; unknown key build\.x19; and 980 more$"):
        parse_recipe(text.encode())


@given(
    st.recursive(
        st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.datetimes(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(sorted(name.replace("_", "-") for name in [*Build.model_fields, *RecipeDelta.model_fields])),
)
def test_no_value_of_any_key_is_told_in_words_of_the_program(value: Any, key: str) -> None:
    tables = {"build": {"base": "b", key: value}, "delta": [{"ref": "a/b", key: value}, {"ref": value}]}
    with pytest.raises(BadRecipe) as caught:
        parse_recipe(tomlkit.dumps(tables).encode())
    assert not re.search(r"Input should|valid (dictionary|string|number)|constrained|function-", caught.value.message)


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "# nothing\n", "threads = 4\n", '[remotes.team]\nurl = "/srv"\n'])
def test_a_file_without_a_recipe_is_told_to_have_none(text: str) -> None:
    with pytest.raises(BadRecipe, match="holds no recipe"):
        parse_recipe(text.encode())


@pytest.mark.parametrize(
    "data",
    [
        b"[build",
        b"[build]\nbase = ",
        b"[build]\nbase = 'a'\nbase = 'b'",
        b"[build]\nbase = '\xff'",
        MINIMAL.encode("utf-16"),
        b"[build]\nbase = '\0'",
        b"a = " + b"[" * 100_000,
        b"a = " + b"9" * 100_000,
        b"a." * 1000,
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_toml_is_told_with_its_file(data: bytes) -> None:
    with pytest.raises(BadRecipe, match=r"there/x\.toml is not valid TOML"):
        parse_recipe(data, "there/x.toml")


def test_a_recipe_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "deltareg.toml"
    path.write_text(WHOLE)
    assert read_recipe(path) == Recipe.read(str(path)) == parse_recipe(WHOLE.encode())


def test_without_a_file_there_is_no_recipe(tmp_path: Path) -> None:
    for path in (tmp_path / "deltareg.toml", tmp_path / "none" / "deltareg.toml"):
        with pytest.raises(BadRecipe, match="there is no recipe"):
            read_recipe(path)
    (tmp_path / "file").touch()
    with pytest.raises(BadRecipe, match="there is no recipe"):
        read_recipe(tmp_path / "file" / "deltareg.toml")


def test_a_directory_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "deltareg.toml").mkdir()
    with pytest.raises(DeltaregError, match=r"could not read the recipe: .*deltareg\.toml: Is a directory"):
        read_recipe(tmp_path / "deltareg.toml")


def test_an_enormous_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "deltareg.toml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadRecipe, match="is larger than 1048576 bytes"):
        read_recipe(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "deltareg.toml"
    path.write_text(WHOLE)
    path.chmod(0)
    with pytest.raises(NotAllowed, match="could not read the recipe"):
        read_recipe(path)


# --- the page -----------------------------------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
EXAMPLES = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL) if PAGE.exists() else []


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) > 2


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_page_is_sound(example: str) -> None:
    tables = tomllib.loads(example)
    # Where it is a part of a recipe, it is whole with a base.
    recipe = parse_recipe((example if "build" in tables else f"{example}\n{MINIMAL}").encode())
    parameter_schedules(recipe.build.method, recipe.build.parameters)
