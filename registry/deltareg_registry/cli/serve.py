"""`deltareg-registry serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from deltareg_registry.cli.options import Data, DatabaseUrl, LogFormat, Makers, StorageUrl

__all__ = ["serve"]


def serve(
    data: Data,
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8400,
    database: DatabaseUrl = None,
    storage: StorageUrl = None,
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
    namespace_makers: Annotated[
        Makers, typer.Option("--namespace-makers", help="Who may make namespaces: whoever has a token, or admins.")
    ] = Makers.everybody,
    rate_limit: Annotated[
        float | None,
        typer.Option("--rate-limit", min=0.01, metavar="N", help="Requests a second of one token or address."),
    ] = None,
    webhook_host: Annotated[
        list[str] | None,
        typer.Option(
            "--webhook-host", metavar="HOST", help="A private host or network that webhooks may reach. Repeatable."
        ),
    ] = None,
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="text or json.")] = LogFormat.text,
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
    from deltareg_registry.upkeep.addresses import parse_host

    settings = ServerSettings(
        data=data.absolute(),
        database=database,
        storage=storage,
        url=url,
        redirect=redirect,
        accel=accel,
        public=public,
        namespace_makers=namespace_makers.value,
        rate_limit=rate_limit,
        webhook_hosts=tuple(parse_host(each) for each in webhook_host or ()),
        json_log=log_format is LogFormat.json,
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
