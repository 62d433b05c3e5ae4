"""`deltareg init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltareg.cli.options import DryRun, Json, check_text

__all__ = ["init"]


def init(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIRECTORY", help="The project's; by default the current one.", show_default=False),
    ] = Path(),
    remote: Annotated[
        str | None,
        typer.Option(
            "--remote",
            metavar="URL",
            help="URL or path of the project's default remote, origin.",
            callback=check_text,
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write a deltareg.toml for a project.

    Commands that run in the project's directory, or below it, take their settings from it. An existing file is never
    overwritten.

    \b
      deltareg init --remote /mnt/share/deltas
    """
    from deltareg.cli.output import print_json, print_line
    from deltareg.cli.remotes import absolute_url
    from deltareg.cli.reports import InitReport
    from deltareg.cli.settings_file import create_settings
    from deltareg.config import CONFIG_NAME

    url = None if remote is None else absolute_url(remote)
    file = directory.absolute() / CONFIG_NAME
    create_settings(file, remote=url, dry_run=dry_run)
    report = InitReport(file=str(file), remote=url, dry_run=dry_run)
    if json:
        print_json(report)
    else:
        print_line(f"{'would write' if dry_run else 'wrote'} {report.file}")
