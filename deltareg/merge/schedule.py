"""Settings that differ by tensor: weights and method parameters by name, by module class, along the layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from deltareg.errors import InvalidArgument
from deltareg.fingerprint import MODULE_CLASSES, module_class
from deltareg.merge.parameter import Value, value_text

__all__ = ["Gradient", "Schedule", "Subject", "refuse_unmatched", "subjects_of"]

_LAYER = re.compile(r"^(.*?)\.(\d{1,9})(?:\.|$)")


@dataclass(frozen=True)
class Subject:
    """A tensor as selectors and gradients see it.

    `depth` goes from 0 in the first layer of its stack to 1 in the last; tensors in front of the layers, such as
    embeddings, have that of the first, those behind them that of the last.
    """

    name: str
    module_class: str
    depth: float


@dataclass(frozen=True)
class Gradient:
    """A number that changes along the layers: interpolated linearly between points at equal distances."""

    points: tuple[float, ...]

    def at(self, depth: float) -> float:
        """The number at a depth from 0 to 1."""
        place = depth * (len(self.points) - 1)
        lower = min(math.floor(place), len(self.points) - 2)
        share = place - lower
        return self.points[lower] * (1 - share) + self.points[lower + 1] * share

    def __str__(self) -> str:
        return "..".join(f"{point!r}" for point in self.points)


@dataclass(frozen=True)
class Schedule:
    """What is set for which tensors: of the rules whose selector matches, the last one counts.

    A selector is None (every tensor), a module class, or a pattern of names as shells have them (`*`, `?`, `[…]`).
    """

    rules: tuple[tuple[str | None, Value | Gradient], ...]

    @classmethod
    def of(cls, value: Value | Gradient | Schedule) -> Schedule:
        """One value for every tensor."""
        return value if isinstance(value, Schedule) else cls(((None, value),))

    def at(self, subject: Subject) -> Value | None:
        """What is set for a tensor; None where no rule is for it."""
        for selector, value in reversed(self.rules):
            if selector is None or _matches(selector, subject):
                return value.at(subject.depth) if isinstance(value, Gradient) else value
        return None

    @property
    def plain(self) -> Value:
        """The value, where one holds for every tensor; else the rules as text."""
        if len(self.rules) == 1:
            ((selector, value),) = self.rules
            if selector is None and not isinstance(value, Gradient):
                return value
        return str(self)

    @property
    def values(self) -> list[Value]:
        """Every value that occurs, the points of gradients among them."""
        found: list[Value] = []
        for _, value in self.rules:
            found.extend(value.points if isinstance(value, Gradient) else [value])
        return found

    @property
    def selectors(self) -> list[str]:
        """Every selector."""
        return [selector for selector, _ in self.rules if selector is not None]

    def __str__(self) -> str:
        told = [(f"{selector}: " if selector else "") + value_text(value) for selector, value in self.rules]
        return ", ".join(told)


def subjects_of(names: Iterable[str]) -> Mapping[str, Subject]:
    """The subjects of a checkpoint's tensors, in the order of its layers."""
    names = list(names)
    places = {name: _place(name) for name in names}
    lengths: dict[str, int] = {}
    for place in places.values():
        if place is not None:
            lengths[place[0]] = max(lengths.get(place[0], 0), place[1])
    found: dict[str, Subject] = {}
    for name in names:
        kind = module_class(name)
        place = places[name]
        if place is None:
            depth = 0.0 if kind == "embedding" else 1.0
        else:
            depth = place[1] / lengths[place[0]] if lengths[place[0]] else 0.0
        found[name] = Subject(name, kind, depth)
    return found


def refuse_unmatched(schedules: Iterable[Schedule], subjects: Iterable[Subject]) -> None:
    """Raise InvalidArgument where a selector matches no tensor: it says something else than was meant."""
    everything = list(subjects)
    wanted = dict.fromkeys(selector for schedule in schedules for selector in schedule.selectors)
    lost = [selector for selector in wanted if not any(_matches(selector, subject) for subject in everything)]
    if lost:
        classes = ", ".join(MODULE_CLASSES)
        raise InvalidArgument(
            f"no tensor of the target matches {', '.join(map(repr, lost))}",
            hint=f"a selector is a module class ({classes}) or a pattern of tensor names, such as 'model.layers.*'",
        )


def _matches(selector: str, subject: Subject) -> bool:
    if selector in MODULE_CLASSES:
        return selector == subject.module_class
    return fnmatchcase(subject.name, selector)


def _place(name: str) -> tuple[str, int] | None:
    """The stack of layers that a tensor is in, and the number of its layer."""
    found = _LAYER.match(name)
    return None if found is None else (found[1], int(found[2]))
