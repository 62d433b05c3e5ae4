"""The regular expressions of an adapter's config, matched in a way that no expression can make slow.

PEFT gives each to Python's `re`, which tries one way through an expression after the other: `(a|a)*b` can take longer
than anybody waits, and an adapter comes from anywhere. Here names are looked up in a table, and what is more than a
name becomes part of one automaton (Glushkov, 1961), which goes through a module's name once and remembers which step
led where. It knows characters, classes, groups, alternatives and repetitions; what looks ahead or back is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Generic, TypeVar

from deltareg.errors import BadAdapter

__all__ = ["LONGEST_PATTERN", "MOST_PATTERNS", "BadPattern", "Patterns", "patterns_of"]

MOST_PATTERNS = 4096
LONGEST_PATTERN = 512

# Characters of all expressions that are more than names, each as often as it is repeated.
_MOST_PLACES = 16_384
_MOST_REPEATED = 1000
# Places that the steps of all names look at: a few seconds.
_MOST_WORK = 10_000_000
_DEEPEST = 50
_ALIKE = re.compile(r"(?P<start>\^?)(?P<text>(?:[\w-]|\\?[.-])+)\$?")
_PLAIN = re.compile(r"[\w.]+")
_TIMES = re.compile(r"(?P<least>[0-9]*)(?P<comma>,?)(?P<most>[0-9]*)\}", re.ASCII)

_Value = TypeVar("_Value")


class BadPattern(Exception):
    """A pattern that is not taken; the text completes "this is not a pattern …"."""


class Patterns(Generic[_Value]):
    """Values by patterns of module names, of which the first that matches counts, as PEFT's `get_pattern_key` has it.

    A pattern matches all of a name, or what follows one of its dots: `(.*\\.)?(pattern)$`.
    """

    def __init__(self) -> None:
        self._values: dict[str, _Value] = {}
        self._order: list[str] = []
        # By length and by where any character does: a dot of a pattern stands for each.
        self._names: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        self._whole: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        self._automaton = _Automaton()

    def add(self, pattern: str, value: _Value) -> None:
        """One more, after the others. Raises BadPattern."""
        if len(pattern) > LONGEST_PATTERN:
            raise BadPattern(f"of at most {LONGEST_PATTERN} characters")
        number = len(self._order)
        if (alike := _ALIKE.fullmatch(pattern)) is not None:
            table = self._whole if alike["start"] else self._names
            text, dots = _without_escapes(alike["text"])
            table.setdefault(len(text), {}).setdefault(dots, {}).setdefault(text, number)
        else:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise BadPattern("that is a regular expression") from error
            self._automaton.add(_Parser(pattern).branches(), number)
        self._order.append(pattern)
        self._values[pattern] = value

    def get(self, module: str, default: _Value) -> _Value:
        """The value of the first pattern that matches a module's name. Raises BadAdapter where this takes too long."""
        found = self._first(module)
        return self._values.get(module if found is None else self._order[found], default)

    def __len__(self) -> int:
        return len(self._values)

    def _first(self, module: str) -> int | None:
        found = [number for suffix in _suffixes(module) for number in _listed(self._names, suffix)]
        found += _listed(self._whole, module)
        if (number := self._automaton.first(module)) is not None:
            found.append(number)
        return min(found, default=None)


def patterns_of(modules: Collection[str]) -> dict[str, str]:
    """For each module a pattern that of all these matches this one only: its name, or else its name escaped."""
    plain = {name: _without_escapes(name)[1] for name in modules if _PLAIN.fullmatch(name)}
    layouts: dict[int, set[tuple[int, ...]]] = {}
    for name, dots in plain.items():
        layouts.setdefault(len(name), set()).add(dots)
    matched = Counter(
        (dots, _with_dots(suffix, dots))
        for module in modules
        for suffix in _suffixes(module)
        for dots in layouts.get(len(suffix), ())
    )
    return {
        name: name if name in plain and matched[plain[name], name] == 1 else f"^{re.escape(name)}$" for name in modules
    }


def _without_escapes(text: str) -> tuple[str, tuple[int, ...]]:
    """What a pattern stands for, and where any character does."""
    characters: list[str] = []
    dots: list[int] = []
    escaped = False
    for character in text:
        if character == "\\":
            escaped = True
            continue
        if character == "." and not escaped:
            dots.append(len(characters))
        characters.append(character)
        escaped = False
    return "".join(characters), tuple(dots)


def _suffixes(module: str) -> Iterator[str]:
    yield module
    at = module.find(".")
    while at >= 0:
        yield module[at + 1 :]
        at = module.find(".", at + 1)


def _listed(table: Mapping[int, Mapping[tuple[int, ...], Mapping[str, int]]], name: str) -> Iterator[int]:
    for dots, known in table.get(len(name), {}).items():
        if (number := known.get(_with_dots(name, dots))) is not None:
            yield number


