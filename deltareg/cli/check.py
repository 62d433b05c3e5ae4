"""`deltareg check` and `deltareg fingerprint`: whether a delta fits a target, and what a target is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import Json, Threads, complete_delta
from deltareg.errors import InvalidArgument

if TYPE_CHECKING:
    from deltareg.check import CheckReport

__all__ = ["check", "fingerprint"]

_CHECKPOINT = "a directory, a .safetensors file, hf://org/name[@revision] or s3://bucket/prefix (gs://, az://)"
_INCOMPATIBLE = 3
_ROWS = 60


def check(
    references: Annotated[
        list[str],
        typer.Argument(
            metavar="REFERENCE", help="The deltas, each looked at by itself.", autocompletion=complete_delta
        ),
    ],
    base: Annotated[
        str, typer.Option("--base", metavar="TARGET", help=f"The checkpoint that they would go on: {_CHECKPOINT}.")
    ],
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")] = False,
    sarif: Annotated[bool, typer.Option("--sarif", help="Print a SARIF 2.1.0 log instead of text.")] = False,
    github: Annotated[
        bool, typer.Option("--github", help="Print annotations for a GitHub workflow instead of text.")
    ] = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Say whether deltas fit a checkpoint, why, and what to do.

    Compares tensors, config, tokenizer and a few hundred values of each tensor; nothing else is read, so a model on
    the hub costs kilobytes. identical and homologous: apply takes it as it is. adaptable: apply takes it, and does what
    the remedies say. incompatible: apply refuses it; ends with status 3, as adaptable does with --strict.

    \b
      deltareg check acme/search:1.0.0 --base target/
    """
    from deltareg.check import check
    from deltareg.cli.annotations import sarif_log, workflow_commands
    from deltareg.cli.output import print_json, print_line
    from deltareg.cli.session import current_settings, open_registry

    if json + sarif + github > 1:
        raise InvalidArgument("--json, --sarif and --github exclude one another", hint="give one of them")
    settings = current_settings()
    report = check(base, references, open_registry(settings), threads=threads or settings.threads)
    if json:
        print_json(report)
    elif sarif:
        print_json(sarif_log(report))
    elif github:
        for line in workflow_commands(report):
            print_line(line)
    else:
        _print(report)
    fails = ("incompatible", "adaptable") if strict else ("incompatible",)
    if report.verdict in fails:
        raise typer.Exit(_INCOMPATIBLE)


def fingerprint(
    checkpoint: Annotated[str, typer.Argument(metavar="PATH", help=f"The checkpoint: {_CHECKPOINT}.")],
    json: Json = False,
) -> None:
    """Print the fingerprint of a checkpoint: what must agree for a delta to fit.

    Of two checkpoints with the same digest the parameters have the same names and shapes, and the configs agree in
    all that makes a parameter mean what it means. Reads headers, config and tokenizer only.

    \b
      deltareg fingerprint target/
    """
    from deltareg.check import fingerprint
    from deltareg.cli.output import describe, print_fields, print_json

    report = fingerprint(checkpoint)
    if json:
        print_json(report)
        return
    fields = {
        **describe(report, leave_out=["fingerprint"]),
        **describe(report.fingerprint, leave_out=["structure", "behaviour", "tokenizer"]),
        **{f"structure {key}": str(value) for key, value in report.fingerprint.structure.items()},
        **{f"behaviour {key}": str(value) for key, value in report.fingerprint.behaviour.items()},
    }
    if report.fingerprint.tokenizer is not None:
        fields |= {f"tokenizer {key}": text for key, text in describe(report.fingerprint.tokenizer).items()}
    print_fields(fields)


def _print(report: CheckReport) -> None:
    from deltareg.cli.output import hint, print_fields, print_table
    from deltareg.cli.units import ratio, size

    fields = {"target": report.target, "verdict": report.verdict}
    for number, delta in enumerate(report.deltas, 1):
        told = "" if delta.lineage is None else f", weights {delta.lineage.verdict}"
        if delta.lineage is not None and delta.lineage.cosine is not None:
            told += f" (cosine {ratio(delta.lineage.cosine)})"
        fields[f"delta {number}"] = f"{delta.reference}: {delta.verdict}{told}"
    print_fields({**fields, "bytes read": size(report.bytes_read)})
    alike = [
        (
            name if len(report.deltas) > 1 else "",
            key,
            _told(found.cosine),
            _told(found.distance),
            _told(found.distance_to_delta),
        )
        for name, lineage in ((delta.reference, delta.lineage) for delta in report.deltas)
        if lineage is not None and lineage.verdict != "same"
        for key, found in sorted(lineage.classes.items())
    ]
    if alike:
        columns = ["delta name", "module class", "cosine", "distance", "distance to delta"]
        print_table(columns, alike, right=columns[2:])
    findings = [(delta.reference, found) for delta in report.deltas for found in delta.findings]
    several = len(report.deltas) > 1
    if findings:
        print_table(
            ["", "finding", "delta name", "what", "delta", "target"],
            [
                (found.severity, found.code, name if several else "", found.subject, found.delta, found.target)
                for name, found in findings[:_ROWS]
            ],
        )
    if len(findings) > _ROWS:
        hint(f"{len(findings) - _ROWS} more findings: --json prints all")
    # The remedy of a note that asks for nothing need not be read.
    for remedy in dict.fromkeys(f"{found.code}: {found.remedy}" for _, found in findings if found.severity != "note"):
        hint(remedy)


def _told(value: float | None) -> str:
    from deltareg.cli.units import ratio

    return "–" if value is None else ratio(value)
