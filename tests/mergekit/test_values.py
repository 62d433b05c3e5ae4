"""Settings of mergekit as settings of a recipe: the same number for every tensor, by mergekit's own reckoning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltareg.merge import Gradient, Schedule, subjects_of
from deltareg.mergekit.values import Places, Rule, Theirs, matching, recipe_setting, shares, value_at

theirs = pytest.importorskip("mergekit.config", reason="needs the extra `oracle`")

NAMES = (
    "model.embed_tokens.weight",
    *(f"model.layers.{n}.{part}.weight" for n in range(12) for part in ("self_attn.q_proj", "mlp.up_proj")),
    "model.norm.weight",
    "lm_head.weight",
)
ONE_LAYER = ("encoder.embed.weight", "encoder.layer.0.attention.weight", "encoder.layer.0.mlp.weight", "pooler.weight")
ODD = ("norm", "a[0].*?.weight", "layers.0.a", "layers.1.a", "lm_head")

numbers = st.floats(-3, 3).map(lambda value: round(value, 3))
values = numbers | st.lists(numbers, min_size=2, max_size=5).map(tuple)
filters = st.sampled_from(["mlp", "layers.1", "layers.11.", "norm", "embed", "weight", "[0]", "*?", "nowhere", "a"])
rules = st.lists(st.tuples(filters, values), max_size=4)


def _mergekit(conditions: Sequence[tuple[str | None, Theirs]], name: str, along: float) -> Any:
    """What mergekit itself sets for a tensor."""
    setting = [
        theirs.ConditionalParameter(value=list(value) if isinstance(value, tuple) else value, filter=filter)
        for filter, value in conditions
    ]
    return theirs.evaluate_setting(name, setting, along, validate=float)


def _along(names: Sequence[str], name: str) -> float:
    """mergekit's t: counted in the layers, 1 where there is one, 0 before and behind them."""
    parts = name.split(".")
    number = next((int(part) for part in parts[1:] if part.isdigit()), None)
    if number is None:
        return 0.0
    count = 1 + max(int(part) for other in names for part in other.split(".")[1:] if part.isdigit())
    return number / (count - 1) if count > 1 else 1.0


@settings(deadline=None)
@given(st.sampled_from([NAMES, ONE_LAYER, ODD]), rules, values)
def test_every_tensor_has_mergekits_value(
    names: tuple[str, ...], conditions: list[tuple[str, Theirs]], last: Theirs
) -> None:
    everything: list[tuple[str | None, Theirs]] = [*conditions, (None, last)]
    given_rules = [Rule(filter, value, number) for number, (filter, value) in enumerate(everything)]
    kept, lost = matching(given_rules, names)
    subjects = subjects_of(names)
    table = recipe_setting(kept, Places(subjects))
    schedule = Schedule(
        tuple(
            (None if selector == "*" else selector, Gradient(tuple(value)) if isinstance(value, list) else value)
            for selector, value in table.items()
        )
    )
    for name in names:
        expected = _mergekit(everything, name, _along(names, name))
        assert schedule.at(subjects[name]) == pytest.approx(expected, rel=1e-12, abs=1e-12), name
        assert value_at(given_rules, name, _along(names, name)) == pytest.approx(expected)
    assert all(not any(rule.filter in name for name in names) for rule in lost if rule.filter)
    for selector in schedule.selectors:
        assert any(Schedule(((selector, 1.0),)).at(subject) is not None for subject in subjects.values())


def test_gradient_is_that_of_the_layers_alone() -> None:
    table = recipe_setting([Rule(None, (0.0, 1.0), 1)], Places(subjects_of(NAMES)))
    assert table == {"*": [0.0, 1.0], "model.norm.weight": 0.0, "lm_head.weight": 0.0}


def test_plain_value_stays_plain() -> None:
    assert recipe_setting([Rule(None, 0.5, 1)], Places(subjects_of(NAMES))) == {"*": 0.5}


def test_first_condition_comes_last() -> None:
    given_rules = [Rule("mlp", 0.1, 1), Rule("layers.1.", 0.2, 2), Rule(None, 0.3, 3)]
    table = recipe_setting(given_rules, Places(subjects_of(NAMES)))
    assert list(table.items()) == [("*", 0.3), ("*layers.1.*", 0.2), ("*mlp*", 0.1)]


def test_shares_of_constant_weights() -> None:
    divided = shares([[Rule(None, 1.0, 1)], [Rule(None, 3.0, 2)]])
    assert divided == [[Rule(None, 0.25, 1)], [Rule(None, 0.75, 2)]]


def test_shares_of_gradients_with_one_sum() -> None:
    divided = shares([[Rule(None, (0.0, 2.0), 1)], [Rule(None, (2.0, 0.0), 2)], [Rule(None, 2.0, 3)]])
    assert divided == [[Rule(None, (0.0, 0.5), 1)], [Rule(None, (0.5, 0.0), 2)], [Rule(None, 0.5, 3)]]


@pytest.mark.parametrize(
    "columns",
    [
        [[Rule(None, (0.0, 1.0), 1)], [Rule(None, 1.0, 2)]],  # another sum in each layer
        [[Rule(None, (0.0, 1.0), 1)], [Rule(None, (1.0, 0.5, 0.0), 2)]],  # points at other layers
        [[Rule(None, 1.0, 1)], [Rule(None, -1.0, 2)]],  # nothing to divide by
        [[Rule("mlp", 1.0, 1), Rule(None, 1.0, 1)], [Rule(None, 1.0, 2)]],  # other conditions
    ],
)
def test_shares_that_are_no_gradients_are_none(columns: list[list[Rule]]) -> None:
    assert shares(columns) is None
