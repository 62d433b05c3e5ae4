"""What is decided before a byte is written: which deltas, whether they fit, where they go, what comes beside them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import deltareg
from deltareg.apply.card import Labels, config_json
from deltareg.apply.company import command, faults_among, notes_among
from deltareg.apply.placement import Placement, WeightedDelta, place
from deltareg.apply.plan import Merge, Parameters, Plan, plan, schedules_of
from deltareg.apply.run import Outcome
from deltareg.apply.side_files import SideFiles, side_files
from deltareg.catalog import Registry
from deltareg.check import Fit, fit
from deltareg.checkpoint import Checkpoint
from deltareg.digest import canonical_json, sha256
from deltareg.errors import InvalidArgument, NotHomologous
from deltareg.homology import first_of
from deltareg.licences import DerivedLicence, derive
from deltareg.merge import Gradient, Schedule, refuse_unmatched
from deltareg.names import Reference

__all__ = [
    "Deltas",
    "Prepared",
    "Weight",
    "checked_weight",
    "open_delta",
    "prepare",
    "refuse_errors",
    "texts_of",
    "weighted",
]

Weight = float | Gradient | Schedule
"""A delta's weight: one number, or what differs by tensor."""

Deltas = Mapping[str, Weight] | Sequence[tuple[str | Reference, Weight] | tuple[str | Reference, Weight, Parameters]]
"""Names of deltas with their weights, and with the parameters of the method that a delta has for itself."""

# A finding that says how far a shape is from another may come once for each tensor.
_MOST_TOLD = 200
_FAULTS_TOLD = 4


@dataclass(frozen=True)
class Prepared:
    """Everything that is decided before a byte is written."""

    target: Checkpoint
    wanted: list[WeightedDelta]
    active: list[WeightedDelta]
    merge: Merge
    fits: list[Fit]
    overridden: list[str]
    placement: Placement
    plan: Plan
    files: dict[str, bytes]
    with_added: bool | None
    force: bool
    company: list[str]
    labels: Labels

    @cached_property
    def licence(self) -> DerivedLicence:
        """What the licences of the target, and of the deltas that are in the output, make of the output's."""
        of_deltas = {str(one.reference): one.artifact.config.licence for one in self.active}
        return derive({self.target.id: self.target.licence, **of_deltas})

    def digest(self) -> str:
        """What decides the bytes of the output: where it is the same, a run can go on where another was killed."""
        return sha256(
            canonical_json(
                {
                    "producer": f"deltareg {deltareg.__version__}",
                    "target": [self.target.id, self.target.revision, self.target.stamps],
                    "deltas": [
                        [str(one.reference), one.artifact.digest, str(one.weights), texts_of(one.parameters)]
                        for one in self.wanted
                    ],
                    "method": [self.merge.method.name, texts_of(self.merge.told())],
                    "seed": str(self.merge.seed),
                    "policy": [self.with_added, self.force, self.placement.separate],
                    "labels": [self.labels.title, self.labels.base, self.labels.maker],
                    "files": {name: sha256(data) for name, data in self.files.items()},
                    "shards": [[shard.file, shard.tensors, dict(shard.metadata)] for shard in self.plan.shards],
                }
            )
        )

    def notes(self, outcome: Outcome) -> list[str]:
        """What the user should know of the output."""
        faults = dict.fromkeys(fault for one in self.fits for fault in one.faults)
        notes = [*self.plan.warnings, *self.company, *(f"tokens were not compared: {fault}" for fault in faults)]
        if self.target.dequantised:
            notes.append(
                f"{self.target.dequantised} tensors of scaled 8-bit floats in the target are bfloat16 in the output"
            )
        counts = Counter(delta.artifact.digest for delta in self.wanted)
        how = "its weights add up" if self.merge.method.name == "linear" else "each time as a delta of its own"
        notes.extend(
            f"{delta.reference} is named more than once: {how}"
            for delta in {delta.artifact.digest: delta for delta in self.wanted}.values()
            if counts[delta.artifact.digest] > 1
        )
        if self.plan.removed:
            notes.append(f"left out, as in post: {', '.join(self.plan.removed)}")
        if outcome.skipped:
            count = f"{outcome.skipped} elements" if outcome.skipped > 1 else "1 element"
            notes.append(
                f"{count} of post that no sum can give (NaN, Inf, −0.0), not taken over: "
                "that is done on the delta's own base, alone and at weight 1"
            )
        return notes


def prepare(
    target: Checkpoint,
    wanted: list[WeightedDelta],
    merge: Merge,
    side_files: SideFiles,
    threads: int,
    *,
    with_added: bool | None,
    force: bool,
    dtype: str | None = None,
    labels: Labels | None = None,
) -> Prepared:
    """Check the deltas, and plan what becomes of each tensor.

    Raises NotHomologous; InvalidArgument, also where a delta lacks what it was taken on top of, or excludes another.
    """
    active = [delta for delta in wanted if any(delta.weights.values)]
    for delta in wanted:
        merge.check_own(delta.reference, delta.parameters)
    if active:
        merge.method.check_deltas(len(active))
    fits = fit(target, [(delta.reference, delta.artifact) for delta in active], threads=threads, lenient=True)
    overridden = refuse_errors(fits, target, force=force)
    overridden += _refuse_company(target, active, fits, force=force)
    placement = place(target, active, fits, with_added=with_added)
    planned = plan(target, active, placement, merge, dtype=dtype)
    of_deltas = [schedule for delta in wanted for schedule in delta.schedules]
    refuse_unmatched([*of_deltas, *merge.parameters.values()], planned.subjects.values())
    files = _files(target, active, side_files, planned, placement, fits)
    return Prepared(
        target=target,
        wanted=wanted,
        active=active,
        merge=merge,
        fits=fits,
        overridden=overridden,
        placement=placement,
        plan=planned,
        files=files,
        with_added=with_added,
        force=force,
        company=notes_among(active, fits),
        labels=labels or Labels(),
    )


