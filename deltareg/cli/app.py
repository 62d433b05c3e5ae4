"""The commands by name.

`deltareg --help` has to answer at once. So the modules of the commands load typer at their top and everything else (the
documents' pydantic, the catalog's SQLite, the codec's numba, rich) inside the functions that need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

import typer

from deltareg import __version__
from deltareg.cli.adapters import export_lora, import_lora
from deltareg.cli.archives import export_deltas, import_deltas
from deltareg.cli.builds import build, lock, outdated, tree, update, why
from deltareg.cli.cache import cache_app
from deltareg.cli.channels import channel_app
from deltareg.cli.check import check, fingerprint
from deltareg.cli.checkpoints import apply, diff
from deltareg.cli.compare import compare
from deltareg.cli.deprecations import deprecate, undeprecate
from deltareg.cli.doctor import doctor
from deltareg.cli.evaluate import evaluate
from deltareg.cli.inspect import inspect
from deltareg.cli.logins import login, logout, whoami
from deltareg.cli.mergekit import import_mergekit
from deltareg.cli.methods import methods
from deltareg.cli.mirroring import mirror
from deltareg.cli.recipes import add, new, remove
from deltareg.cli.registry import list_deltas, show, verify
from deltareg.cli.remotes import remote_app
from deltareg.cli.search import search
from deltareg.cli.setup import init
from deltareg.cli.signers import signers_app
from deltareg.cli.signing import sign
from deltareg.cli.sweep import sweep
from deltareg.cli.transfer import transfer
from deltareg.cli.transfers import pull, push
from deltareg.cli.yanks import unyank, yank

__all__ = ["EXIT_CODES", "app"]

EXIT_CODES: Mapping[int, str] = MappingProxyType(
    {
        0: "ok",
        1: "failed",
        2: "wrong usage",
        3: "incompatible: the delta and the checkpoint do not fit, or a format is not known",
        4: "not allowed",
        5: "integrity: bytes are not what they should be",
        6: "network: a remote does not answer",
        130: "interrupted (143: ended by SIGTERM, 129: by SIGHUP)",
    }
)
"""What the exit status says."""

_EPILOG = "Exit status: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."

app = typer.Typer(
    name="deltareg",
    help="""
    The registry and package manager for post-training weight deltas.

    diff stores what turns a base checkpoint into a post-trained one, exactly. push and pull share it. apply adds it,
    weighted and with others if you like, to any checkpoint of the same parameter space.

    A delta is named namespace/name:1.2.3, namespace/name:channel or namespace/name@sha256:…; a checkpoint is a
    directory, a .safetensors file, hf://org/name@revision or s3://bucket/prefix (gs://, az://).
    """,
    epilog=_EPILOG,
    # Plain help: rich would take longer to load than all the rest. Errors are told in `run`, in one form.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deltareg {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("init")(init)
app.command("diff")(diff)
app.command("import-lora")(import_lora)
app.command("import-mergekit")(import_mergekit)
app.command("list")(list_deltas)
app.command("show")(show)
app.command("search")(search)
app.command("push")(push)
app.command("pull")(pull)
app.command("mirror")(mirror)
app.command("export")(export_deltas)
app.command("import")(import_deltas)
app.command("login")(login)
app.command("logout")(logout)
app.command("whoami")(whoami)
app.command("yank")(yank)
app.command("unyank")(unyank)
app.command("deprecate")(deprecate)
app.command("undeprecate")(undeprecate)
app.add_typer(channel_app, name="channel")
app.command("verify")(verify)
app.command("sign")(sign)
app.add_typer(signers_app, name="signers")
app.command("check")(check)
app.command("compare")(compare)
app.command("sweep")(sweep)
app.command("eval")(evaluate)
app.command("transfer")(transfer)
app.command("apply")(apply)
app.command("inspect")(inspect)
app.command("export-lora")(export_lora)
app.command("lock")(lock)
app.command("build")(build)
app.command("update")(update)
app.command("outdated")(outdated)
app.command("why")(why)
app.command("tree")(tree)
app.command("new")(new)
app.command("add")(add)
app.command("remove")(remove)
app.command("methods")(methods)
app.command("fingerprint")(fingerprint)
app.add_typer(remote_app, name="remote")
app.add_typer(cache_app, name="cache")
app.command("doctor")(doctor)
