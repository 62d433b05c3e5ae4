"""What `deltareg check` found, as programs that read findings want it: SARIF, and the annotations of a workflow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from deltareg import __version__
from deltareg.check import CheckedDelta, CheckedFinding, CheckReport
from deltareg.homology import FINDINGS
from deltareg.manifest import Document

__all__ = ["SarifLog", "sarif_log", "workflow_commands"]

_LEVELS = {"error": "error", "warning": "warning", "note": "notice"}


class SarifLog(Document):
    """A log in the Static Analysis Results Interchange Format 2.1.0, an OASIS standard."""

    version: str
    runs: list[dict[str, Any]]


def sarif_log(report: CheckReport) -> SarifLog:
    """One run with a rule for each code, and a result for each finding, at the target's place."""
    codes = list(FINDINGS)
    rules = [
        {
            "id": code,
            "shortDescription": {"text": kind.meaning},
            "help": {"text": kind.remedy},
            "defaultConfiguration": {"level": kind.severity},
        }
        for code, kind in FINDINGS.items()
    ]
    results = [
        {
            "ruleId": found.code,
            "ruleIndex": codes.index(found.code),
            "level": found.severity,
            "message": {"text": _message(delta, found)},
            "locations": [
                {
                    "physicalLocation": {"artifactLocation": {"uri": quote(report.target, safe="/:@")}},
                    "logicalLocations": [{"name": found.subject, "fullyQualifiedName": found.subject}],
                }
            ],
        }
        for delta in report.deltas
        for found in delta.findings
    ]
    driver = {"name": "deltareg", "version": __version__, "rules": rules}
    return SarifLog.model_validate(
        {
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
        }
    )


def workflow_commands(report: CheckReport) -> Iterator[str]:
    """The commands that make a GitHub workflow show each finding, and the verdict of each delta."""
    for delta in report.deltas:
        for found in delta.findings:
            title = _escaped(f"deltareg {found.code}").replace(":", "%3A").replace(",", "%2C")
            yield f"::{_LEVELS[found.severity]} title={title}::{_escaped(_message(delta, found))}"
        yield f"{delta.reference} on {report.target}: {delta.verdict}"


def _message(delta: CheckedDelta, found: CheckedFinding) -> str:
    return f"{delta.reference}: {found.subject}: {found.delta} against {found.target}. {found.remedy}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
