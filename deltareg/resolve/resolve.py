"""Resolving a recipe."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from deltareg.check import CheckedDelta, fitter
from deltareg.checkpoint import Checkpoint
from deltareg.digest import Digest, parse_digest
from deltareg.errors import InvalidArgument
from deltareg.fingerprint import fingerprint_of
from deltareg.lock import Lock, LockedBase
from deltareg.paths import expand_home
from deltareg.recipe import Number, Recipe, RecipeDelta, Setting
from deltareg.resolve.explain import nothing_fits
from deltareg.resolve.policy import Judge, Policy, Pool, Refusal
from deltareg.resolve.search import Choices, Unsatisfiable, Wish, in_order, search
from deltareg.resolve.source import Candidate, Details, Source, Sources

__all__ = ["Base", "Choice", "Resolution", "resolve"]

_FINDINGS_TOLD = 2


@dataclass(frozen=True)
class Choice:
    """One delta that is applied, and how.

    `wanted` is what the recipe asks for, None where it does not name the delta; `required_by` are the others that do.
    """

    candidate: Candidate
    details: Details
    weight: Number
    where: dict[str, Number]
    parameters: dict[str, Setting]
    wanted: str | None
    required_by: tuple[Candidate, ...]


@dataclass(frozen=True)
class Resolution:
    """What a recipe was found to mean: the deltas in the order in which they are applied, and the base.

    `pool` holds every version that was looked at, `warnings` are what the user should know.
    """

    recipe: Recipe
    base: LockedBase
    choices: tuple[Choice, ...]
    pool: Pool
    wishes: tuple[Wish, ...]
    warnings: tuple[str, ...] = ()

    def choice(self, repository: str) -> Choice | None:
        """The delta of that namespace/name."""
        return next((one for one in self.choices if one.candidate.repository == repository), None)


@dataclass(frozen=True)
class Base:
    """The base of a recipe, opened; `checkpoint` is None where the recipe knows its fingerprint only."""

    location: str
    checkpoint: Checkpoint | None
    fingerprint: Digest | None = None

    @classmethod
    def of(cls, recipe: Recipe, directory: Path) -> Base:
        """The base of a recipe that lies in `directory`, its headers read. Raises what `Checkpoint.open` raises."""
        location = recipe.build.base
        if location.startswith("sha256:"):
            return cls(location, None, parse_digest(location))
        return cls(location, Checkpoint.open(location_in(location, directory), headers_only=True))

    def close(self) -> None:
        """Close its files."""
        if self.checkpoint is not None:
            self.checkpoint.close()


def location_in(location: str, directory: Path) -> str:
    """A checkpoint's location, where a relative path counts from `directory`."""
    return location if "://" in location else os.path.normpath(directory / expand_home(location))


def resolve(
    recipe: Recipe,
    sources: Sources,
    *,
    directory: Path | str = ".",
    base: Base | None = None,
    lock: Lock | None = None,
    update: Iterable[str] | None = (),
    allow_licence: Iterable[str] = (),
    exclude_newer: datetime | None = None,
    called: str = "the recipe",
    threads: int | None = None,
) -> Resolution:
    """Find the versions that are what `recipe` asks for, fit its base and go together.

    Of those that fit, the highest: first of the delta that the recipe names first, then of the second, and so on; then
    of what these require. Each name is looked up in the one registry that it is bound to (`sources`). What `lock` holds
    is kept where it still fits, but for the names in `update`; None frees all of them.

    Licences in `allow_licence` are allowed beside those of the recipe, and what was published after `exclude_newer` is
    left out, whatever the recipe says. `directory` is where the recipe lies; a `base` that is given is not opened anew.
    Nothing but documents is fetched.

    Raises NothingFits, which says why; RemoteUnavailable, NotAllowed, and what opening the base raises.
    """
    directory = Path(directory)
    if not recipe.delta:
        raise InvalidArgument(f"{called} names no delta", hint="deltareg add namespace/name")
    with ExitStack() as stack:
        if base is None:
            base = stack.enter_context(closing(Base.of(recipe, directory)))
        kept = _kept(lock, update)
        pool = Pool(sources, _policy(recipe, kept, allow_licence, exclude_newer), _judge(base, threads), kept)
        wishes = [_wish(delta, sources) for delta in recipe.delta]
        try:
            chosen = search(wishes, pool)
        except Unsatisfiable as error:
            raise nothing_fits(wishes, pool, error, called) from None
        choices = _choices(recipe, chosen, pool)
        return Resolution(
            recipe=recipe,
            base=_locked_base(base),
            choices=choices,
            pool=pool,
            wishes=tuple(wishes),
            warnings=tuple(_warnings(choices)),
        )


