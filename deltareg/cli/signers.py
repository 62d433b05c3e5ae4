"""`deltareg signers`: whom servers have named to sign what is in their namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import DryRun, Json, complete_remote

if TYPE_CHECKING:
    from deltareg.cli.reports import SignersReport
    from deltareg.config import Settings
    from deltareg.signing import Pins

__all__ = ["accept", "forget", "list_signers", "signers_app"]

signers_app = typer.Typer(
    help="Whom servers have named to sign what is in their namespaces, as it is remembered here.",
    rich_markup_mode=None,
    invoke_without_command=True,
)

_Namespace = Annotated[str, typer.Argument(metavar="NAMESPACE", help="The namespace.")]
_Remote = Annotated[
    str | None,
    typer.Option(
        "--remote",
        metavar="REMOTE",
        help="Name or URL of the server.",
        autocompletion=complete_remote,
        show_default=False,
    ),
]


@signers_app.callback()
def signers(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@signers_app.command("list")
def list_signers(json: Json = False) -> None:
    """List whom servers have named.

    What pull, lock, build and apply use of these namespaces has to be signed by one of the keys that each server named.
    """
    from deltareg.cli.output import hint
    from deltareg.cli.reports import SignersReport
    from deltareg.cli.session import current_settings

    pins = _pins(current_settings())
    report = SignersReport(file=str(pins.path), signers=pins.all())
    _print(report, json=json)
    if not report.signers and not json:
        hint("no server has named anybody yet; they are asked when something is pulled or locked")


@signers_app.command("accept")
def accept(namespace: _Namespace, remote: _Remote = None, dry_run: DryRun = False, json: Json = False) -> None:
    """Remember whom a server names now.

    Instead of whom it named before. Ask the owners of the namespace first, by another way than that server, whether the
    keys are theirs; --dry-run shows them.

    \b
      deltareg signers accept acme --remote team --dry-run
      deltareg signers accept acme --remote team
    """
    from deltareg.cli.reports import SignersReport
    from deltareg.cli.session import current_settings, reach
    from deltareg.signatures import ask_signers

    settings = current_settings()
    wanted, server = _named(namespace), reach(settings, remote)
    pins = _pins(settings)
    pin = pins.accept(server.url, wanted, ask_signers(server, wanted), dry_run=dry_run)
    _print(SignersReport(change="accepted", file=str(pins.path), signers=[pin], dry_run=dry_run), json=json)


@signers_app.command("forget")
def forget(namespace: _Namespace, remote: _Remote = None, dry_run: DryRun = False, json: Json = False) -> None:
    """Forget whom servers have named.

    Of a namespace, by all servers or by one. What a server names when it is asked next is believed again.
    """
    from deltareg.cli.reports import SignersReport
    from deltareg.cli.session import current_settings, reach

    settings = current_settings()
    pins = _pins(settings)
    server = None if remote is None else reach(settings, remote).url
    gone = pins.forget(_named(namespace), server, dry_run=dry_run)
    _print(SignersReport(change="forgotten", file=str(pins.path), signers=gone, dry_run=dry_run), json=json)


def _pins(settings: Settings) -> Pins:
    from deltareg.cli.session import home_of
    from deltareg.signing import PINS_NAME, Pins

    return Pins(home_of(settings).absolute() / PINS_NAME)


def _named(text: str) -> str:
    from deltareg.config import check_namespace
    from deltareg.errors import BadName

    if "/" in check_namespace(text):
        raise BadName(f"{text!r} is no namespace", hint=f"servers name those of all of {text.split('/')[0]}")
    return text


def _print(report: SignersReport, *, json: bool) -> None:
    from deltareg.cli.output import print_json, print_table

    if json:
        print_json(report)
        return
    cells = [[pin.namespace, key.fingerprint, pin.since[:10], pin.server] for pin in report.signers for key in pin.keys]
    if cells:
        print_table([f"{report.change or 'namespace'}", "key", "since", "server"], cells)
