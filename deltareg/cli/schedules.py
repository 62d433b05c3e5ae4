"""Weights and parameters as the command line says them: `name[selector]=value`, `first..last` along the layers.

`name@reference` is a parameter of one delta alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from deltareg.errors import InvalidArgument
from deltareg.merge import Gradient, Schedule, Value, method_of

__all__ = ["parse_on", "parse_own_parameters", "parse_parameters", "parse_weights"]

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
# From the first bracket to the last: patterns of names have brackets of their own.
_SELECTED = re.compile(r"(?P<name>[^\[]*)\[(?P<selector>.*)\]")


def parse_weights(deltas: Sequence[str], rules: Sequence[str]) -> list[tuple[str, Schedule]]:
    """Each of `deltas`, `reference[=weight]`, with the `rules`, `reference[selector]=weight`, that are for it.

    The weight is 1 where none is given. Raises InvalidArgument.
    """
    found: list[tuple[str, Schedule]] = []
    for text in deltas:
        reference, equals, weight = text.rpartition("=")
        if not equals:
            reference, weight = text, "1"
        found.append((reference, Schedule(((None, _number(weight, f"no weight for {reference}", reference)),))))
    for text in rules:
        reference, selector, weight = _split(text, "--weight", "acme/search:1.0.0[mlp]=0.8")
        value = _number(weight, f"no weight for {reference}", f"{reference}[{selector}]")
        _refuse_stranger("--weight", reference, [name for name, _ in found])
        found = [
            (name, Schedule((*schedule.rules, (selector, value))) if name == reference else schedule)
            for name, schedule in found
        ]
    return found


def parse_on(deltas: Sequence[str]) -> list[tuple[str, float]]:
    """Each of `deltas`, `reference[=weight]`, with its weight, 1 where none is given. Raises InvalidArgument."""
    found: list[tuple[str, float]] = []
    for text in deltas:
        reference, equals, weight = text.rpartition("=")
        value = _number(weight, f"no weight for {reference}", reference) if equals else 1.0
        if isinstance(value, Gradient):
            raise InvalidArgument(f"{weight} is no weight for {reference}", hint=f"one number: --on {reference}=0.5")
        found.append((reference if equals else text, value))
    return found


def parse_parameters(method: str, rules: Sequence[str]) -> dict[str, Schedule]:
    """The `rules`, `name[selector]=value`, by name. Raises InvalidArgument."""
    found: dict[str, Schedule] = {}
    for text in rules:
        _add_rule(found, method, *_split(text, "--param", "density=0.5"))
    return found


def parse_own_parameters(
    method: str, rules: Sequence[str], references: Sequence[str]
) -> tuple[dict[str, Schedule], dict[str, dict[str, Schedule]]]:
    """As `parse_parameters`, and `name@reference[selector]=value` for one of the `references`, by these."""
    shared: dict[str, Schedule] = {}
    own: dict[str, dict[str, Schedule]] = {reference: {} for reference in references}
    for text in rules:
        what, selector, value = _split(text, "--param", "density=0.5")
        name, at, reference = what.partition("@")
        if at:
            _refuse_stranger(f"--param {name}", reference, references)
        _add_rule(own[reference] if at else shared, method, name, selector, value)
    return shared, own


def _add_rule(found: dict[str, Schedule], method: str, name: str, selector: str | None, text: str) -> None:
    known = method_of(method)
    if name not in known.parameters:
        raise InvalidArgument(
            f"{method} has no parameter {name!r}", hint=f"parameters of {method}: {', '.join(known.parameters)}"
        )
    parameter = known.parameters[name]
    gradient = ".." in text and parameter.kind is float
    setting: Value | Gradient = _gradient(text, f"no {name}", name) if gradient else parameter.parse(text)
    found[name] = Schedule((*found.get(name, Schedule(())).rules, (selector, setting)))


def _refuse_stranger(option: str, reference: str, references: Sequence[str]) -> None:
    if reference not in references:
        raise InvalidArgument(
            f"{option} is for {reference}, which is not applied",
            hint=f"name it as it is named before: {', '.join(references)}",
        )


def _split(text: str, option: str, example: str) -> tuple[str, str | None, str]:
    name, equals, value = text.rpartition("=")
    if not equals:
        raise InvalidArgument(f"{option} {text!r} has no value", hint=f"{option} {example!r}")
    selected = _SELECTED.fullmatch(name)
    if selected is None:
        return name, None, value
    return selected["name"], selected["selector"], value


def _number(text: str, what: str, example: str) -> float | Gradient:
    if ".." in text:
        return _gradient(text, what, example)
    # Python's float() would take "nan", "inf" and "1_0" too.
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise InvalidArgument(f"{text!r} is {what}", hint=f"a weight is a finite number: {example}=0.5")
    return value


def _gradient(text: str, what: str, example: str) -> Gradient:
    points = text.split("..")
    if not all(_NUMBER.fullmatch(point) for point in points):
        raise InvalidArgument(
            f"{text!r} is {what}", hint=f"numbers along the layers, from the first to the last: {example}=0.2..0.8"
        )
    return Gradient(tuple(map(float, points)))
