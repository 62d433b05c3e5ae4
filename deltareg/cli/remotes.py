"""`deltareg remote`: the remotes that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltareg.cli.options import DryRun, Json, check_text, complete_remote

__all__ = ["absolute_url", "add", "list_remotes", "remote_app", "remove"]

remote_app = typer.Typer(
    help="The remotes that push, pull and list know by name.", rich_markup_mode=None, invoke_without_command=True
)


@remote_app.callback()
def remotes(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@remote_app.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the remote.")],
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Its URL (https://…, oci://…, s3://…) or path.", callback=check_text)
    ],
    default: Annotated[bool, typer.Option("--default", help="Make it the default remote.")] = False,
    namespaces: Annotated[
        list[str] | None,
        typer.Option(
            "--namespace",
            metavar="NAMESPACE",
            help="What recipes look up in it and nowhere else: acme, or acme/search. Can be given again.",
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Name a remote.

    It is written into the project's deltareg.toml if there is one, else into the user's. The only remote there is
    counts as the default one.

    \b
      deltareg remote add team /mnt/share/deltas --default
      deltareg remote add acme https://deltas.acme.org --namespace acme
      deltareg remote add mirror s3://acme-deltas/mirror
      deltareg remote add hub hf://acme
    """
    from deltareg.cli.output import hint, warn
    from deltareg.cli.session import current_settings, network, working_directory
    from deltareg.cli.settings_file import add_remote
    from deltareg.config import project_file, user_file
    from deltareg.errors import DeltaregError
    from deltareg.remote import open_remote

    file = project_file(working_directory()) or user_file()
    location = absolute_url(url)
    # What is typed here is meant: the token of the environment may go there.
    remote = open_remote(location, network(current_settings(), location))
    add_remote(file, name, location, namespaces=namespaces or [], default=default, dry_run=dry_run)
    _print_change("added", name, location, file, default=default, dry_run=dry_run, json=json)
    try:
        remote.capabilities()
    except DeltaregError as error:
        # Only told: a disk may be mounted, a server started later.
        warn(f"{name} cannot be reached now: {error.message}")
        if error.hint:
            hint(error.hint)


@remote_app.command("list")
def list_remotes(json: Json = False) -> None:
    """List the remotes.

    Those of the project's deltareg.toml and of the user's; the project's win.
    """
    from deltareg.cli.output import hint, print_json, print_table
    from deltareg.cli.reports import RemoteList, RemoteRow
    from deltareg.cli.session import current_settings

    settings = current_settings()
    rows = [
        RemoteRow(
            name=one.name,
            url=one.url,
            default=one.name == settings.default_remote,
            file=str(one.file),
            namespaces=list(one.namespaces),
        )
        for one in settings.remotes.values()
    ]
    if json:
        print_json(RemoteList(remotes=rows, default=settings.default_remote))
    elif rows:
        cells = [
            (row.name, "default" if row.default else "", ", ".join(row.namespaces), row.url, row.file) for row in rows
        ]
        print_table(["remote", "", "namespaces", "url", "file"], cells)
    else:
        hint("no remote is set up: deltareg remote add NAME URL")


@remote_app.command("remove")
def remove(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What the remote is called.", autocompletion=complete_remote)
    ],
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Forget a remote.

    Its deltas stay where they are. If it was the default remote, there is none afterwards.
    """
    from deltareg.cli.session import current_settings
    from deltareg.cli.settings_file import remove_remote
    from deltareg.config import read_settings
    from deltareg.errors import InvalidArgument
    from deltareg.spelling import nearest

    remotes = current_settings().remotes
    if name not in remotes:
        near = nearest(name, remotes)
        raise InvalidArgument(
            f"no remote is called {name!r}", hint="deltareg remote list" if near is None else f"did you mean {near}?"
        )
    remote = remotes[name]
    default = read_settings(remote.file).remote == name
    remove_remote(remote.file, name, dry_run=dry_run)
    _print_change("removed", name, remote.url, remote.file, default=default, dry_run=dry_run, json=json)


def absolute_url(text: str) -> str:
    """A URL as it is, a path from the root on: settings hold where the program was not started."""
    if "://" in text or text.startswith("file:"):
        return text
    from deltareg.errors import InvalidArgument
    from deltareg.paths import expand_home

    if not text:
        raise InvalidArgument("the URL of a remote cannot be empty")
    return str(expand_home(text).absolute())


def _print_change(done: str, name: str, url: str, file: Path, *, default: bool, dry_run: bool, json: bool) -> None:
    from deltareg.cli.output import print_json, print_line
    from deltareg.cli.reports import RemoteChange

    if json:
        print_json(RemoteChange(name=name, url=url, file=str(file), default=default, dry_run=dry_run))
    else:
        print_line(f"{'would have ' if dry_run else ''}{done} {name} ({url}): {file}")
