"""Where `deltareg search` looks: the local registry, or remotes."""

from __future__ import annotations

from collections.abc import Sequence

from deltareg.catalog.search import Query, SearchReport
from deltareg.cli.session import network, open_registry, remote_cache
from deltareg.config import Settings
from deltareg.errors import InvalidArgument, NotFound
from deltareg.remote import open_remote
from deltareg.remote.search import search_remotes

__all__ = ["search_in"]


def search_in(settings: Settings, query: Query, remotes: Sequence[str], *, every: bool) -> SearchReport:
    """Put a query to the remotes that are named, or to `every` one of the settings; without any to the local registry.

    Raises InvalidArgument for an unknown remote, and what `search_remotes` raises.
    """
    if every:
        urls = settings.urls
        if not urls:
            raise InvalidArgument("no remote is set up", hint="deltareg remote add NAME URL")
    else:
        urls = {name: settings.remote_url(name) for name in remotes}
    if urls:
        # The token of the environment is for one server: of several that are named, none is meant more than another.
        reached = network(settings, remotes[0] if len(remotes) == 1 else None)
        opened = {name: open_remote(url, reached) for name, url in urls.items()}
        return search_remotes(opened, query, remote_cache(settings))
    try:
        registry = open_registry(settings)
    except NotFound:
        return SearchReport(results=[], total=0, seconds=0)
    return registry.catalog.search(registry.store, query)
