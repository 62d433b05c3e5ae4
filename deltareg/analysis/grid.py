"""The weights of a sweep: `0:2:0.1`, or `0,0.5,1`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation

from deltareg.errors import InvalidArgument

__all__ = ["MOST_POINTS", "checked_values", "parse_values"]

MOST_POINTS = 10_000
"""Points that a sweep may have; of two weights, their product."""

_HINT = "write start:stop:step, such as 0:2:0.1, or a list, such as 0,0.5,1"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_WEIGHT_LIMIT = 3.4e38


def parse_values(text: str, what: str = "alpha") -> list[float]:
    """The values of `start:stop:step`, the stop among them where a step ends there, or of a list with commas.

    They are counted in decimal: 0:2:0.1 has 0.3, not 0.30000000000000004. Raises InvalidArgument, which calls them
    `what`.
    """
    if ":" not in text:
        parts = [part.strip() for part in text.split(",")]
        if not any(parts):
            raise InvalidArgument(f"{what} is empty", hint=_HINT)
        return checked_values([float(_number(part, what)) for part in parts], what)
    parts = text.split(":")
    if len(parts) != 3:
        raise InvalidArgument(f"{what} {text!r} is no range", hint=_HINT)
    start, stop, step = (_number(part.strip(), what) for part in parts)
    if step <= 0:
        raise InvalidArgument(f"the step of {what} {text!r} is not above zero", hint=_HINT)
    if stop < start:
        raise InvalidArgument(f"{what} {text!r} ends before it begins", hint=f"write {parts[1]}:{parts[0]}:{parts[2]}")
    steps = (stop - start) / step
    if steps >= MOST_POINTS:
        raise _too_many(f"{what} {text!r}")
    return checked_values([float(start + number * step) for number in range(int(steps) + 1)], what)


def checked_values(values: Iterable[float], what: str) -> list[float]:
    """The values in ascending order. Raises InvalidArgument for none, one given twice, and what is no weight."""
    found = [float(value) for value in values]
    if not found:
        raise InvalidArgument(f"{what} is empty", hint=_HINT)
    if len(found) > MOST_POINTS:
        raise _too_many(what)
    for value in found:
        if not abs(value) <= _WEIGHT_LIMIT:  # NaN too
            raise InvalidArgument(
                f"{what} has {value!r}", hint=f"a weight is a finite number of at most {_WEIGHT_LIMIT:g}"
            )
    twice = _repeated(found)
    if twice is not None:
        raise InvalidArgument(f"{what} has {twice:g} twice", hint="name each value once")
    return sorted(found)


def _number(text: str, what: str) -> Decimal:
    if _NUMBER.fullmatch(text) is None:
        raise InvalidArgument(f"{text!r} in {what} is no number" if text else f"{what} has a gap", hint=_HINT)
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise InvalidArgument(f"{text!r} in {what} is no number", hint=_HINT) from error


def _repeated(values: Sequence[float]) -> float | None:
    seen: set[float] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _too_many(what: str) -> InvalidArgument:
    return InvalidArgument(f"{what} has more than {MOST_POINTS:,} points", hint="take a larger step")
