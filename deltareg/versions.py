"""Ranges of versions: `^1.2`, `~1.2.3`, `>=2, <3`, `1.*`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from semver import Version

from deltareg.errors import BadName
from deltareg.names import is_version, version_key

__all__ = ["ANY", "VersionRange", "parse_range"]

_LIMIT = 256
_NUMBER = r"(?:0|[1-9][0-9]{0,63})"
_CONDITION = re.compile(
    rf"(?P<sign>\^|~|>=|<=|!=|>|<|=)? *"
    rf"(?P<numbers>{_NUMBER}(?:\.{_NUMBER}){{0,2}})(?P<star>(?:\.\*){{1,2}})?(?P<rest>-[0-9A-Za-z.-]+)?",
    re.ASCII,
)
_COMPARE: Mapping[str, Callable[[Version, Version], bool]] = MappingProxyType(
    {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt, "=": operator.eq}
)
_HINT = "write ^1.2 (nothing that breaks), ~1.2.3 (patches alone), 1.2.3 (exactly this), 1.* or >=2, <3"


@dataclass(frozen=True)
class VersionRange:
    """Which versions are wanted: those that all of `conditions` hold for; `text` is how it was written.

    A pre-release is taken only where a condition names one of the same three numbers: whoever asks for ^1.2 does not
    mean 1.9.0-rc.1. `!=` names none: it takes away only.
    """

    text: str
    conditions: tuple[Condition, ...]

    def has(self, version: str) -> bool:
        """Whether a version is in the range."""
        parsed = version_key(version)
        if parsed.prerelease is not None and not any(one.names_pre_release_of(parsed) for one in self.conditions):
            return False
        return all(one.has(parsed) for one in self.conditions)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Condition:
    """Comparisons that all hold, or, `inverted`, not all; `named` is the version that they were written with."""

    comparisons: tuple[tuple[str, Version], ...]
    named: Version
    inverted: bool = False

    def has(self, version: Version) -> bool:
        """Whether the condition holds for a version, by SemVer's precedence."""
        return all(_COMPARE[sign](version, bound) for sign, bound in self.comparisons) != self.inverted

    def names_pre_release_of(self, version: Version) -> bool:
        """Whether it names a pre-release of the same three numbers."""
        same = self.named.to_tuple()[:3] == version.to_tuple()[:3]
        return same and self.named.prerelease is not None and not self.inverted


ANY = VersionRange("*", ())
"""Every version that is no pre-release."""


def parse_range(text: str) -> VersionRange:
    """Parse a range: conditions joined by commas, all of which hold. Raises BadName.

    `1.2.3` is that version alone; `1.2` and `1.2.*` are any patch of it; `*` is everything. `^` keeps the leftmost
    number that is not zero, `~1.2.3` and `~1.2` keep the first two. Numbers that are left out are zeros where a range
    begins; it ends before the pre-releases of the version that it does not reach.
    """
    if len(text) > _LIMIT:
        raise _refusal(f"{text[:_LIMIT]}…", f"it has more than {_LIMIT} characters")
    if text.strip(" ") == "*":
        return ANY
    return VersionRange(text.strip(" "), tuple(_condition(part.strip(" "), text) for part in text.split(",")))


def _condition(text: str, whole: str) -> Condition:
    found = _CONDITION.fullmatch(text)
    numbers = [] if found is None else [int(number) for number in found["numbers"].split(".")]
    if found is None or not _is_sound(len(numbers), found["sign"], found["star"], found["rest"]):
        raise _refusal(whole, f"{text!r} is no condition" if text else "a condition is missing")
    named_text = ".".join(map(str, [*numbers, 0, 0][:3])) + (found["rest"] or "")
    if not is_version(named_text):
        raise _refusal(whole, f"{named_text} is no version")
    named = version_key(named_text)
    sign = found["sign"] or "="
    if sign in "^~":
        return Condition(((">=", named), ("<", _end(_kept(numbers) if sign == "^" else numbers[:2]))), named)
    if len(numbers) == 3:
        return Condition((("=" if sign == "!=" else sign, named),), named, inverted=sign == "!=")
    bounds = {
        ">=": ((">=", named),),
        ">": ((">=", Version(*_next(numbers))),),
        "<": (("<", named.replace(prerelease="0")),),
        "<=": (("<", _end(numbers)),),
    }
    return Condition(bounds.get(sign, ((">=", named), ("<", _end(numbers)))), named, inverted=sign == "!=")


def _is_sound(numbers: int, sign: str | None, star: str | None, rest: str | None) -> bool:
    if star is not None:
        return sign in (None, "=", "!=") and rest is None and numbers + star.count("*") <= 3
    return rest is None or numbers == 3


def _refusal(text: str, cause: str) -> BadName:
    return BadName(f"{text!r} is no range of versions", cause=cause, hint=_HINT)


def _kept(numbers: list[int]) -> list[int]:
    """The numbers that stay where nothing breaks: up to the leftmost that is not zero."""
    place = next((place for place, number in enumerate(numbers) if number), len(numbers) - 1)
    return numbers[: place + 1]


def _next(numbers: list[int]) -> list[int]:
    """The three numbers of the first release behind those that begin with these."""
    return [*numbers[:-1], numbers[-1] + 1, 0, 0][:3]


def _end(numbers: list[int]) -> Version:
    """What is behind every version that begins with these numbers, and before the pre-releases of the next."""
    return Version(*_next(numbers), prerelease="0")
