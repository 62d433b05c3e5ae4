"""The base of an exported delta: whether it is the one that the delta was taken from, and is left alone."""

from __future__ import annotations

import os
from pathlib import Path

from deltareg.artifact import Artifact
from deltareg.check import fit
from deltareg.checkpoint import Checkpoint
from deltareg.errors import NotHomologous, OutputExists
from deltareg.homology import first_of
from deltareg.names import Reference

__all__ = ["check_base", "refuse_onto_base"]


def refuse_onto_base(out: Path, base: Path) -> None:
    """Raise OutputExists if `out` is where the base lies."""
    at = Path(os.path.realpath(base))
    if at == out or out in at.parents:
        raise OutputExists(
            f"the output is the base: {out}",
            cause="the adapter would take its place",
            hint="choose another output",
            path=out,
        )


def check_base(
    base: Checkpoint, reference: Reference, artifact: Artifact, threads: int | None, *, force: bool
) -> list[str]:
    """What is to be said of a base with the tensors of the delta's own. Raises NotHomologous where it is another one.

    With `force` it is said instead.
    """
    _refuse_other(base, artifact)
    (fitted,) = fit(base, [(reference, artifact)], threads=threads, lenient=True)
    errors = [found for found in fitted.checked.findings if found.severity == "error"]
    if not errors:
        other = f"{base.id} is not {artifact.config.base.id}, of which the delta was taken, but homologous with it"
        return [] if fitted.at_home else [other]
    if force:
        return [f"forced: {found.code}: {found}" for found in errors]
    raise NotHomologous(
        f"{base.id} is not homologous with the base of {reference}: {first_of(errors)}",
        cause=f"found by the check: {', '.join(dict.fromkeys(found.code for found in errors))}",
        hint=f"give the base that it was taken from: {artifact.config.base.id}; --force takes this one all the same",
        findings=[
            {"code": found.code, "subject": found.subject, "delta": found.delta, "target": found.target}
            for found in errors
        ],
    )


def _refuse_other(base: Checkpoint, artifact: Artifact) -> None:
    """Raise NotHomologous unless `base` has the tensors that the delta was taken from."""
    wrong = [
        entry.name
        for entry in artifact.inventory.tensors
        if entry.base_dtype is not None
        and (
            (found := base.tensors.get(entry.name)) is None
            or list(found.shape) != entry.shape
            or found.dtype != entry.base_dtype
        )
    ]
    if wrong:
        raise NotHomologous(
            f"{base.id} is not the base of this delta: {len(wrong)} tensors differ, the first is {wrong[0]!r:.120}",
            hint=f"give the base that it was taken from: {artifact.config.base.id}",
            tensors=wrong[:100],
        )
