"""Where the tensors of a delta go on a target that differs from its base: the remedies that `check` speaks of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from deltareg.apply.rows import Rows
from deltareg.artifact import Artifact
from deltareg.check import Fit, dtype_fits
from deltareg.checkpoint import Checkpoint
from deltareg.codec import is_additive
from deltareg.homology import Space, delta_shapes
from deltareg.manifest import TensorEntry
from deltareg.merge.schedule import Schedule, Subject
from deltareg.names import Reference

__all__ = ["Placed", "Placement", "WeightedDelta", "place", "place_unchanged"]

_SHOWN = 4
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.")


@dataclass(frozen=True)
class WeightedDelta:
    """One delta that is to be applied, and its weight, which may differ by tensor; it is not zero everywhere.

    `parameters` are those of the method that it has for itself. `yanked` is why its version was yanked, None where it
    was not; `deprecated` likewise.
    """

    reference: Reference
    artifact: Artifact
    weights: Schedule
    parameters: Mapping[str, Schedule] = field(default_factory=dict[str, Schedule])
    yanked: str | None = None
    deprecated: str | None = None

    def weight_at(self, subject: Subject) -> float:
        """The weight for one tensor: 0 where none is set."""
        return float(self.weights.at(subject) or 0.0)

    @property
    def schedules(self) -> list[Schedule]:
        """All that is set for it by tensor."""
        return [self.weights, *self.parameters.values()]

    @property
    def warnings(self) -> list[str]:
        """What its registry says of it today, and what so does not belong into the output."""
        marks = {"yanked": self.yanked, "deprecated": self.deprecated}
        return [
            f"{self.reference} is {mark}: {reason or 'no reason is given'}"
            for mark, reason in marks.items()
            if reason is not None
        ]

    @cached_property
    def entries(self) -> Mapping[str, TensorEntry]:
        """The tensors of the delta, by name."""
        return {entry.name: entry for entry in self.artifact.inventory.tensors}


@dataclass(frozen=True)
class Placed:
    """A tensor of a delta at its place; `rows` where its rows stand otherwise in the target."""

    entry: TensorEntry
    rows: Rows | None = None


@dataclass(frozen=True)
class Placement:
    """Where deltas go on a target.

    `deltas` has for each of them its tensors by the target's names. `untied` gives the token embedding from which an
    output embedding that the target lacks is made, by the name of the latter. `separate`: the embeddings are no longer
    tied. `remedies` says what was done about the differences, a sentence each.
    """

    deltas: Sequence[Mapping[str, Placed]]
    untied: Mapping[str, str]
    separate: bool
    remedies: Sequence[str]


def place_unchanged(deltas: Sequence[WeightedDelta]) -> Placement:
    """Each tensor where its name says: for the base itself."""
    return Placement([{name: Placed(entry) for name, entry in one.entries.items()} for one in deltas], {}, False, ())


def place(
    target: Checkpoint, deltas: Sequence[WeightedDelta], fits: Sequence[Fit], *, with_added: bool | None
) -> Placement:
    """Where each tensor of `deltas` goes on `target`, as their `fits` have it.

    Tensors that training added are taken where `with_added` says so, and where it is None on the delta's own base. What
    fits nowhere is left out, and told: to refuse it is for `apply`, before.
    """
    if not deltas:
        return place_unchanged(deltas)
    theirs = Space({tensor.name: tensor.shape for tensor in target.tensors.values()}, fits[0].target)
    jobs = [_Job(target, theirs, delta, fit, with_added) for delta, fit in zip(deltas, fits, strict=True)]
    for job in jobs:
        job.place()
    untied = {name: home for job in jobs for name, home in job.untied.items()}
    for job in jobs:
        job.place_tied(untied)
    told = list(dict.fromkeys(line for job in jobs for line in job.told()))
    separate = theirs.tied and any(job.separate for job in jobs)
    if separate:
        told.append("the output embedding is a tensor of its own now: tie_word_embeddings is false")
    return Placement([job.placed for job in jobs], untied, separate, told)


class _Job:
    """One delta on its way to its places, and what there is to tell of it."""

    def __init__(
        self, target: Checkpoint, theirs: Space, delta: WeightedDelta, fit: Fit, with_added: bool | None
    ) -> None:
        self.placed: dict[str, Placed] = {}
        self.untied: dict[str, str] = {}
        self.separate = False
        self._target = target
        self._theirs = theirs
        self._delta = delta
        self._fit = fit
        self._takes_added = fit.at_home if with_added is None else with_added
        self._ours = Space(delta_shapes(delta.artifact.inventory), fit.base)
        self._notes: dict[str, list[str]] = defaultdict(list)

    def place(self) -> None:
        """Give each tensor of the delta that the target has a place for that place."""
        renamed = self._fit.renamed
        if renamed:
            self._notes["other names in the target"] = [f"{name} as {other}" for name, other in renamed.items()]
        ours, theirs = _wrapping(renamed)
        for entry in self._delta.artifact.inventory.tensors:
            name = renamed.get(entry.name) or entry.name
            if name not in self._theirs.shapes:
                # What the target lacks is called as the rest of it is.
                name = theirs + name.removeprefix(ours)
            if entry.base_dtype is None:
                self._add(entry, name)
            elif name in self._theirs.shapes:
                self._match(entry, name)
            elif entry.kind != "removed":
                self._miss(entry, name)
        matched = {renamed.get(name, name) for name in self._ours.shapes}
        for name in self._theirs.shapes:
            if name not in matched and self._theirs.is_head(name) and not self._theirs.is_output(name):
                self._notes["kept as in the target, whose own they are"].append(name)

    def place_tied(self, untied: Mapping[str, str]) -> None:
        """Add a delta of tied embeddings to the output embedding too, where that is a tensor of its own."""
        if not self._ours.tied or any(self._ours.is_output(name) for name in self._ours.shapes):
            return
        outputs = [name for name in self._theirs.shapes if self._theirs.is_output(name)]
        for name in [*outputs, *untied]:
            shape = self._theirs.shapes[untied.get(name, name)]
            home = self._ours.input_of(shape)
            if home is not None and name not in self.placed:
                self._match(self._delta.entries[home], name, shape)
                self._notes["tied in the delta: added to both embeddings of the target"].append(name)

    def told(self) -> list[str]:
        """What was done, a line for each remedy."""
        lines: list[str] = []
        for what, names in self._notes.items():
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"{self._delta.reference}: {what}: {', '.join(names[:_SHOWN])}{more}")
        return lines

    def _add(self, entry: TensorEntry, name: str) -> None:
        if name in self._theirs.shapes:
            self._notes["left out, because the target has a tensor of its own of that name"].append(name)
        elif self._takes_added:
            self.placed[name] = Placed(entry)
        else:
            self._notes["left out, because only post has it (--with-added takes it)"].append(name)

    def _miss(self, entry: TensorEntry, name: str) -> None:
        if self._ours.is_buffer(entry.name):
            self._notes["left out, because it is a buffer"].append(name)
            return
        if self._ours.is_output(entry.name) and self._theirs.tied:
            home = self._theirs.input_of(tuple(entry.shape))
            if self._ours.tied:
                self._notes["left out, because it is a copy of the input embedding"].append(name)
                return
            if home is not None:
                self.untied[name] = home
                self.separate = True
                self._match(entry, name, self._theirs.shapes[home])
                self._notes["made of the target's input embedding, with the delta's change"].append(name)
                return
        self._notes["left out, because the target lacks it"].append(name)

    def _match(self, entry: TensorEntry, name: str, shape: tuple[int, ...] | None = None) -> None:
        """Place a tensor at one that the target has, or will have, of `shape`."""
        there = self._theirs.shapes[name] if shape is None else shape
        if entry.kind == "removed":
            self.placed[name] = Placed(entry)
            return
        here = tuple(entry.shape)
        source = self._target.tensors.get(name)
        rows = self._rows(entry, there)
        if here != there and rows is None:
            buffer = self._ours.is_buffer(entry.name)
            why = "it is a buffer" if buffer else "it has another shape in the target"
            self._notes[f"left out, because {why}"].append(name)
        elif source is not None and entry.post_dtype is not None and not dtype_fits(entry, source.dtype):
            self._notes["left out, because its dtype does not fit"].append(name)
        elif rows is not None and not is_additive(entry):
            self._notes["left out, because rows of replaced bits cannot be matched"].append(name)
        else:
            self.placed[name] = Placed(entry, rows)
            if rows is not None:
                self._notes[self._matched(rows)].append(name)
            if self._theirs.tied and not self._ours.tied and self._ours.is_output(entry.name):
                self.separate = True

    def _rows(self, entry: TensorEntry, there: tuple[int, ...]) -> Rows | None:
        """How the rows go from a tensor with one for each token; None for others, and where they are the same."""
        here = tuple(entry.shape)
        if not here or not there or here[1:] != there[1:] or 0 in (*here, *there):
            return None
        if not self._ours.has_vocabulary_rows(entry.name):
            return None
        moved = {row: home for row, home in self._fit.moved.items() if row < there[0]}
        return Rows(here[0], there[0], moved) if moved or here != there else None

    def _matched(self, rows: Rows) -> str:
        if not self._fit.tokens_known:
            return f"{min(rows.delta, rows.target):,} rows matched by number, because the tokens are not known"
        changed = sum(home >= 0 for home in rows.moved.values())
        kept = int((rows.sources < 0).sum())
        return (
            f"rows matched by token, {changed:,} of them in another place; {kept:,} of {rows.target:,} rows have no "
            "token of the delta and stay"
        )


def _wrapping(renamed: Mapping[str, str]) -> tuple[str, str]:
    """The prefixes of whole models, such as that of a data-parallel module, that the names of both sides begin with."""
    pair = next(iter(renamed.items()), ("", ""))
    found = ["", ""]
    for side, (own, other) in enumerate((pair, pair[::-1])):
        rest = own.removesuffix(other)
        while rest != own and (wrapper := next((one for one in _WRAPPERS if rest.startswith(one)), "")):
            found[side] += wrapper
            rest = rest.removeprefix(wrapper)
    return found[0], found[1]