def _with_dots(name: str, dots: tuple[int, ...]) -> str:
    characters = list(name)
    for at in dots:
        characters[at] = "."
    return "".join(characters)


# --- what an expression says ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Character:
    """One character that an expression such as `a`, `\\d` or `[a-z]` takes."""

    text: str
    size: int = 1


@dataclass(frozen=True)
class _All:
    """One part after the other."""

    parts: tuple[_Node, ...]
    size: int


@dataclass(frozen=True)
class _Any:
    """One of these."""

    parts: tuple[_Node, ...]
    size: int


@dataclass(frozen=True)
class _Repeated:
    """The same `least` to `most` times; without end where that is None."""

    part: _Node
    least: int
    most: int | None
    size: int


_Node = _Character | _All | _Any | _Repeated


@dataclass(frozen=True)
class _Branch:
    """One alternative of a whole pattern; `whole`: it begins where the name begins."""

    node: _Node
    whole: bool


class _Parser:
    """Reads an expression that Python's `re` takes. Raises BadPattern for what no automaton of this kind has."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def branches(self) -> list[_Branch]:
        """Its outermost alternatives, which may begin with `^` and end with `$`."""
        found = [self._branch()]
        while self._took("|"):
            found.append(self._branch())
        return found

    def _branch(self) -> _Branch:
        whole = False
        while self._took("^"):
            whole = True
        node = self._sequence(0)
        while self._took("$"):
            if self._pattern[self._at : self._at + 1] not in ("", "|", "$"):
                raise BadPattern("with $ at its end only")
        return _Branch(node, whole)

    def _sequence(self, depth: int) -> _Node:
        if depth > _DEEPEST:
            raise BadPattern(f"with at most {_DEEPEST} groups within one another")
        parts: list[_Node] = []
        while self._pattern[self._at : self._at + 1] not in ("", "|", ")", "$"):
            parts.append(self._times(self._one(depth)))
        return _All(tuple(parts), sum(part.size for part in parts))

    def _one(self, depth: int) -> _Node:
        character = self._next()
        if character == "(":
            if self._took("?") and not self._took(":"):
                raise BadPattern("without (?…); (?:…) is taken")
            parts = [self._sequence(depth + 1)]
            while self._took("|"):
                parts.append(self._sequence(depth + 1))
            if not self._took(")"):
                raise BadPattern("with $ at its end only")
            return _Any(tuple(parts), sum(part.size for part in parts))
        if character == "^":
            raise BadPattern("with ^ at its start only")
        if character == "[":
            return _Character(self._class())
        if character == "\\":
            character = self._next()
            if character.isalnum() and character not in "dDwWsStnrfv":
                raise BadPattern(f"without \\{character}")
            return _Character(f"\\{character}")
        return _Character("." if character == "." else re.escape(character))

    def _class(self) -> str:
        start = self._at - 1
        self._took("^")
        self._took("]")
        while (character := self._next()) != "]":
            if character == "\\":
                self._next()
        return self._pattern[start : self._at]

    def _times(self, part: _Node) -> _Node:
        least, most = 1, 1
        if self._took("*"):
            least, most = 0, None
        elif self._took("+"):
            most = None
        elif self._took("?"):
            least = 0
        elif (found := _TIMES.match(self._pattern, self._at + 1)) is not None and self._counts(found):
            self._at = found.end()
            least = int(found["least"] or 0)
            most = (int(found["most"]) if found["most"] else None) if found["comma"] else least
        else:
            return part
        if self._took("+"):
            raise BadPattern("with repetitions that give back what they took")
        self._took("?")
        copies = max(least, most or 0, 1)
        if copies > _MOST_REPEATED or copies * part.size > _MOST_PLACES:
            raise BadPattern(f"of fewer repetitions: {_MOST_REPEATED}, {_MOST_PLACES} characters")
        return _Repeated(part, least, most, copies * part.size)

    def _counts(self, found: re.Match[str]) -> bool:
        # A brace that opens nothing is a character.
        return self._pattern[self._at : self._at + 1] == "{" and bool(found["least"] or found["comma"])

    def _took(self, character: str) -> bool:
        if self._pattern[self._at : self._at + 1] != character:
            return False
        self._at += 1
        return True

    def _next(self) -> str:
        self._at += 1
        return self._pattern[self._at - 1]


# --- going through a name ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fragment:
    """A part of the automaton: the places (bits) it can begin and end with, and whether it can be empty."""

    first: int = 0
    last: int = 0
    empty: bool = True


@dataclass
class _State:
    """The places that took the last character, those that may take the next one, and where that leads."""

    taken: int
    next: int
    begins: bool
    steps: dict[str, _State] = field(default_factory=dict[str, "_State"])


class _Automaton:
    """All expressions at once. A place is one of their characters; a state is a set of places, as bits of a number."""

    def __init__(self) -> None:
        self._follow: list[int] = []
        self._owners: list[int] = []
        self._atoms: dict[str, int] = {}
        self._masks: dict[str, int] = {}
        self._first = self._again = self._last = 0
        self._empty: list[tuple[int, bool]] = []
        self._states: dict[tuple[int, bool], _State] = {}
        self._start: _State | None = None
        self._work = 0

    def add(self, branches: list[_Branch], owner: int) -> None:
        """One more expression. Raises BadPattern."""
        if len(self._follow) + sum(branch.node.size for branch in branches) > _MOST_PLACES:
            raise BadPattern(f"of fewer characters: all expressions have at most {_MOST_PLACES}")
        for branch in branches:
            made = self._build(branch.node)
            self._owners += [owner] * (len(self._follow) - len(self._owners))
            self._first |= made.first
            self._last |= made.last
            if not branch.whole:
                self._again |= made.first
            if made.empty:
                self._empty.append((owner, branch.whole))
        self._start = _State(0, self._first, True)

    def first(self, name: str) -> int | None:
        """The lowest number of an expression that matches. Raises BadAdapter."""
        state = self._start
        if state is None:
            return None
        for character in name:
            found = state.steps.get(character)
            if found is None:
                found = state.steps[character] = self._step(state, character)
            state = found
        ended = state.taken & self._last
        found = [self._owners[(ended & -ended).bit_length() - 1]] if ended else []
        if state.begins:
            found += [owner for owner, whole in self._empty if not whole or not name]
        return min(found, default=None)

    def _step(self, state: _State, character: str) -> _State:
        if character not in self._masks:
            self._masks[character] = sum(places for atom, places in self._atoms.items() if _takes(atom, character))
            self._work += len(self._atoms)
        taken = state.next & self._masks[character]
        self._work += 1 + taken.bit_count()
        if self._work > _MOST_WORK:
            raise BadAdapter(
                "the regular expressions of rank_pattern and alpha_pattern take too long to match",
                hint="write the modules' names in full, without * and +",
            )
        begins = character == "."
        made = self._states.get((taken, begins))
        if made is None:
            follow = self._again if begins else 0
            rest = taken
            while rest:
                place = rest & -rest
                follow |= self._follow[place.bit_length() - 1]
                rest ^= place
            made = self._states[taken, begins] = _State(taken, follow, begins)
        return made

    def _build(self, node: _Node) -> _Fragment:
        if not node.size:
            # However often nothing is repeated: a pattern's outermost parts decide whether it can be empty.
            return _Fragment(empty=True)
        if isinstance(node, _Character):
            place = 1 << len(self._follow)
            self._follow.append(0)
            self._atoms[node.text] = self._atoms.get(node.text, 0) | place
            return _Fragment(place, place, False)
        if isinstance(node, _All):
            made = _Fragment()
            for part in node.parts:
                made = self._joined(made, self._build(part))
            return made
        if isinstance(node, _Any):
            parts = [self._build(part) for part in node.parts]
            first = last = 0
            for part in parts:
                first, last = first | part.first, last | part.last
            return _Fragment(first, last, any(part.empty for part in parts))
        return self._repeated(node)

    def _repeated(self, node: _Repeated) -> _Fragment:
        if node.most == 0:
            return _Fragment()
        copies = [self._build(node.part) for _ in range(max(node.least, node.most or 1, 1))]
        empty = node.least == 0 or copies[0].empty
        # What can be empty need not be there: as often as it is repeated at most, each time with something in it.
        least = 0 if empty else node.least
        if node.most is None:
            self._link(copies[-1].last, copies[-1].first)
        made = _Fragment(copies[-1].first, copies[-1].last, False)
        for number in range(len(copies) - 2, -1, -1):
            one = copies[number]
            self._link(one.last, made.first)
            made = _Fragment(one.first, made.last if number + 1 < least else made.last | one.last, False)
        return _Fragment(made.first, made.last, empty)

    def _joined(self, one: _Fragment, two: _Fragment) -> _Fragment:
        self._link(one.last, two.first)
        return _Fragment(
            one.first | two.first if one.empty else one.first,
            one.last | two.last if two.empty else two.last,
            one.empty and two.empty,
        )

    def _link(self, places: int, to: int) -> None:
        while places:
            place = places & -places
            self._follow[place.bit_length() - 1] |= to
            places ^= place


@cache
def _compiled(atom: str) -> re.Pattern[str]:
    return re.compile(atom)


def _takes(atom: str, character: str) -> bool:
    return _compiled(atom).fullmatch(character) is not None
