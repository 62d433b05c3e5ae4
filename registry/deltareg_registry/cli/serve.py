"""`deltareg-registry serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["serve"]


def serve(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Where the database and the blobs are kept.")],
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8400,
    database: Annotated[
        str | None, typer.Option("--database", metavar="URL", help="postgresql://…; without it SQLite in DIR.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option("--storage", metavar="URL", help="s3://bucket/prefix; without it files in DIR.")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="The URL that clients use, where a proxy stands in front.")
    ] = None,
    redirect: Annotated[
        bool,
        typer.Option("--redirect/--no-redirect", help="Let an object store send the blobs itself, by signed URLs."),
    ] = True,
    accel: Annotated[
        str | None,
        typer.Option("--accel", metavar="PATH", help="The internal location at which nginx serves DIR/storage."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="New namespaces may be read without a token.")] = False,
) -> None:
    """Serve a registry.

    Made at the first start, which prints the owner's token, once. Everything is in DIR, unless --database and --storage
    name other places; then several processes can serve the same registry.

    \b
      deltareg-registry serve --data /srv/deltareg
    """
    import uvicorn

    from deltareg_registry.app import create_app, open_state
    from deltareg_registry.first import first_token
    from deltareg_registry.settings import ServerSettings

    settings = ServerSettings(
        data=data.absolute(), database=database, storage=storage, url=url, public=public, redirect=redirect, accel=accel
    )
    state = open_state(settings)
    config = uvicorn.Config(create_app(settings, state), host=host, port=port, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    sockets = [config.bind_socket()]
    shown = settings.url or f"http://{host}:{sockets[0].getsockname()[1]}"
    typer.echo(f"serving {shown}")
    token = first_token(state.database)
    if token is not None:
        typer.echo(f"the owner's token, shown this once: {token}")
        typer.echo(f"log in with: deltareg login {shown}")
    server.run(sockets=sockets)
