"""`deltareg yank` and `deltareg unyank`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import DryRun, Json, OnRemote, VersionArgument, check_text

if TYPE_CHECKING:
    from deltareg.cli.reports import YankReport

__all__ = ["unyank", "yank"]


def yank(
    reference: VersionArgument,
    reason: Annotated[
        str,
        typer.Option(
            "--reason", metavar="TEXT", help="Why, in one line: everybody who names it reads this.", callback=check_text
        ),
    ],
    remote: OnRemote = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Say of a version that nobody should start to use it.

    latest and search skip it from now on. Nothing is removed: whoever names the version gets its bytes, and a warning
    with the reason. Who pulls from a registry takes over what is yanked there.

    \b
      deltareg yank acme/search:1.0.1 --reason "trained on the test set" --remote team
    """
    from deltareg.cli.naming import Place
    from deltareg.cli.session import current_settings

    _print(Place(current_settings(), remote).mark(reference, reason, dry_run=dry_run), json=json)


def unyank(reference: VersionArgument, remote: OnRemote = None, dry_run: DryRun = False, json: Json = False) -> None:
    """Take back that a version was yanked.

    \b
      deltareg unyank acme/search:1.0.1 --remote team
    """
    from deltareg.cli.naming import Place
    from deltareg.cli.session import current_settings

    _print(Place(current_settings(), remote).mark(reference, None, dry_run=dry_run), json=json)


def _print(report: YankReport, *, json: bool) -> None:
    from deltareg.cli.output import print_json, print_line

    if json:
        print_json(report)
        return
    would = "would have " if report.dry_run else ""
    done, why = ("unyanked", "") if report.yanked is None else ("yanked", f": {report.yanked}")
    print_line(f"{would}{done} {report.reference} in {report.registry}{why}")
