"""Parameters of merge methods: declared in the signatures of their functions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from deltareg.errors import InvalidArgument

__all__ = ["Between", "Parameter", "PerDelta", "Value", "declared", "value_text"]

Value = float | bool | str
"""What a parameter can be."""

PerDelta = float | tuple[float, ...]
"""A number for all deltas of a merge, or one for each of them, by its number: declares what may differ by delta."""


def value_text(value: object) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Between:
    """The range of a number, both ends included, and what it is."""

    least: float
    most: float
    meaning: str


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method. `default` is None where it has to be given; `by_delta`: it may differ by delta."""

    name: str
    kind: type
    by_delta: bool
    default: Value | None
    least: float
    most: float
    choices: tuple[str, ...]
    meaning: str

    @property
    def range(self) -> str:
        """What it may be, for people."""
        if self.choices:
            return " | ".join(self.choices)
        if self.kind is bool:
            return "true | false"
        least = "" if math.isinf(self.least) else f"from {self.least:g}"
        most = "" if math.isinf(self.most) else f"to {self.most:g}"
        whole = "a whole number" if self.kind is int else "a number"
        return " ".join(part for part in (whole, least, most) if part)

    @property
    def told_default(self) -> str:
        """The default, for people."""
        if self.default is None:
            return "none: it has to be given"
        return value_text(self.default)

    def parse(self, text: str) -> Value:
        """The value that a text says. Raises InvalidArgument."""
        if self.kind is bool and text in ("true", "false"):
            return text == "true"
        if self.kind in (int, float):
            try:
                return self.checked(self.kind(text))
            except ValueError:
                raise self._refusal(text) from None
        return self.checked(text)

    def checked(self, value: Value | None) -> Value:
        """The value if it is one that the parameter can have. Raises InvalidArgument."""
        if self.choices:
            if isinstance(value, str) and value in self.choices:
                return value
        elif isinstance(value, bool):
            if self.kind is bool:
                return value
        elif isinstance(value, int | float) and math.isfinite(value) and self.least <= value <= self.most:
            if self.kind is float:
                return float(value)
            if self.kind is int and value == int(value):
                return int(value)
        raise self._refusal(value)

    def _refusal(self, value: object) -> InvalidArgument:
        return InvalidArgument(f"{self.name} is {value!r}", hint=f"{self.name} is {self.range}: {self.meaning}")


def declared(function: Callable[..., Any]) -> Mapping[str, Parameter]:
    """The parameters of a method's function, by name: from its annotations and defaults.

    A trailing underscore, as `lambda_` needs it, is not part of the name.
    """
    hints = get_type_hints(function, include_extras=True)
    found: dict[str, Parameter] = {}
    for argument in inspect.signature(function).parameters.values():
        hint, meaning = hints[argument.name], ""
        limits = Between(-math.inf, math.inf, "")
        if get_origin(hint) is Annotated:
            hint, note = get_args(hint)
            limits = note if isinstance(note, Between) else limits
            meaning = limits.meaning or str(note)
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        name = argument.name.rstrip("_")
        default = None if argument.default is argument.empty else argument.default
        by_delta = hint == PerDelta
        kind = str if choices else float if by_delta else hint
        found[name] = Parameter(
            name, kind, by_delta, default, limits.least, limits.most, choices, limits.meaning or meaning
        )
    return found
