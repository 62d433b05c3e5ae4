"""`deltareg deprecate` and `deltareg undeprecate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import DryRun, Json, OnRemote, check_text, complete_delta

if TYPE_CHECKING:
    from deltareg.cli.reports import DeprecationReport

__all__ = ["deprecate", "undeprecate"]

_Versions = Annotated[
    str,
    typer.Argument(
        metavar="REFERENCE",
        help="A version, namespace/name:1.2.3; or namespace/name, which means every version that there is.",
        autocompletion=complete_delta,
    ),
]


def deprecate(
    reference: _Versions,
    reason: Annotated[
        str,
        typer.Option(
            "--reason", metavar="TEXT", help="Why, in one line: everybody who uses it reads this.", callback=check_text
        ),
    ],
    remote: OnRemote = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Advise against a version, or against all of a name: there is something better.

    It is found, resolved, locked and built with as before; whoever does so reads a warning with the reason. What must
    not be used is yanked instead. Who pulls from a registry takes over what is deprecated there. Versions that are
    published later are not deprecated.

    \b
      deltareg deprecate acme/search --reason "use acme/find" --remote team
    """
    from deltareg.cli.naming import Place
    from deltareg.cli.session import current_settings

    _print(Place(current_settings(), remote).deprecate(reference, reason, dry_run=dry_run), json=json)


def undeprecate(reference: _Versions, remote: OnRemote = None, dry_run: DryRun = False, json: Json = False) -> None:
    """Take back that a version, or all of a name, was deprecated.

    \b
      deltareg undeprecate acme/search:1.0.0 --remote team
    """
    from deltareg.cli.naming import Place
    from deltareg.cli.session import current_settings

    _print(Place(current_settings(), remote).deprecate(reference, None, dry_run=dry_run), json=json)


def _print(report: DeprecationReport, *, json: bool) -> None:
    from deltareg.cli.output import print_json, print_line

    if json:
        print_json(report)
        return
    would = "would have " if report.dry_run else ""
    done, why = ("undeprecated", "") if report.deprecated is None else ("deprecated", f": {report.deprecated}")
    for version in report.versions:
        print_line(f"{would}{done} {version.reference} in {report.registry}{why}")
