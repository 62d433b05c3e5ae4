"""Whether a delta belongs on a target: findings, and the verdict that follows from them.

Names and shapes of the tensors are compared here. What else makes two checkpoints homologous (the architecture's
configuration, the tokenizer, the lineage of the weights) adds its findings to the same list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from deltareg.errors import NotHomologous
from deltareg.manifest import Inventory

__all__ = ["Finding", "Severity", "Verdict", "compare_shapes", "delta_shapes", "refuse_mismatch", "verdict_of"]

Severity = Literal["error", "warning", "note"]
Verdict = Literal["identical", "homologous", "adaptable", "incompatible"]
Shapes = Mapping[str, tuple[int, ...]]

_SHOWN = 12


@dataclass(frozen=True)
class Finding:
    """One difference: a stable code, how bad it is, and what was seen on either side, the delta's (or base's) first."""

    code: str
    severity: Severity
    subject: str
    delta: str
    target: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.delta} against {self.target}"


def delta_shapes(inventory: Inventory) -> dict[str, tuple[int, ...]]:
    """The tensors that the delta's base has, by name."""
    return {entry.name: tuple(entry.shape) for entry in inventory.tensors if entry.base_dtype is not None}


def compare_shapes(delta: Shapes, target: Shapes, *, optional: Iterable[str] = ()) -> list[Finding]:
    """The tensors whose name or shape differs. Those that are `optional` may be missing from the target."""
    may_lack = set(optional)
    findings: list[Finding] = []
    for name, shape in delta.items():
        if name not in target:
            if name not in may_lack:
                findings.append(Finding("tensor-missing", "error", name, f"shape {list(shape)}", "absent"))
        elif target[name] != shape:
            findings.append(
                Finding("tensor-shape", "error", name, f"shape {list(shape)}", f"shape {list(target[name])}")
            )
    findings.extend(
        Finding("tensor-unexpected", "error", name, "absent", f"shape {list(shape)}")
        for name, shape in target.items()
        if name not in delta
    )
    return findings


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """The verdict that the findings amount to."""
    severities = {finding.severity for finding in findings}
    if "error" in severities:
        return "incompatible"
    if "warning" in severities:
        return "adaptable"
    return "homologous" if severities else "identical"


def refuse_mismatch(findings: Iterable[Finding], *, message: str, hint: str) -> None:
    """Raise NotHomologous if there is an error among the findings: all are in its data, the first in its message."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    shown = "; ".join(map(str, errors[:_SHOWN])) + (
        f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
    )
    raise NotHomologous(
        f"{message}: {shown}",
        cause=f"{len(errors)} tensor{'s' if len(errors) > 1 else ''} of the two parameter spaces differ",
        hint=hint,
        findings=[
            {"code": finding.code, "subject": finding.subject, "delta": finding.delta, "target": finding.target}
            for finding in errors
        ],
    )
