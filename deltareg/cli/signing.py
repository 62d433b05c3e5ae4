"""`deltareg sign`: who vouches for a delta."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import DryRun, Json, OnRemote, complete_delta

if TYPE_CHECKING:
    from pathlib import Path

    from deltareg.signing import Signer

__all__ = ["sign"]

_PASSWORD_LIMIT = 4096


def sign(
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="REFERENCE",
            help="The delta, as for `show`.",
            autocompletion=complete_delta,
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="FILE", help="Sign with this private key: PEM, P-256, P-384 or P-521."),
    ] = None,
    certificate: Annotated[
        str | None,
        typer.Option(
            "--certificate", metavar="FILE", help="The certificate of the key: PEM. It goes with the signature."
        ),
    ] = None,
    chain: Annotated[
        list[str] | None,
        typer.Option(
            "--chain",
            metavar="FILE",
            help="Certificates between that one and the root that others trust. May be given several times.",
        ),
    ] = None,
    sigstore: Annotated[
        bool,
        typer.Option("--sigstore", help="Sign by sigstore, as the identity that you log in with. Needs a network."),
    ] = False,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the key's password from standard input.")
    ] = False,
    remote: OnRemote = None,
    generate_key: Annotated[
        str | None,
        typer.Option(
            "--generate-key", metavar="PREFIX", help="Make a key pair, PREFIX.pem and PREFIX.pub.pem, and end."
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Sign a delta of the local registry.

    The signature says that its signer vouches for these bytes under this name and version. It is stored beside the
    delta, and push takes it along; with --remote it is sent at once to a remote that has the delta. No pack is read.
    A password may be in DELTAREG_PASSWORD too.

    \b
      deltareg sign --generate-key acme
      deltareg sign acme/search:1.0.0 --key acme.pem --remote team
      deltareg verify acme/search:1.0.0 --signed-by acme.pub.pem
    """
    from deltareg.cli.output import print_report
    from deltareg.cli.session import current_settings, open_registry, reach
    from deltareg.errors import UsageError
    from deltareg.signatures import sign

    if generate_key is not None:
        if sigstore or any(one is not None for one in (reference, key, certificate, chain, remote)):
            raise UsageError("--generate-key makes a key and signs nothing", hint="deltareg sign --generate-key PREFIX")
        _generate(generate_key, password_stdin, dry_run=dry_run, json=json)
        return
    if reference is None:
        raise UsageError("no delta was named", hint="deltareg sign namespace/name:1.2.3 --key key.pem")
    signer = _signer(key, certificate, chain or [], sigstore=sigstore, password_stdin=password_stdin)
    settings = current_settings()
    goal = None if remote is None else reach(settings, remote)
    print_report(sign(open_registry(settings), reference, signer, remote=goal, dry_run=dry_run), json=json)


def _signer(
    key: str | None, certificate: str | None, chain: list[str], *, sigstore: bool, password_stdin: bool
) -> Signer:
    from deltareg.errors import UsageError
    from deltareg.signing import CertificateSigner, KeySigner, SigstoreSigner

    if sigstore:
        if key is not None or certificate is not None or chain or password_stdin:
            raise UsageError("--sigstore takes neither a key nor a certificate", hint="leave them out, or --sigstore")
        return SigstoreSigner()
    if key is None:
        raise UsageError(
            "there is nothing to sign with",
            hint="name a key: --key key.pem; deltareg sign --generate-key PREFIX makes one",
        )
    if certificate is None:
        if chain:
            raise UsageError(
                "--chain goes with --certificate", hint="name the certificate of the key: --certificate FILE"
            )
        return KeySigner(_path(key), _password(from_stdin=password_stdin))
    if password_stdin:
        raise UsageError(
            "with --certificate the key may not be encrypted: model-signing cannot read such a one",
            hint="openssl ec -in key.pem -out plain.pem, where nobody else reads it; remove it afterwards",
        )
    return CertificateSigner(_path(key), _path(certificate), tuple(_path(one) for one in chain))


def _generate(prefix: str, password_stdin: bool, *, dry_run: bool, json: bool) -> None:
    from deltareg.cli.output import hint, print_report
    from deltareg.cli.reports import KeyReport
    from deltareg.signing import generate_key

    path = _path(prefix)
    if dry_run:
        made = KeyReport(private=f"{path}.pem", public=f"{path}.pub.pem", fingerprint=None, dry_run=True)
    else:
        private, public, fingerprint = generate_key(path, _password(from_stdin=password_stdin))
        made = KeyReport(private=str(private), public=str(public), fingerprint=fingerprint, dry_run=False)
    print_report(made, json=json)
    if not dry_run:
        hint(
            f"keep {made.private} to yourself, with a copy elsewhere; give {made.public} to those who are to trust you"
        )


def _password(*, from_stdin: bool) -> bytes | None:
    """The password of a key: the first line of standard input, or of the variable."""
    import os
    import sys

    from deltareg.errors import InvalidArgument

    if not from_stdin:
        return os.environ.get("DELTAREG_PASSWORD", "").encode() or None
    password = sys.stdin.buffer.readline(_PASSWORD_LIMIT + 1).rstrip(b"\r\n")
    if not password or len(password) > _PASSWORD_LIMIT:
        raise InvalidArgument(
            "standard input has no password on its first line", hint='printf %s "$PASSWORD" | deltareg …'
        )
    return password


def _path(text: str) -> Path:
    from deltareg.paths import expand_home

    return expand_home(text)
