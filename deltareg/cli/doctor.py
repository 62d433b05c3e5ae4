"""`deltareg doctor`."""

from __future__ import annotations

import os

import typer

from deltareg.cli.options import Json

__all__ = ["doctor"]


def doctor(json: Json = False) -> None:
    """Check everything that deltareg depends on.

    Versions, settings, the home directory with its disk and file system, the registry and its catalog, and whether the
    remotes answer. Each line is ok, a warning or a fault; ends with status 1 if there is a fault. Changes nothing.
    """
    from deltareg.cli.examine import examine
    from deltareg.cli.output import hint, print_json, print_table
    from deltareg.cli.session import working_directory

    report = examine(working_directory(), os.environ)
    if json:
        print_json(report)
    else:
        print_table(["check", "", "what"], [(check.name, check.status, check.detail) for check in report.checks])
    for check in report.checks:
        if check.hint is not None:
            hint(f"{check.name}: {check.hint}")
    if not report.ok:
        raise typer.Exit(1)
