"""The commands by name."""

from __future__ import annotations

import typer

from deltareg_registry.cli.admin import admin_app
from deltareg_registry.cli.serve import serve
from deltareg_registry.cli.upkeep import backup, fsck, gc, restore

__all__ = ["app"]

app = typer.Typer(
    name="deltareg-registry",
    help="The shared registry of deltareg.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


@app.callback()
def root() -> None:
    """The shared registry of deltareg."""


app.command("serve")(serve)
app.command("gc")(gc)
app.command("fsck")(fsck)
app.command("backup")(backup)
app.command("restore")(restore)
app.add_typer(admin_app, name="admin")
