"""Which candidates may be chosen at all, whoever asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from deltareg.digest import Digest
from deltareg.errors import DeltaregError, NotAllowed, RemoteUnavailable
from deltareg.licences import is_allowed
from deltareg.names import version_key
from deltareg.resolve.source import Candidate, Details, Source, Sources

__all__ = ["Judge", "Policy", "Pool", "Refusal", "Why"]

Why = Literal["yanked", "newer", "lossy", "licence", "incompatible", "unreadable"]
"""Why a candidate was refused by itself."""


@dataclass(frozen=True)
class Refusal:
    """Why a candidate is not chosen; `codes` are the findings of the check, where it is incompatible."""

    why: Why
    told: str
    codes: tuple[str, ...] = ()


Judge = Callable[[Source, Candidate], Refusal | bool]
"""Why a candidate does not fit the base; where it does, whether the base is its own: that holds what it requires."""


@dataclass(frozen=True)
class Policy:
    """What is allowed: `licences` None allows any; `locked` are digests that a lock holds, which may be yanked."""

    licences: frozenset[str] | None = None
    exclude_newer: datetime | None = None
    exact: bool = False
    yanked: bool = False
    locked: frozenset[Digest] = frozenset()

    def refuses(self, candidate: Candidate) -> Refusal | None:
        """Whether a candidate is refused for what the listing says of it."""
        if candidate.yanked is not None and not self.yanked and candidate.digest not in self.locked:
            return Refusal("yanked", f"yanked: {candidate.yanked or 'without a reason'}")
        if self.exclude_newer is not None and not _is_older(candidate.created, self.exclude_newer):
            when = f"published {candidate.created}" if candidate.created else "published at an unknown time"
            return Refusal("newer", f"{when}, after {self.exclude_newer:%Y-%m-%dT%H:%M:%SZ}")
        return None

    def refuses_details(self, details: Details) -> Refusal | None:
        """Whether a candidate is refused for what it says of itself."""
        if self.exact and details.exactness.kind != "exact":
            return Refusal("lossy", f"an approximation: {details.exactness}")
        if self.licences is not None and not is_allowed(details.licence, self.licences):
            allowed = ", ".join(sorted(self.licences)) or "none"
            return Refusal("licence", f"its licence is {details.licence or 'unknown'}; allowed: {allowed}")
        return None


@dataclass
class Pool:
    """The candidates of every name that was asked for, the preferred first, and what became of each.

    `preferred` are versions that come first where they fit, by name: those of a lock. Without a `judge` everything fits
    the base.
    """

    sources: Sources
    policy: Policy = field(default_factory=Policy)
    judge: Judge | None = None
    preferred: dict[str, Digest] = field(default_factory=dict[str, Digest])
    _candidates: dict[tuple[str, str], list[Candidate]] = field(
        default_factory=dict[tuple[str, str], list[Candidate]], init=False
    )
    _details: dict[Candidate, Details | Refusal] = field(default_factory=dict[Candidate, Details | Refusal], init=False)
    _judged: dict[Candidate, Refusal | bool] = field(default_factory=dict[Candidate, Refusal | bool], init=False)

    def relaxed(self, policy: Policy) -> Pool:
        """The same candidates under another policy: what was read of them is not read again."""
        other = replace(self, policy=policy)
        other._candidates, other._details, other._judged = self._candidates, self._details, self._judged
        return other

    def candidates(self, repository: str, remote: str) -> Sequence[Candidate]:
        """Every version, the preferred first, then from the highest down. Raises RemoteUnavailable, NotAllowed."""
        key = (repository, remote)
        if key not in self._candidates:
            first = self.preferred.get(repository)
            found = self.sources.named(remote).candidates(repository)
            found.sort(key=lambda candidate: version_key(candidate.version), reverse=True)
            found.sort(key=lambda candidate: candidate.digest != first)
            self._candidates[key] = found
        return self._candidates[key]

    def details(self, candidate: Candidate) -> Details:
        """What an admissible candidate says of itself; it requires nothing of what the base holds already."""
        found = self._read(candidate)
        assert isinstance(found, Details)
        if found.requires and self._judgement(candidate) is True:
            return replace(found, requires=())
        return found

    def refusal(self, candidate: Candidate) -> Refusal | None:
        """Why a candidate may not be chosen; None where it may. The cheapest questions come first."""
        refused = self.policy.refuses(candidate)
        if refused is not None:
            return refused
        details = self._read(candidate)
        if isinstance(details, Refusal):
            return details
        refused = self.policy.refuses_details(details) or self._judgement(candidate)
        return refused if isinstance(refused, Refusal) else None

    def admissible(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those that may be chosen."""
        return [candidate for candidate in candidates if self.refusal(candidate) is None]

    def _judgement(self, candidate: Candidate) -> Refusal | bool:
        if self.judge is None:
            return False
        if candidate not in self._judged:
            try:
                self._judged[candidate] = self.judge(self.sources.named(candidate.remote), candidate)
            except (RemoteUnavailable, NotAllowed):
                raise
            except DeltaregError as error:
                self._judged[candidate] = Refusal("unreadable", error.message, (error.code,))
        return self._judged[candidate]

    def _read(self, candidate: Candidate) -> Details | Refusal:
        if candidate not in self._details:
            try:
                self._details[candidate] = self.sources.named(candidate.remote).details(candidate)
            except (RemoteUnavailable, NotAllowed):
                # A remote that does not answer is no reason to choose something else.
                raise
            except DeltaregError as error:
                self._details[candidate] = Refusal("unreadable", error.message, (error.code,))
        return self._details[candidate]


def _is_older(created: str, moment: datetime) -> bool:
    try:
        return datetime.fromisoformat(created) <= moment
    except (ValueError, TypeError):
        return False
