"""Small registries in memory, and a search through all that they hold: what the resolver is compared with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from deltareg.artifact import Artifact
from deltareg.digest import Digest, sha256
from deltareg.manifest import Conflict, Requirement
from deltareg.names import Reference, version_key
from deltareg.resolve import Candidate, Details
from deltareg.versions import parse_range

__all__ = ["Published", "Registries", "best", "candidate_of", "fits_all"]


@dataclass(frozen=True)
class Published:
    """One version that a registry in memory has."""

    name: str
    version: str
    requires: tuple[Requirement, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    licence: str | None = "mit"
    created: str = "2026-01-01T00:00:00Z"
    yanked: str | None = None
    channels: tuple[str, ...] = ()

    @property
    def digest(self) -> Digest:
        """A digest of the name: enough to tell versions apart."""
        return sha256(f"{self.name}:{self.version}".encode())


@dataclass
class Registries:
    """A source of candidates, of any number of names. It counts what it is asked."""

    versions: Mapping[str, Sequence[Published]]
    name: str = "local"
    asked: list[str] = field(default_factory=list)

    def candidates(self, repository: str) -> list[Candidate]:
        self.asked.append(repository)
        return [candidate_of(one, self.name) for one in self.versions.get(repository, ())]

    def details(self, candidate: Candidate) -> Details:
        one = self.published(candidate)
        return Details(licence=one.licence, requires=one.requires, conflicts=one.conflicts)

    def artifact(self, candidate: Candidate) -> Artifact:
        raise AssertionError("nothing here is looked at")

    def published(self, candidate: Candidate) -> Published:
        """The version behind a candidate."""
        return next(one for one in self.versions[candidate.repository] if one.version == candidate.version)


def candidate_of(one: Published, remote: str = "local") -> Candidate:
    """A version as the resolver sees it."""
    namespace, _, name = one.name.partition("/")
    return Candidate(Reference(namespace, name, one.version), one.digest, remote, one.created, one.yanked, one.channels)


def fits_all(chosen: Mapping[str, Published], wishes: Mapping[str, str]) -> bool:
    """Whether a set of versions is what is wanted, whole, and at peace with itself."""
    needed: set[str] = set()
    waiting = list(wishes)
    while waiting:
        name = waiting.pop()
        if name in chosen and name not in needed:
            needed.add(name)
            waiting += [requirement.reference for requirement in chosen[name].requires]
    for one in chosen.values():
        for requirement in one.requires:
            there = chosen.get(requirement.reference)
            if there is None or not _meets(there, requirement):
                return False
        for conflict in one.conflicts:
            there = chosen.get(conflict.reference)
            if there is not None and parse_range(conflict.version).has(there.version):
                return False
    weights: dict[str, set[float]] = {}
    for one in chosen.values():
        for requirement in one.requires:
            weights.setdefault(requirement.reference, set()).add(requirement.weight)
    agreed = all(len(found) == 1 for name, found in weights.items() if name not in wishes)
    asked = all(name in chosen and parse_range(text).has(chosen[name].version) for name, text in wishes.items())
    return agreed and asked and needed == set(chosen)


def best(registry: Registries, wishes: Mapping[str, str]) -> dict[str, Published] | None:
    """Of all sets of versions the best: found by looking at every one of them."""
    answers = list(_answers(registry, wishes))
    fixed: dict[str, str] = {}
    waiting = list(wishes)
    while answers and waiting:
        name = waiting.pop(0)
        if name in fixed:
            continue
        highest = max((answer[name].version for answer in answers), key=version_key)
        answers = [answer for answer in answers if answer[name].version == highest]
        fixed[name] = highest
        waiting += [requirement.reference for requirement in answers[0][name].requires]
    return answers[0] if answers else None


def _answers(registry: Registries, wishes: Mapping[str, str]) -> Iterator[dict[str, Published]]:
    """Every set of versions that fits."""
    names = list(registry.versions)
    rooms = [
        [one for one in registry.versions[name] if one.yanked is None] + ([] if name in wishes else [None])
        for name in names
    ]
    if any(name not in registry.versions for name in wishes):
        return
    for picked in itertools.product(*rooms):
        chosen = {name: one for name, one in zip(names, picked, strict=True) if one is not None}
        if fits_all(chosen, wishes):
            yield chosen


def _meets(one: Published, requirement: Requirement) -> bool:
    if requirement.digest is not None:
        return one.digest == requirement.digest
    return parse_range(requirement.version).has(one.version)
