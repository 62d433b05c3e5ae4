"""Which deltas go together: what one requires of those that are applied with it, and what it excludes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deltareg.apply.placement import WeightedDelta
from deltareg.check import Fit
from deltareg.manifest import Requirement
from deltareg.merge import Schedule
from deltareg.versions import ANY, parse_range

__all__ = ["Fault", "command", "faults_among", "notes_among"]


@dataclass(frozen=True)
class Fault:
    """What is wrong about the company of a delta; `missing` is what has to be applied too, None for a conflict."""

    delta: WeightedDelta
    missing: Requirement | None
    message: str

    def __str__(self) -> str:
        return self.message


def faults_among(deltas: Sequence[WeightedDelta], fits: Sequence[Fit]) -> list[Fault]:
    """Requirements that nothing meets, and conflicts, among deltas that are applied together.

    A target that is a delta's own base holds already what the delta was taken on top of.
    """
    found: list[Fault] = []
    for delta, fit in zip(deltas, fits, strict=True):
        for required in () if fit.own_base else delta.artifact.config.requires:
            if not _meeting(required, delta, deltas):
                message = f"{delta.reference} was taken on top of {required}, which is not applied with it"
                found.append(Fault(delta, required, message))
        for conflict in delta.artifact.config.conflicts:
            excluded = [one for one in deltas if _is_named(one, conflict.reference, conflict.version) and one != delta]
            for other in excluded:
                why = f": {conflict.reason}" if conflict.reason else ""
                found.append(Fault(delta, None, f"{delta.reference} excludes {other.reference}{why}"))
    return found


def notes_among(deltas: Sequence[WeightedDelta], fits: Sequence[Fit]) -> list[str]:
    """What was required at another weight than it has."""
    found: list[str] = []
    for delta, fit in zip(deltas, fits, strict=True):
        for required in () if fit.own_base else delta.artifact.config.requires:
            meeting = _meeting(required, delta, deltas)
            weights = [one.weights.plain for one in meeting]
            # Named more than once, a delta's weights add up.
            added = [weight for weight in weights if isinstance(weight, float)]
            alike = len(added) == len(weights) and sum(added) == required.weight
            if meeting and not alike:
                told = " and ".join(str(weight) for weight in weights)
                found.append(
                    f"{delta.reference} was taken on top of {meeting[0].reference} at weight {required.weight:g}, "
                    f"which has {told} here: what it taught may be lost"
                )
    return found


def command(target: str, deltas: Iterable[WeightedDelta], faults: Iterable[Fault]) -> str:
    """What to type so that everything is applied that the deltas require."""
    words: dict[str, None] = {}
    missing = [(fault.delta, fault.missing) for fault in faults if fault.missing is not None]
    replaced = {required.reference for _, required in missing}
    for delta in deltas:
        for other, required in missing:
            if other == delta:
                words[_word(required.name, Schedule.of(required.weight))] = None
        if delta.reference.repository not in replaced:
            words[_word(str(delta.reference), delta.weights)] = None
    return f"deltareg apply {target} {' '.join(words)} -o OUT"


def _word(name: str, weights: Schedule) -> str:
    plain = weights.plain
    return name if plain == 1 or not isinstance(plain, float) else f"{name}={plain:g}"


def _meeting(required: Requirement, delta: WeightedDelta, deltas: Sequence[WeightedDelta]) -> list[WeightedDelta]:
    """Those of the deltas that are what `delta` requires."""
    return [
        one
        for one in deltas
        if one != delta
        and _is_named(one, required.reference, required.version)
        and required.digest in (None, one.artifact.digest)
    ]


def _is_named(delta: WeightedDelta, repository: str, versions: str) -> bool:
    wanted, version = parse_range(versions), delta.reference.version
    return delta.reference.repository == repository and (wanted == ANY if version is None else wanted.has(version))
