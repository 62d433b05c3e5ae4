"""Patterns of an adapter's config: PEFT's own answer, whatever they are and however many there are."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from deltareg.errors import BadAdapter
from deltareg.lora.config import parse_config
from deltareg.lora.patterns import BadPattern, Patterns, patterns_of
from tests.lora.models import peft


def by_peft(patterns: dict[str, int], module: str) -> int:
    """What PEFT takes for a module; 0 where it has nothing of its own."""
    return patterns.get(peft.utils.other.get_pattern_key(patterns.keys(), module), 0)


def ours(patterns: dict[str, int]) -> Patterns[int]:
    made = Patterns[int]()
    for pattern, value in patterns.items():
        made.add(pattern, value)
    return made


def drawn(draw: random.Random, depth: int = 0) -> str:
    """A random expression of few characters."""
    kind = draw.random()
    if depth > 3 or kind < 0.45:
        return draw.choice(["a", "b", ".", r"\.", "[ab]", "[^a]", "[]b]", r"\d", r"\w", "ab", "a.b", "0", "{", "b-"])
    if kind < 0.65:
        return drawn(draw, depth + 1) + drawn(draw, depth + 1)
    if kind < 0.8:
        other = draw.choice(["", drawn(draw, depth + 1)])
        return f"({draw.choice(['', '?:'])}{drawn(draw, depth + 1)}|{other})"
    times = ["*", "+", "?", "{2}", "{1,2}", "{,2}", "{2,}", "*?", "+?", "??", "{0}", "{0,3}", "{,}"]
    return f"({drawn(draw, depth + 1)}){draw.choice(times)}"


@pytest.mark.parametrize("seed", range(8))
def test_random_patterns_match_what_peft_says(seed: int) -> None:
    draw = random.Random(seed)
    matched = 0
    for _ in range(200):
        patterns: dict[str, int] = {}
        for number in range(draw.randint(1, 4)):
            start, end = draw.choice(["", "", "", "^"]), draw.choice(["", "", "", "$", f"|{drawn(draw)}"])
            patterns.setdefault(start + drawn(draw) + end, number + 1)
        made = ours(patterns)
        for _ in range(10):
            name = "".join(draw.choice("ab.01{-") for _ in range(draw.randint(0, 9)))
            due = by_peft(patterns, name)
            matched += due > 0
            assert made.get(name, 0) == due, (patterns, name)
    assert matched > 100


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "layers.0.q_proj",
        r"^model\.layers\.0\.q_proj$",
        "^model.layers.0.q_proj",
        "model_layers.0.q_proj",
        r"layers\.(0|1)\..*_proj",
        r".*\.[0-9]+\.(?:q|k)_proj$",
        "proj",
        "layers",
        "^layers.0.q_proj$",
        r"^(model\.)?layers\.\d{1,2}\.[qk]_proj$",
        r"mödel\.q|q_proj",
    ],
)
def test_usual_patterns_match_what_peft_says(pattern: str) -> None:
    for name in (
        "model.layers.0.q_proj",
        "layers.0.q_proj",
        "q_proj",
        "model.layers.10.k_proj",
        "my_q_proj",
        "x.mödel.q",
    ):
        assert ours({pattern: 1}).get(name, 0) == by_peft({pattern: 1}, name), name


@pytest.mark.parametrize(
    ("pattern", "end", "matches"),
    [
        ("(a+)+b", "b", True),
        ("(a|a)*b", "b", True),
        ("(a|aa)+b", "b", True),
        ("((a+)b?)+c", "bac", True),
        ("(a?){60}a{60}b", "b", True),
        ("a?" * 60 + "a" * 60 + "b", "b", True),
        ("(a|a)" * 60 + "b", "b", True),
        ("(.*)*x", "x", True),
        (".*" * 200 + "x", "x", True),
        ("([a-z]+)*[0-9]", "7", True),
        ("((a{1,9}){1,9}){1,5}b", "b", True),
        ("(x+x+)+y|(a|b|ab)*c", "babac", True),
        ("(a+)+b", "c", False),
        ("(.*.*)+x", "y", False),
    ],
)
def test_patterns_that_python_would_try_for_years_are_matched(pattern: str, end: str, matches: bool) -> None:
    made = ours({pattern: 1})
    assert made.get("a" * 5000, 0) == 0
    assert made.get("m." + "a" * 60 + end, 0) == int(matches)


def test_thousands_of_patterns_and_modules_are_looked_up() -> None:
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj" for layer in range(32) for expert in range(128)]
    patterns = {name.removeprefix("model."): number for number, name in enumerate(names)}
    made = ours(patterns)
    assert len(made) == 4096
    assert [made.get(name, -1) for name in names] == list(range(4096))
    assert made.get("model.layers.32.mlp.experts.0.up_proj", -1) == -1


def test_hundreds_of_expressions_and_thousands_of_modules_are_matched() -> None:
    patterns = {rf"layers\.{layer}\..*\.(q|k)_proj": layer for layer in range(400)}
    made = ours(patterns)
    for layer in range(400):
        for name in ("self_attn.q_proj", "cross.attn.k_proj"):
            assert made.get(f"model.layers.{layer}.{name}", -1) == layer
        assert made.get(f"model.layers.{layer}.self_attn.v_proj", -1) == -1


def test_what_takes_too_long_even_so_is_refused() -> None:
    made = ours({f"(a|b)*a(a|b){{{length}}}x": length for length in range(60, 90)})
    draw = random.Random(0)
    with pytest.raises(BadAdapter, match="too long") as caught:
        for _ in range(3000):
            made.get("".join(draw.choice("ab") for _ in range(200)), 0)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        (r"(?!vision).*", "(?"),
        (r"(?=a)a", "(?"),
        (r"(?P<x>a)(?P=x)", "(?"),
        (r"(a)\1", r"\1"),
        (r"a\b", r"\b"),
        ("a*+", "give back"),
        ("a++", "give back"),
        ("a^b", "^"),
        ("a$b", "$"),
        ("(a$)b", "$"),
        ("a{20000}", "repetitions"),
        ("((a{900}){900}){900}", "repetitions"),
        ("((){900}a){900}" + "(){1001}", "repetitions"),
        ("(" * 60 + "a" + ")" * 60, "groups"),
        ("(", "regular"),
        ("a{2}{3}", "regular"),
        ("a)|(b", "regular"),
        ("a" * 513, "512"),
    ],
)
def test_what_cannot_be_matched_safely_is_refused_with_the_reason(pattern: str, word: str) -> None:
    with pytest.raises(BadPattern) as caught:
        ours({pattern: 1})
    assert word in str(caught.value)
    with pytest.raises(BadAdapter) as told:
        parsed(alpha_pattern={pattern: 3})
    assert "alpha_pattern" in told.value.message and word in told.value.message


def test_expressions_have_a_bounded_length_together() -> None:
    with pytest.raises(BadAdapter, match="16384"):
        parsed(rank_pattern={f"(a{number}){{200}}": 1 for number in range(100)})


def parsed(**more: Any) -> Any:
    return parse_config(json.dumps({"peft_type": "LORA", "r": 4, **more}).encode(), "adapter")


def test_config_takes_ranks_and_alphas_by_pattern() -> None:
    config = parsed(rank_pattern={"q": 2, r"layers\.(1|2)\.k": 3}, alpha_pattern={"k": 12.0}, lora_alpha=4)
    assert [config.rank_of(name) for name in ("m.q", "m.layers.2.k", "m.layers.3.k")] == [2, 3, 4]
    assert [config.scale_of(name) for name in ("m.q", "m.layers.2.k", "m.layers.3.k")] == [2.0, 4.0, 3.0]


def test_pattern_of_a_module_matches_no_other_one() -> None:
    parts = ("self_attn.q", "self_attn.k", "self-attn.q", "self_attn_q", "self_attnxq", "q", "a (b", "é.q")
    names = [f"{start}layers.{number}.{part}" for start in ("", "z.", "zz") for number in range(150) for part in parts]
    names += [f"0.{part}" for part in parts]
    patterns = patterns_of(names)
    assert list(patterns) == names and len(set(patterns.values())) == len(names) > 3600
    made = ours({patterns[name]: number for number, name in enumerate(names)})
    # None comes before its own, wherever it stands.
    back = ours({patterns[name]: number for number, name in reversed([*enumerate(names)])})
    assert all(made.get(name, -1) == back.get(name, -1) == number for number, name in enumerate(names))
    # Another start makes a longer name, another character takes the place of a dot.
    assert patterns["zzlayers.7.self_attn.k"] == "zzlayers.7.self_attn.k"
    assert patterns["layers.7.self_attn.k"] == r"^layers\.7\.self_attn\.k$"
    assert patterns["z.layers.7.self_attn.k"] == r"^z\.layers\.7\.self_attn\.k$"
    assert patterns["zzlayers.7.self_attn.q"] == r"^zzlayers\.7\.self_attn\.q$"
    assert patterns["zzlayers.7.self_attn_q"] == "zzlayers.7.self_attn_q"
    few = names[::97]
    assert [by_peft({patterns[name]: number for number, name in enumerate(few, 1)}, name) for name in few] == [
        *range(1, len(few) + 1)
    ]