def _kept(lock: Lock | None, update: Iterable[str] | None) -> dict[str, Digest]:
    """What the lock holds and is to stay."""
    if lock is None or update is None:
        return {}
    freed = set(update)
    strangers = freed - {delta.name.repository for delta in lock.deltas}
    if strangers:
        names = ", ".join(delta.name.repository for delta in lock.deltas)
        raise InvalidArgument(
            f"{', '.join(sorted(strangers))} is not in the lock", cause=f"it holds {names}", hint="deltareg tree"
        )
    return {delta.name.repository: Digest(delta.digest) for delta in lock.deltas if delta.name.repository not in freed}


def _policy(
    recipe: Recipe, kept: dict[str, Digest], allow_licence: Iterable[str], exclude_newer: datetime | None
) -> Policy:
    named = recipe.build.allow_licence
    allowed = frozenset(allow_licence) | frozenset(named or ())
    return Policy(
        licences=allowed if allowed or named is not None else None,
        exclude_newer=exclude_newer or recipe.build.exclude_newer,
        exact=recipe.build.exact,
        locked=frozenset(kept.values()),
    )


def _wish(delta: RecipeDelta, sources: Sources) -> Wish:
    return Wish(
        repository=delta.ref,
        remote=sources.remote_of(delta.ref, delta.remote),
        range=delta.range,
        channel=delta.channel,
        digest=None if delta.digest is None else parse_digest(delta.digest),
    )


def _judge(base: Base, threads: int | None) -> Judge:
    if base.checkpoint is None:
        wanted = base.fingerprint

        def by_fingerprint(source: Source, candidate: Candidate) -> Refusal | bool:
            found = source.artifact(candidate).config.fingerprint
            if wanted in (found.digest, found.space):
                return False
            return Refusal("incompatible", f"its base has the fingerprint {found.digest}", ("fingerprint",))

        return by_fingerprint
    fit_of = fitter(base.checkpoint, threads=threads)

    def by_check(source: Source, candidate: Candidate) -> Refusal | bool:
        fit = fit_of(candidate.reference, source.artifact(candidate))
        return _refused(fit.checked) or fit.own_base

    return by_check


def _refused(checked: CheckedDelta) -> Refusal | None:
    if checked.verdict != "incompatible":
        return None
    errors = [found for found in checked.findings if found.severity == "error"]
    counts = Counter(found.code for found in errors)
    # What there is one of, such as another kind of model, says more than the first of a hundred tensors.
    first = sorted({found.code: found for found in reversed(errors)}.values(), key=lambda found: counts[found.code])
    shown = "; ".join(str(found) for found in first[:_FINDINGS_TOLD])
    told = len(first[:_FINDINGS_TOLD])
    more = f"; and {len(errors) - told} more" if len(errors) > told else ""
    return Refusal("incompatible", f"it does not fit the base: {shown}{more}", tuple(counts))


def _choices(recipe: Recipe, chosen: Choices, pool: Pool) -> tuple[Choice, ...]:
    asked = {delta.ref: delta for delta in recipe.delta}
    order = in_order(chosen, pool)
    required: dict[str, list[tuple[Candidate, float]]] = {}
    for candidate in order:
        for one in pool.details(candidate).requires:
            required.setdefault(one.reference, []).append((candidate, one.weight))
    found: list[Choice] = []
    for candidate in order:
        name = candidate.repository
        delta = asked.get(name)
        needs = required.get(name, [])
        found.append(
            Choice(
                candidate=candidate,
                details=pool.details(candidate),
                # All that require it agree about the weight: else nothing would have fitted.
                weight=needs[0][1] if delta is None else delta.weight,
                where={} if delta is None else delta.where,
                parameters={} if delta is None else delta.parameters,
                wanted=None if delta is None else delta.wanted,
                required_by=tuple(by for by, _ in needs),
            )
        )
    return tuple(found)


def _warnings(choices: Sequence[Choice]) -> Iterable[str]:
    for choice in choices:
        candidate = choice.candidate
        if candidate.yanked is not None:
            yield f"{candidate} was yanked ({candidate.yanked or 'without a reason'}); the lock keeps it"
        if candidate.deprecated is not None:
            yield f"{candidate} is deprecated: {candidate.deprecated or 'without a reason'}"
        for by in choice.required_by:
            asked = next(
                one.weight
                for other in choices
                if other.candidate == by
                for one in other.details.requires
                if one.reference == candidate.repository
            )
            if choice.weight != asked or choice.where:
                yield (
                    f"{by} was taken on top of {candidate} at weight {asked:g}, and the recipe has it at another one: "
                    "what it taught may be lost"
                )


def _locked_base(base: Base) -> LockedBase:
    if base.checkpoint is None:
        assert base.fingerprint is not None
        return LockedBase(location=base.location, fingerprint=base.fingerprint)
    fingerprint = fingerprint_of(base.checkpoint)
    tokenizer = fingerprint.tokenizer
    return LockedBase(
        location=base.location,
        id=base.checkpoint.id,
        revision=base.checkpoint.revision,
        licence=base.checkpoint.licence,
        fingerprint=fingerprint.digest,
        tokenizer=None if tokenizer is None else tokenizer.core,
    )
