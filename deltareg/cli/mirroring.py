"""`deltareg mirror`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import DryRun, Json, Threads, complete_remote

if TYPE_CHECKING:
    from deltareg.mirroring import MirrorReport, Scope

__all__ = ["mirror"]

_THREADS = 4


def mirror(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="The remote to copy from: name, URL or path.", autocompletion=complete_remote
        ),
    ],
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="The remote to copy to, alike.", autocompletion=complete_remote)
    ],
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", metavar="NAME", help="Only deltas of this namespace. May be given several times."),
    ] = None,
    repository: Annotated[
        list[str] | None,
        typer.Option("--repository", metavar="REPOSITORY", help="Only namespace/name. May be given several times."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="Only versions published from this date or time on: 2026-01-31. UTC, where no zone is given.",
            show_default=False,
        ),
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove from DEST what SOURCE no longer has: versions and channels.")
    ] = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make one remote hold what another one has.

    Versions, with what is yanked and deprecated and what refers to them, such as signatures; and channels. Only what is
    missing travels, verified; cut off, the same command goes on where it was. A version that DEST has with other bytes
    is told and left alone; the command then ends with status 4.

    A directory that was mirrored to can be served by any web server.

    \b
      deltareg mirror public ./mirror --namespace acme
    """
    from deltareg.cli.progress import watched
    from deltareg.cli.session import current_settings, home_of, reach
    from deltareg.digest import sha256
    from deltareg.mirroring import mirror

    settings = current_settings()
    origin, goal = reach(settings, source), reach(settings, destination)
    scope = _scope(namespace or [], repository or [], since)
    place = sha256(f"{origin.url} {goal.url}".encode()).removeprefix("sha256:")[:24]
    with watched() as progress:
        report = mirror(
            origin,
            goal,
            scope=scope,
            delete=delete,
            staging=home_of(settings) / "staging" / place,
            threads=threads or settings.threads or _THREADS,
            dry_run=dry_run,
            progress=progress,
        )
    _print(report, json=json)


def _scope(namespaces: list[str], repositories: list[str], since: str | None) -> Scope:
    from deltareg.config import check_namespace
    from deltareg.errors import BadName, UsageError
    from deltareg.mirroring import Scope
    from deltareg.recipe import parse_moment

    for one in namespaces:
        if "/" in check_namespace(one):
            raise BadName(f"{one!r} is no namespace", hint=f"--repository {one}")
    for one in repositories:
        if "/" not in check_namespace(one):
            raise BadName(f"{one!r} is no namespace/name", hint=f"--namespace {one}")
    try:
        moment = None if since is None else parse_moment(since)
    except ValueError as error:
        raise UsageError(f"--since {error}") from error
    return Scope(frozenset(namespaces), frozenset(repositories), moment)


def _print(report: MirrorReport, *, json: bool) -> None:
    from deltareg.cli.output import describe, print_fields, print_json, print_table, warn
    from deltareg.cli.units import counted, size
    from deltareg.errors import DeltaregError, VersionExists

    for warning in report.warnings:
        warn(warning)
    for row in report.rows:
        if row.problem is not None:
            warn(f"{row.reference} {row.change}: {row.problem}")
    if json:
        print_json(report)
    else:
        cells = [[row.reference, row.change, size(row.bytes) if row.bytes else ""] for row in report.rows]
        if cells:
            print_table(["reference", "change", "size"], cells, right=["size"])
        print_fields(describe(report, leave_out=["rows", "warnings"]))
    if not report.ok:
        refused, failed = report.count("refused"), report.count("failed")
        warn(f"{counted(refused, 'name')} refused, {counted(failed, 'name')} failed")
        raise typer.Exit(VersionExists.exit_code if refused else DeltaregError.exit_code)