def weighted(deltas: Deltas) -> list[tuple[str | Reference, Schedule, dict[str, Schedule]]]:
    """The deltas with their weights, and the parameters that they have for themselves.

    Raises InvalidArgument where none is named, a weight is no number, or its parameters are none.
    """
    named = list(deltas.items()) if isinstance(deltas, Mapping) else list(deltas)
    if not named:
        raise InvalidArgument("no delta was named", hint="deltareg apply TARGET namespace/name:1.2.3=0.5 -o OUT")
    return [
        (reference, checked_weight(weight, f"the weight of {reference}"), _own_schedules(reference, own))
        for reference, weight, *own in named
    ]


def _own_schedules(reference: str | Reference, own: Sequence[object]) -> dict[str, Schedule]:
    if len(own) > 1 or any(not isinstance(one, Mapping) for one in own):
        told = ", ".join(map(repr, own))
        raise InvalidArgument(
            f"{reference} has {told} behind its weight",
            hint='a delta with parameters of its own is ("acme/search:1.0.0", 0.5, {"density": 0.3})',
        )
    return schedules_of(cast("Parameters", own[0]) if own else None)


def checked_weight(weight: Weight, what: str = "the weight") -> Schedule:
    """The rules of a weight, its numbers as floats. Raises InvalidArgument, which calls it `what`."""
    schedule = Schedule.of(weight)
    for value in schedule.values:
        # Beyond float32 a weight of 16-bit deltas would be infinite.
        if isinstance(value, str) or not math.isfinite(value) or abs(value) > 3.4e38:
            raise InvalidArgument(f"{what} is {value!r}", hint="a weight is a finite number of at most 3.4e38")
    return Schedule(
        tuple((selector, value if isinstance(value, Gradient) else float(value)) for selector, value in schedule.rules)
    )


def texts_of(parameters: Mapping[str, Schedule]) -> dict[str, str]:
    """Parameters as the command line says them."""
    return {name: str(schedule) for name, schedule in parameters.items()}


def open_delta(
    registry: Registry,
    reference: str | Reference,
    weights: Schedule,
    parameters: Mapping[str, Schedule] | None = None,
) -> WeightedDelta:
    """A delta by its name, which becomes that of a version.

    Raises NotFound, UnsupportedFormat; SignatureMissing, SignatureUntrusted and SignatureInvalid where a policy forbids
    it.
    """
    # The card says what was applied even after `latest` has moved on.
    version = registry.version_of(reference)
    registry.check_signed(reference)
    artifact = registry.artifact(version)
    told = (registry.yanked(version), registry.deprecated(version))
    return WeightedDelta(version, artifact, weights, parameters or {}, *told)


def refuse_errors(fits: Sequence[Fit], target: Checkpoint, *, force: bool) -> list[str]:
    """Raise NotHomologous where a delta is incompatible; with `force` returns the findings that say so instead."""
    errors = [(one.checked, found) for one in fits for found in one.checked.findings if found.severity == "error"]
    if not errors:
        return []
    if force:
        told = [f"{delta.reference}: {found.code}: {found}" for delta, found in errors]
        return told[:_MOST_TOLD] + ([f"and {len(told) - _MOST_TOLD} more"] if len(told) > _MOST_TOLD else [])
    first = errors[0][0]
    shown = first_of([found for _, found in errors])
    codes = ", ".join(dict.fromkeys(found.code for _, found in errors))
    raise NotHomologous(
        f"{first.reference} does not fit {target.id}; the delta's base against the target: {shown}",
        cause=f"{len(errors)} difference{'s' if len(errors) > 1 else ''} that no remedy bridges: {codes}",
        hint=f"deltareg check {first.reference} --base {target.id} tells more; --force applies it all the same",
        findings=[
            {
                "reference": delta.reference,
                "code": found.code,
                "subject": found.subject,
                "delta": found.delta,
                "target": found.target,
            }
            for delta, found in errors
        ],
    )


def _refuse_company(
    target: Checkpoint, deltas: Sequence[WeightedDelta], fits: Sequence[Fit], *, force: bool
) -> list[str]:
    """Raise InvalidArgument where deltas do not go together; with `force` return what says so instead."""
    faults = faults_among(deltas, fits)
    if not faults or force:
        return [str(fault) for fault in faults]
    excluding = any(fault.missing is None for fault in faults)
    way = "leave one of them out" if excluding else command(target.id, deltas, faults)
    more = f"; and {len(faults) - _FAULTS_TOLD} more" if len(faults) > _FAULTS_TOLD else ""
    raise InvalidArgument(
        "; ".join(map(str, faults[:_FAULTS_TOLD])) + more,
        cause=None if excluding else f"{target.id} is not the base that it was taken from, which holds that already",
        hint=f"{way}, or --force",
        faults=[str(fault) for fault in faults],
    )


def _files(
    target: Checkpoint,
    deltas: Sequence[WeightedDelta],
    choice: SideFiles,
    planned: Plan,
    placement: Placement,
    fits: Sequence[Fit],
) -> dict[str, bytes]:
    """The files beside the weights, by relative path."""
    files = side_files(target, deltas, choice, [one.moved for one in fits])
    config = config_json(target, planned, separate=placement.separate)
    if config is not None:
        files["config.json"] = config
    return files
