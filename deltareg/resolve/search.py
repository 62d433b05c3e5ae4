"""The search for versions that go together: resolvelib asks, `_Provider` answers.

Of all sets of versions that fit, the best is taken: the delta that the recipe names first gets the highest version with
which anything fits, then the second, and so on; then what these require, in their order. So the answer depends on the
recipe and on what is published, and not on the way that the search took.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, cast

from resolvelib import AbstractProvider, BaseReporter, ResolutionImpossible
from resolvelib.resolvers import Resolution, ResolutionTooDeep

from deltareg.digest import Digest, parse_digest
from deltareg.errors import NothingFits
from deltareg.manifest import Conflict, Requirement
from deltareg.resolve.policy import Pool
from deltareg.resolve.source import Candidate, Sources
from deltareg.versions import ANY, VersionRange, parse_range

__all__ = ["Choices", "Unsatisfiable", "Wish", "excluded_wish", "in_order", "required_wish", "search"]

_MOST_ROUNDS = 100_000


@dataclass(frozen=True)
class Wish:
    """What is asked of one name: a range of versions, a channel or a digest.

    `by` is the candidate that asks, None the recipe. `excluded`: the versions must not be there, and nothing else is
    asked. `weight` is what a requirement says of it.
    """

    repository: str
    remote: str
    range: VersionRange = ANY
    channel: str | None = None
    digest: Digest | None = None
    weight: float | None = None
    by: Candidate | None = None
    excluded: bool = False

    def names(self, candidate: Candidate) -> bool:
        """Whether a candidate is among the versions that the wish speaks of."""
        if self.digest is not None:
            return candidate.digest == self.digest
        if self.channel == "latest":
            return self.range.has(candidate.version)
        if self.channel is not None:
            return self.channel in candidate.channels
        return self.range.has(candidate.version)

    def __str__(self) -> str:
        if self.digest is not None:
            return self.digest
        return f"channel {self.channel}" if self.channel is not None else str(self.range)


@dataclass(frozen=True)
class _Absent:
    """Nothing of a name: what is chosen where it is only excluded."""

    repository: str


class Unsatisfiable(Exception):
    """Nothing fits; `wishes` are those that stand in the way of one another."""

    def __init__(self, wishes: Sequence[Wish]) -> None:
        super().__init__("nothing fits")
        self.wishes = wishes


Choices = dict[str, Candidate]
"""The chosen version of each name."""


def search(wishes: Sequence[Wish], pool: Pool) -> Choices:
    """The best set of versions that fulfils the recipe's `wishes` and what these require.

    In the order in which the choice was made: the recipe's, then what is required. Raises Unsatisfiable; NothingFits
    where deltas require one another in a circle, or the search takes too many steps; RemoteUnavailable, NotAllowed.
    """
    found = _solve(wishes, pool, {})
    asked = {wish.repository: [wish] for wish in wishes}
    fixed: Choices = {}
    waiting = deque(asked)
    while waiting:
        name = waiting.popleft()
        if name in fixed:
            continue
        while better := _ahead(found[name], asked[name], pool):
            among = {other: frozenset([one.digest]) for other, one in fixed.items()}
            among[name] = frozenset(one.digest for one in better)
            try:
                found = _solve(wishes, pool, among)
            except Unsatisfiable:
                break
        fixed[name] = found[name]
        for requirement in pool.details(found[name]).requires:
            wish = required_wish(requirement, found[name], pool.sources)
            asked.setdefault(wish.repository, []).append(wish)
            waiting.append(wish.repository)
    _refuse_circles(fixed, pool)
    return fixed


def _ahead(chosen: Candidate, wishes: Sequence[Wish], pool: Pool) -> list[Candidate]:
    """The candidates that all of `wishes` name and that would be preferred to the chosen one."""
    everything = pool.candidates(chosen.repository, chosen.remote)
    ahead = everything[: everything.index(chosen)]
    return pool.admissible(one for one in ahead if all(wish.names(one) for wish in wishes))


def _solve(wishes: Sequence[Wish], pool: Pool, among: Mapping[str, frozenset[Digest]]) -> Choices:
    """A set of versions, those of the names in `among` being of these digests. Raises Unsatisfiable."""
    provider = _Provider(wishes, pool, among)
    try:
        # Not by way of `Resolver`: it looks for what is still needed by a recursion that circles do not end.
        state = Resolution(provider, BaseReporter()).resolve(wishes, max_rounds=_MOST_ROUNDS)
    except ResolutionImpossible as error:  # pyright: ignore[reportUnknownVariableType]
        causes = cast("ResolutionImpossible[Wish, Candidate | _Absent]", error).causes
        raise Unsatisfiable([cause.requirement for cause in causes]) from error
    except ResolutionTooDeep as error:
        raise NothingFits(
            f"nothing was found to fit in {_MOST_ROUNDS} steps", hint="narrow the ranges in the recipe: name versions"
        ) from error
    return _needed(wishes, state.mapping, pool)


def _needed(wishes: Sequence[Wish], pinned: Mapping[str, Candidate | _Absent], pool: Pool) -> Choices:
    """Of what was pinned, what the wishes lead to."""
    found: Choices = {}
    waiting = [wish.repository for wish in wishes]
    while waiting:
        chosen = pinned[waiting.pop()]
        assert isinstance(chosen, Candidate)
        if chosen.repository not in found:
            found[chosen.repository] = chosen
            waiting += [requirement.reference for requirement in pool.details(chosen).requires]
    return found


class _Provider(AbstractProvider[Wish, "Candidate | _Absent", str]):
    """Answers resolvelib's questions."""

    def __init__(self, wishes: Sequence[Wish], pool: Pool, among: Mapping[str, frozenset[Digest]]) -> None:
        self._roots = {wish.repository: (place, wish) for place, wish in enumerate(wishes)}
        self._pool = pool
        self._among = among

    def identify(self, requirement_or_candidate: Wish | Candidate | _Absent) -> str:
        return requirement_or_candidate.repository

    def get_preference(self, identifier: str, *_: Any, **__: Any) -> tuple[int, str]:
        place = self._roots[identifier][0] if identifier in self._roots else len(self._roots)
        return place, identifier

    def find_matches(
        self,
        identifier: str,
        requirements: Mapping[str, Iterator[Wish]],
        incompatibilities: Mapping[str, Iterator[Candidate | _Absent]],
    ) -> Any:
        wishes = list(requirements[identifier])
        tried = set(incompatibilities[identifier])
        wanted = [wish for wish in wishes if not wish.excluded]
        if not wanted:
            absent = _Absent(identifier)
            return [] if absent in tried else [absent]
        # Who asks decides where a name is looked up, and the recipe before all others.
        root = self._roots.get(identifier)
        remotes = {wish.remote for wish in wanted} if root is None else {root[1].remote}
        weights = {wish.weight for wish in wanted} if root is None else {None}
        if len(remotes) > 1 or len(weights) > 1:
            return []
        among = self._among.get(identifier)
        candidates = self._pool.candidates(identifier, remotes.pop())

        def matches() -> Iterator[Candidate | _Absent]:
            for candidate in candidates:
                if candidate in tried or (among is not None and candidate.digest not in among):
                    continue
                if all(_fulfils(wish, candidate) for wish in wishes) and self._pool.refusal(candidate) is None:
                    yield candidate

        return matches

    def is_satisfied_by(self, requirement: Wish, candidate: Candidate | _Absent) -> bool:
        return _fulfils(requirement, candidate)

    def get_dependencies(self, candidate: Candidate | _Absent) -> Iterable[Wish]:
        if isinstance(candidate, _Absent):
            return []
        details = self._pool.details(candidate)
        required = [required_wish(one, candidate, self._pool.sources) for one in details.requires]
        return required + [excluded_wish(one, candidate) for one in details.conflicts]


