"""`deltareg login`, `deltareg logout` and `deltareg whoami`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from deltareg.cli.options import Json, RemoteOption, check_text, complete_remote

__all__ = ["login", "logout", "whoami"]

_Url = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="URL of the server (https://…, oci://…), or the name of a remote.",
        autocompletion=complete_remote,
        callback=check_text,
    ),
]


def login(
    url: _Url,
    username: Annotated[
        str | None,
        typer.Option(
            "--username",
            "-u",
            metavar="NAME",
            help="The name that goes with a password. A deltareg server takes a token without one.",
            show_default=False,
            callback=check_text,
        ),
    ] = None,
    token_stdin: Annotated[
        bool, typer.Option("--token-stdin", help="Read the token or the password from stdin, and ask nothing.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Send and keep it for a server without TLS, where others can read it.")
    ] = False,
    json: Json = False,
) -> None:
    """Keep a token for a server, or a name and password for an OCI registry.

    It is tried before it is kept: in the system's keyring where there is one, else in a file that only you can read. It
    is sent to that server alone. OCI registries that docker or podman have a login for need no other.

    \b
      deltareg login https://deltas.acme.org
      deltareg login oci://registry.acme.org --username ann --token-stdin < password
    """
    from deltareg.cli.output import hint, print_json, print_line, warn
    from deltareg.cli.session import current_settings, network
    from deltareg.remote.credentials import Secret
    from deltareg.remote.logins import log_in

    settings = current_settings()
    place = _place(url)
    secret = Secret(_secret(place, username, stdin=token_stdin), username)
    report = log_in(place, secret, network(settings, place), insecure=insecure)
    if not report.checked:
        warn(f"{report.url} asks nobody who he is: what is kept for it was not tried")
    if json:
        print_json(report)
        return
    who = f" as {report.user}" if report.user else ""
    print_line(f"logged in at {report.url}{who}; kept in {report.kept}")
    if report.kept != "the keyring":
        hint("pip install 'deltareg[keyring]' keeps secrets in the system's keyring, where there is one")


def logout(url: _Url, json: Json = False) -> None:
    """Forget what login has kept for a server.

    The token itself stays valid: revoke it at the server if somebody else may have it.

    \b
      deltareg logout https://deltas.acme.org
    """
    from deltareg.cli.output import print_json, print_line
    from deltareg.remote.logins import log_out

    report = log_out(_place(url))
    if json:
        print_json(report)
    else:
        print_line(f"forgot the login at {report.url}" if report.forgotten else f"nothing was kept for {report.url}")


def whoami(remote: RemoteOption = None, json: Json = False) -> None:
    """Tell who a deltareg server takes you for, and what you may do there.

    \b
      deltareg whoami --remote https://deltas.acme.org
    """
    from deltareg.cli.output import print_fields, print_json
    from deltareg.cli.session import current_settings, network
    from deltareg.remote.logins import who_am_i

    settings = current_settings()
    url = settings.remote_url(remote)
    identity = who_am_i(url, network(settings, remote))
    if json:
        print_json(identity)
        return
    token = identity.token
    fields = {"server": url, "user": f"{identity.user} (admin)" if identity.admin else identity.user}
    if token is not None:
        fields["token"] = f"{token.name}, until {token.expires}" if token.expires else token.name
        fields["scopes"] = "all" if token.scopes is None else ", ".join(map(str, token.scopes)) or "none"
    fields |= {one.namespace: one.role for one in identity.namespaces}
    print_fields(fields)


def _place(url: str) -> str:
    """The URL that is meant by a URL or by the name of a remote."""
    from deltareg.cli.session import current_settings

    return url if "/" in url else current_settings().remote_url(url)


def _secret(url: str, username: str | None, *, stdin: bool) -> str:
    from deltareg.errors import UsageError
    from deltareg.remote.network import shown

    what = "token" if username is None else f"password of {username}"
    if stdin:
        found = sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin.isatty():
        found = typer.prompt(f"{what} for {shown(url)}", hide_input=True, err=True)
    else:
        raise UsageError(
            f"there is no terminal to ask for the {what} at", hint="add --token-stdin and give it on stdin"
        )
    if not found:
        raise UsageError(f"no {what} was given")
    return found
