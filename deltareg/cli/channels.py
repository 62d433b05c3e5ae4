"""`deltareg channel`: names that move from version to version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import DryRun, Json, OnRemote, complete_delta

if TYPE_CHECKING:
    from deltareg.cli.reports import ChannelChange

__all__ = ["channel_app", "list_channels", "remove_channel", "set_channel"]

channel_app = typer.Typer(
    help="Channels, such as prod: names that move from version to version.",
    rich_markup_mode=None,
    invoke_without_command=True,
)

_Channel = Annotated[
    str, typer.Argument(metavar="CHANNEL", help="The channel: namespace/name:prod.", autocompletion=complete_delta)
]


@channel_app.callback()
def channels(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@channel_app.command("set")
def set_channel(
    channel: _Channel,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="The version, 1.2.3, or a channel whose version is meant.")
    ],
    expected: Annotated[
        str | None,
        typer.Option(
            "--expected",
            metavar="VERSION",
            help="What it names now, or none: where somebody else moved it meanwhile it stays.",
            show_default=False,
        ),
    ] = None,
    remote: OnRemote = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Let a channel name a version.

    Of two who move it at once one succeeds, and the other is told. Without --expected that holds for the moment of the
    command alone.

    \b
      deltareg channel set acme/search:prod 1.1.0 --expected 1.0.0 --remote team
    """
    from deltareg.cli.naming import Place
    from deltareg.cli.session import current_settings

    _print(Place(current_settings(), remote).set_channel(channel, version, expected, dry_run=dry_run), json=json)


@channel_app.command("list")
def list_channels(
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="Of which deltas: namespace/name.")],
    remote: OnRemote = None,
    json: Json = False,
) -> None:
    """List the channels of a name, and which versions they mean.

    latest is no channel that is set: it is the highest version that is no pre-release and not yanked.

    \b
      deltareg channel list acme/search
    """
    from deltareg.cli.naming import Place
    from deltareg.cli.output import print_json, print_table
    from deltareg.cli.session import current_settings

    found = Place(current_settings(), remote).channels(repository)
    if json:
        print_json(found)
        return
    cells = [(row.channel, row.version, row.digest, row.yanked or "", row.deprecated or "") for row in found.channels]
    print_table(["channel", "version", "digest", "yanked", "deprecated"], cells)


@channel_app.command("remove")
def remove_channel(channel: _Channel, remote: OnRemote = None, dry_run: DryRun = False, json: Json = False) -> None:
    """Drop a channel; the version that it names stays.

    \b
      deltareg channel remove acme/search:prod
    """
    from deltareg.cli.naming import Place
    from deltareg.cli.session import current_settings

    _print(Place(current_settings(), remote).remove_channel(channel, dry_run=dry_run), json=json)


def _print(report: ChannelChange, *, json: bool) -> None:
    from deltareg.cli.output import print_json, print_line, warn

    if report.yanked is not None:
        warn(f"{report.version} is yanked: {report.yanked or 'no reason is given'}")
    if report.deprecated is not None:
        warn(f"{report.version} is deprecated: {report.deprecated or 'no reason is given'}")
    if json:
        print_json(report)
        return
    would = "would have " if report.dry_run else ""
    if report.version is None:
        print_line(f"{would}removed {report.reference} from {report.registry}")
    elif report.version == report.before:
        print_line(f"{report.reference} is {report.version} already in {report.registry}")
    else:
        print_line(f"{would}set {report.reference} to {report.version} in {report.registry}")
