"""`deltareg cache`: upkeep of the local registry."""

from __future__ import annotations

from typing import Annotated

import typer

from deltareg.cli.options import DryRun, Json

__all__ = ["cache_app", "fsck", "gc", "reindex"]

cache_app = typer.Typer(help="Upkeep of the local registry.", rich_markup_mode=None, invoke_without_command=True)


@cache_app.callback()
def cache(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@cache_app.command("gc")
def gc(
    grace: Annotated[
        str,
        typer.Option("--grace", metavar="TIME", help="Keep what was written since: 90s, 30m, 1h30m, 2d or 0."),
    ] = "1h",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove the blobs that no name leads to.

    What other processes are about to name is kept: everything younger than the grace period, and what running commands
    have written.
    """
    from deltareg.cli.output import print_report
    from deltareg.cli.session import open_registry
    from deltareg.cli.units import parse_duration

    seconds = parse_duration(grace)
    print_report(open_registry().gc(seconds, dry_run=dry_run), json=json)


@cache_app.command("fsck")
def fsck(
    drop_damaged: Annotated[
        bool, typer.Option("--drop-damaged", help="Remove damaged blobs, so that a pull fetches them again.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Read every blob and every name, and tell each fault.

    Finds any flipped bit, and what is missing, cut or misnamed. Ends with status 5 if there is a fault; the report is
    printed all the same.
    """
    from deltareg.cli.output import describe, hint, print_fields, print_json, print_table, warn
    from deltareg.cli.progress import watched
    from deltareg.cli.session import open_registry
    from deltareg.cli.units import counted
    from deltareg.errors import DigestMismatch

    registry = open_registry()
    with watched() as progress:
        report = registry.fsck(progress, drop_damaged=drop_damaged and not dry_run)
    if json:
        print_json(report)
    else:
        print_fields(describe(report, leave_out=["faults"]))
        if report.faults:
            rows = [(fault.kind, fault.message, ", ".join(fault.references)) for fault in report.faults]
            print_table(["fault", "what", "needed by"], rows)
    if not report.ok:
        warn(f"{counted(len(report.faults), 'fault')} in {registry.home}")
        hint("deltareg cache fsck --drop-damaged, then deltareg pull what needs the blobs")
        raise typer.Exit(DigestMismatch.exit_code)


@cache_app.command("reindex")
def reindex(dry_run: DryRun = False, json: Json = False) -> None:
    """Build the catalog anew from the registry.

    The catalog is a cache and mends itself; this is for the case that you doubt it.
    """
    from deltareg.cli.output import print_report
    from deltareg.cli.reports import ReindexReport
    from deltareg.cli.session import open_registry

    registry = open_registry()
    names = len(registry.store.entries()) if dry_run else registry.reindex()
    report = ReindexReport(catalog=str(registry.catalog.path), names=names, dry_run=dry_run)
    print_report(report, json=json)
