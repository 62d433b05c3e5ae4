"""`deltareg export` and `deltareg import`: deltas in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import DryRun, Json, complete_delta

if TYPE_CHECKING:
    from deltareg.archive import ArchiveReport

__all__ = ["export_deltas", "import_deltas"]


def export_deltas(
    references: Annotated[
        list[str],
        typer.Argument(
            metavar="REFERENCE...",
            help="The deltas: namespace/name:1.2.3, :channel, @sha256:…; without any of them the latest version.",
            autocompletion=complete_delta,
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="The file to write; - for a pipe.")],
    with_required: Annotated[
        bool, typer.Option("--with-required", help="Put in what they were taken on top of, too.")
    ] = False,
    with_channels: Annotated[
        bool, typer.Option("--with-channels", help="Put in the channels that name them, too.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write deltas of the local registry into one file, for a machine that no network reaches.

    The file is an OCI image layout as a plain tar, which skopeo reads too. With the versions go what is yanked and
    deprecated, and what refers to them, such as signatures. The same deltas give the same bytes.

    \b
      deltareg export acme/search:1.0.0 acme/chat -o deltas.tar
      deltareg export acme/search -o - | ssh host deltareg import -
    """
    import sys
    from pathlib import Path

    from deltareg.archive import export_archive
    from deltareg.cli.output import warn
    from deltareg.cli.progress import watched
    from deltareg.cli.session import open_registry
    from deltareg.errors import UsageError

    piped = out == "-"
    if piped and json:
        raise UsageError("--json has no place beside the archive on stdout", hint="write to a file: -o FILE")
    if piped and sys.stdout.isatty() and not dry_run:
        raise UsageError("an archive is nothing for a terminal", hint="write to a file or a pipe: -o FILE")
    with watched() as progress:
        report = export_archive(
            open_registry(),
            references,
            sys.stdout.buffer if piped else Path(out),
            with_required=with_required,
            with_channels=with_channels,
            overwrite=overwrite,
            dry_run=dry_run,
            progress=progress,
        )
    if not piped:
        _print(report, json=json)
        return
    for warning in report.warnings:
        warn(warning)


def import_deltas(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What deltareg export wrote; - for a pipe.")],
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Bring the deltas of a file into the local registry.

    Every digest is verified, and no name is set before all of the file was read and found sound. Versions that are here
    with the same bytes are no error; with other bytes, nothing is imported.

    \b
      deltareg import deltas.tar
    """
    import sys
    from pathlib import Path

    from deltareg.archive import import_archive
    from deltareg.cli.progress import watched
    from deltareg.cli.session import current_settings, writable_registry

    with writable_registry(current_settings(), dry_run=dry_run) as registry, watched() as progress:
        source = sys.stdin.buffer if file == "-" else Path(file)
        report = import_archive(registry, source, dry_run=dry_run, progress=progress)
    _print(report, json=json)


def _print(report: ArchiveReport, *, json: bool) -> None:
    from deltareg.cli.output import describe, print_fields, print_json, print_table, warn

    for warning in report.warnings:
        warn(warning)
    if json:
        print_json(report)
        return
    print_table(["reference", "change", "digest"], [[one.reference, one.change, one.digest] for one in report.names])
    print_fields(describe(report, leave_out=["names", "warnings"]))