def _fulfils(wish: Wish, candidate: Candidate | _Absent) -> bool:
    if isinstance(candidate, _Absent):
        return wish.excluded
    return wish.names(candidate) != wish.excluded


def required_wish(requirement: Requirement, by: Candidate, sources: Sources) -> Wish:
    """What a candidate requires. A name that is bound nowhere is looked up where the candidate is."""
    return Wish(
        repository=requirement.reference,
        remote=sources.required_from(requirement.reference, by.remote),
        range=parse_range(requirement.version),
        digest=None if requirement.digest is None else parse_digest(requirement.digest),
        weight=requirement.weight,
        by=by,
    )


def excluded_wish(conflict: Conflict, by: Candidate) -> Wish:
    """What a candidate excludes."""
    return Wish(conflict.reference, by.remote, range=parse_range(conflict.version), by=by, excluded=True)


def in_order(choices: Choices, pool: Pool) -> list[Candidate]:
    """The choices in the order in which they are applied: what is required comes right before what requires it."""
    done: Choices = {}
    for name in choices:
        waiting = [name]
        while waiting:
            top = waiting[-1]
            needs = [one.reference for one in pool.details(choices[top]).requires if one.reference not in done]
            if top in done or not needs:
                done.setdefault(waiting.pop(), choices[top])
            else:
                waiting.extend(reversed(needs))
    return list(done.values())


def _refuse_circles(choices: Choices, pool: Pool) -> None:
    """Raise NothingFits where deltas are stacked on one another in a circle: none of them could come first."""
    needs = {name: [one.reference for one in pool.details(chosen).requires] for name, chosen in choices.items()}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle = [str(choices[name]) for name in reversed(error.args[1])]
        raise NothingFits(
            f"deltas require one another in a circle: {' → '.join(circle)}",
            hint="ask their publisher: whichever was applied first, something would be missing under it",
            circle=circle,
        ) from error
