"""Settings as mergekit has them: what holds for which tensors, in which layer.

A setting is a value, a list of values along the layers, or a list of conditions of which the first that matches counts.
In a recipe the last rule that matches counts, and tensors behind the layers have a gradient's last value where mergekit
gives them its first: `recipe_setting` turns one into the other, and compares them tensor by tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deltareg.fingerprint import MODULE_CLASSES
from deltareg.merge import Gradient, Schedule, Subject

__all__ = [
    "Places",
    "Rule",
    "Scalar",
    "Table",
    "Theirs",
    "matching",
    "recipe_setting",
    "schedule_of",
    "shares",
    "value_at",
]

Scalar = bool | float | str
Theirs = Scalar | tuple[float, ...]
"""A value, or a gradient."""

EVERY = "*"
Table = Mapping[str, Scalar | list[float]]
"""A setting as a recipe has it, by selector."""

_LAYER = re.compile(r"^(.*?)\.(\d{1,9})(?:\.|$)")


@dataclass(frozen=True)
class Rule:
    """A value for the tensors whose names contain `filter`; None is for every tensor."""

    filter: str | None
    value: Theirs
    line: int

    def matches(self, name: str) -> bool:
        """Whether it is for the tensor of that name."""
        return self.filter is None or self.filter in name


class Places:
    """How far along the layers mergekit sees each tensor of a checkpoint."""

    def __init__(self, subjects: Mapping[str, Subject]) -> None:
        self.subjects = subjects
        self._counts: dict[str, int] = {}
        for name in subjects:
            found = _LAYER.match(name)
            if found is not None:
                self._counts[found[1]] = max(self._counts.get(found[1], 0), int(found[2]) + 1)

    def along(self, name: str) -> float:
        """From 0 in the first layer to 1 in the last; 1 where there is one layer; 0 outside of the layers."""
        found = _LAYER.match(name)
        if found is None:
            return 0.0
        count = self._counts[found[1]]
        return 1.0 if count == 1 else int(found[2]) / (count - 1)


def value_at(rules: Sequence[Rule], name: str, along: float) -> Scalar | None:
    """What mergekit sets for a tensor; None where no rule is for it."""
    for rule in rules:
        if rule.matches(name):
            return _point(rule.value, along)
    return None


def matching(rules: Sequence[Rule], names: Iterable[str]) -> tuple[list[Rule], list[Rule]]:
    """The rules that count for one of the tensors, and those that match none; what comes after one for all is gone."""
    kept: list[Rule] = []
    lost: list[Rule] = []
    names = list(names)
    seen: set[str | None] = set()
    for rule in rules:
        if rule.filter in seen:
            continue
        seen.add(rule.filter)
        (kept if any(rule.matches(name) for name in names) else lost).append(rule)
        if rule.filter is None:
            break
    return kept, lost


def recipe_setting(rules: Sequence[Rule], places: Places) -> Table:
    """The same rules as a recipe has them. `rules` match some tensor each, and the last one is for all of them."""
    table: dict[str, Scalar | list[float]] = {}
    for rule in reversed(rules):
        selector = EVERY if rule.filter is None else f"*{_literal(rule.filter)}*"
        table[selector] = list(rule.value) if isinstance(rule.value, tuple) else rule.value
    schedule = schedule_of(table)
    for name, subject in places.subjects.items():
        theirs, ours = value_at(rules, name, places.along(name)), schedule.at(subject)
        if theirs is not None and not _same(theirs, ours):
            table[_selector_of(name)] = theirs
    return table


def shares(columns: Sequence[Sequence[Rule]]) -> list[list[Rule]] | None:
    """Each of several weights over their sum, for every tensor; None where that is no gradient any more.

    That is possible where all have the same filters, and where gradients add up to the same in every layer.
    """
    if len({tuple(rule.filter for rule in column) for column in columns}) != 1:
        return None
    found: list[list[Rule]] = [[] for _ in columns]
    for row in zip(*columns, strict=True):
        divided = _divided([rule.value for rule in row])
        if divided is None:
            return None
        for column, rule, value in zip(found, row, divided, strict=True):
            column.append(Rule(rule.filter, value, rule.line))
    return found


def _divided(values: Sequence[Theirs]) -> list[Theirs] | None:
    counts = {len(value) for value in values if isinstance(value, tuple)}
    if not counts:
        total = math.fsum(float(value) for value in values if not isinstance(value, tuple))
        return None if total == 0 else [float(value) / total for value in values if not isinstance(value, tuple)]
    if len(counts) > 1:
        return None
    (count,) = counts
    rows = [value if isinstance(value, tuple) else (float(value),) * count for value in values]
    totals = [math.fsum(points) for points in zip(*rows, strict=True)]
    if totals[0] == 0 or any(not math.isclose(total, totals[0], rel_tol=1e-9) for total in totals):
        return None
    return [
        tuple(point / totals[0] for point in row) if isinstance(value, tuple) else row[0] / totals[0]
        for value, row in zip(values, rows, strict=True)
    ]


def schedule_of(table: Table) -> Schedule:
    """A setting of a recipe as merges take it."""
    return Schedule(
        tuple(
            (None if selector == EVERY else selector, Gradient(tuple(value)) if isinstance(value, list) else value)
            for selector, value in table.items()
        )
    )


def _point(value: Theirs, along: float) -> Scalar:
    if not isinstance(value, tuple):
        return value
    place = along * (len(value) - 1)
    lower = int(place)
    share = place - lower
    return (1 - share) * value[lower] + share * value[min(len(value) - 1, lower + 1)]


def _same(theirs: Scalar, ours: Scalar | None) -> bool:
    if isinstance(theirs, float) and isinstance(ours, float):
        return math.isclose(theirs, ours, rel_tol=1e-12, abs_tol=1e-300)
    return theirs == ours


def _literal(text: str) -> str:
    """A text with nothing in it that means something in a pattern."""
    return re.sub(r"([*?\[])", r"[\1]", text)


def _selector_of(name: str) -> str:
    """The selector of one tensor; one that is called as a module class is still meant by its name."""
    return f"[{name[0]}]{name[1:]}" if name in MODULE_CLASSES else _literal(name)
