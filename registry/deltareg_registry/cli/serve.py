"""`deltareg-registry serve`."""

from __future__ import annotations

import gc
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
    gc_every: Annotated[
        float,
        typer.Option("--gc-every", min=0, metavar="SECONDS", help="Remove what nothing names, regularly. 0: never."),
    ] = 3600,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            "--proxy", metavar="ADDRESS", help="A proxy whose X-Forwarded-For is believed, or a network. Repeatable."
        ),
    ] = None,
    drain: Annotated[
        float, typer.Option("--drain", min=0, metavar="SECONDS", help="How long requests may go on after SIGTERM.")
    ] = 30,
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="text or json.")] = LogFormat.text,
) -> None:
    """Serve a registry.

    Made at the first start, which prints the owner's token, once. Everything is in DIR, unless --database and --storage
    name other places; then several processes, each with a port of its own, can serve the same registry.

    SIGTERM ends it: nobody new is answered, what has begun may go on for a while. A second ends it at once.

    \b
      deltareg-registry serve --data /srv/deltareg
    """
    # What is loaded stays: looking through it for what could go would take a quarter of the time until it has begun.
    gc.disable()
    from deltareg_registry.app import create_app, open_state
    from deltareg_registry.first import first_token
    from deltareg_registry.logs import configure_logging
    from deltareg_registry.serving import bind, serve_at
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
        gc_seconds=gc_every or None,
    )
    configure_logging(json=log_format is LogFormat.json)
    proxies = [parse_host(each) for each in proxy or ("127.0.0.1", "::1")]
    bound = bind(host, port)
    state = open_state(settings)
    app = create_app(settings, state)
    shown = settings.url or f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
    token = first_token(state.database)
    told = [f"serving {shown}"]
    if token is not None:
        told += [f"the owner's token, shown this once: {token}", f"log in with: deltareg login {shown}"]
    gc.freeze()
    gc.enable()
    # Whoever reads this and connects at once waits for a moment, and is not refused.
    bound.listen(2048)
    typer.echo("\n".join(told))
    serve_at(app, bound, drain=drain, proxies=proxies)
