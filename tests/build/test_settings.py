"""Weights and parameters of recipes and locks, as what merges takes them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from deltareg.build.settings import parameter_schedules, parameter_settings, weight_schedule
from deltareg.errors import InvalidArgument
from deltareg.merge import METHODS, Gradient, Schedule
from deltareg.merge.schedule import Subject
from deltareg.recipe import Number, Setting

NUMBERS = st.floats(-3.4e38, 3.4e38)
GRADIENTS = st.lists(NUMBERS, min_size=2, max_size=4)
PLAIN = st.booleans() | NUMBERS | st.text(max_size=6) | GRADIENTS
SELECTORS = st.sampled_from(["*", "mlp", "norm", "*.q_proj.*", "model.layers.1?.*"])
SETTINGS = PLAIN | st.dictionaries(SELECTORS, PLAIN, min_size=1, max_size=4)

SUBJECTS = [
    Subject("model.layers.11.mlp.up_proj.weight", "mlp", 0.75),
    Subject("model.layers.2.self_attn.q_proj.weight", "attention", 0.25),
    Subject("model.norm.weight", "norm", 1.0),
    Subject("model.embed_tokens.weight", "embedding", 0.0),
]
MATCHES = [{"*", "mlp", "model.layers.1?.*"}, {"*", "*.q_proj.*"}, {"*", "norm"}, {"*"}]
"""Which of the selectors are for which subject."""


def along(value: Any, depth: float) -> Any:
    """What a value of a recipe is at a depth: a gradient's points stand at equal distances."""
    if not isinstance(value, list):
        return value
    lower = min(int(depth * (len(value) - 1)), len(value) - 2)
    share = depth * (len(value) - 1) - lower
    return value[lower] * (1 - share) + value[lower + 1] * share


# --- weights ------------------------------------------------------------------------------------------------------


@given(NUMBERS | GRADIENTS, st.dictionaries(SELECTORS, NUMBERS | GRADIENTS, max_size=4))
def test_of_the_selectors_that_match_a_tensor_the_last_gives_its_weight(weight: Any, where: dict[str, Any]) -> None:
    schedule = weight_schedule(weight, where)
    for subject, selectors in zip(SUBJECTS, MATCHES, strict=True):
        found = [value for selector, value in where.items() if selector in selectors]
        assert schedule.at(subject) == along([weight, *found][-1], subject.depth)


def test_a_weight_is_a_float_however_it_is_written() -> None:
    number: TypeAdapter[Number] = TypeAdapter(Number)
    for written in (1, 1.0):
        value = weight_schedule(number.validate_python(written), {}).plain
        assert (value, type(value)) == (1.0, float)
    assert weight_schedule(1, {}) == weight_schedule(1.0, {})


# --- parameters ---------------------------------------------------------------------------------------------------

TIES = sorted(METHODS["ties"].parameters)


@settings(suppress_health_check=[HealthCheck.too_slow])  # of a busy machine, not of the examples
@given(st.dictionaries(st.sampled_from(TIES), SETTINGS))
def test_parameters_come_back_from_their_schedules(settings: dict[str, Any]) -> None:
    schedules = parameter_schedules("ties", settings)
    again = parameter_settings(schedules)
    # One rule for everything is written as its value.
    plain = {
        name: setting["*"] if isinstance(setting, dict) and list(setting) == ["*"] else setting
        for name, setting in settings.items()
    }
    assert again == plain
    assert parameter_schedules("ties", again) == schedules
    for name, setting in again.items():
        assert type(setting) is type(plain[name])  # true is no 1
        if isinstance(setting, dict):
            assert list(setting) == list(plain[name])
        # What a lock holds is what a recipe may hold.
        assert TypeAdapter[Any](Setting).validate_python(setting, strict=True) == setting


@given(st.lists(st.tuples(st.sampled_from([None, "*", "mlp", "*.q_proj.*"]), NUMBERS), min_size=1, max_size=6))
def test_a_schedule_means_the_same_once_it_was_written_down(rules: list[tuple[str | None, float]]) -> None:
    """Selectors that occur twice, as the command line allows it, among them."""
    schedule = Schedule(tuple(rules))
    again = parameter_schedules("ties", parameter_settings({"density": schedule}))["density"]
    assert [again.at(subject) for subject in SUBJECTS] == [schedule.at(subject) for subject in SUBJECTS]


def test_a_gradient_is_a_list() -> None:
    schedules = parameter_schedules("ties", {"density": [0.2, 0.8], "lambda": {"*": 1.0, "mlp": [0.0, 1.0]}})
    assert schedules["density"] == Schedule(((None, Gradient((0.2, 0.8))),))
    assert schedules["lambda"] == Schedule(((None, 1.0), ("mlp", Gradient((0.0, 1.0)))))


def test_a_parameter_that_the_method_does_not_have_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(InvalidArgument, match="ties has no parameter 'densty'") as caught:
        parameter_schedules("ties", {"densty": 0.5})
    assert "density" in str(caught.value.hint)
    with pytest.raises(InvalidArgument, match="linear has no parameter"):
        parameter_schedules("linear", {"density": 0.5})
