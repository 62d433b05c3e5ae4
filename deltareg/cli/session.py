"""What a command works with: the settings, the local registry, the remote."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deltareg.catalog import Registry, default_home
from deltareg.config import Settings, load_settings, user_file
from deltareg.errors import InvalidArgument, NotFound, translate_os_errors
from deltareg.remote import Bandwidth, Network, Remote, open_remote, parse_rate

if TYPE_CHECKING:
    from deltareg.resolve import Sources

__all__ = [
    "current_settings",
    "home_of",
    "network",
    "open_registry",
    "reach",
    "remote_cache",
    "sources",
    "working_directory",
    "writable_registry",
]


def current_settings() -> Settings:
    """The settings that hold in the working directory. Raises BadConfig."""
    return load_settings(working_directory(), os.environ)


def working_directory() -> Path:
    """Where the command runs. Raises DeltaregError where the directory was removed meanwhile."""
    with translate_os_errors("find the working directory", "."):
        return Path.cwd()


def open_registry(settings: Settings | None = None) -> Registry:
    """The local registry, for reading. Raises NotFound where nothing was ever stored."""
    settings = settings or current_settings()
    home = home_of(settings)
    try:
        return Registry(home, create=False, policies=settings.policies)
    except NotFound as error:
        raise NotFound(
            f"the local registry at {home} is empty",
            hint="take a delta with deltareg diff, or fetch one with deltareg pull",
            path=home,
        ) from error


@contextmanager
def writable_registry(settings: Settings, *, dry_run: bool) -> Generator[Registry]:
    """The local registry, made if need be. A dry run that finds none works on an empty one that is then removed."""
    home = home_of(settings)
    if not dry_run or os.path.exists(home / "registry"):
        yield Registry(home, policies=settings.policies)
        return
    with tempfile.TemporaryDirectory(prefix="deltareg-") as empty:
        yield Registry(empty, policies=settings.policies)


def home_of(settings: Settings) -> Path:
    """The directory of the local registry."""
    return settings.home or default_home()


def remote_cache(settings: Settings) -> Path | None:
    """Where what was read of remotes is kept; None where there is no local registry, for a search makes none."""
    home = home_of(settings)
    return home / "remotes" if os.path.exists(home / "registry") else None


def reach(settings: Settings, remote: str | None, *, limit: str | None = None) -> Remote:
    """The remote of that name, URL or path; without any the default one. Raises InvalidArgument, UsageError.

    `limit` is the rate that goes before the settings' one.
    """
    return open_remote(settings.remote_url(remote), network(settings, remote, limit=limit))


def network(settings: Settings, remote: str | None = None, *, limit: str | None = None) -> Network:
    """How the network is used, where `remote` is what the user has named on the command line.

    The token of the environment is for the remote that the user means: one that is named there or by DELTAREG_REMOTE,
    or the default one of the user's own settings. One that the settings of a project choose, which may have come with a
    clone, does not get it. Raises BadConfig, InvalidArgument.
    """
    rate = settings.bandwidth if limit is None else parse_rate(limit)
    meant = remote or os.environ.get("DELTAREG_REMOTE") or settings.own_default(user_file())
    try:
        urls = [] if meant is None else [settings.remote_url(meant)]
    except InvalidArgument:
        urls = []  # told where that remote is reached
    if any(
        "://" in url and not url.startswith("file:") for url in [*urls, *(one.url for one in settings.remotes.values())]
    ):
        _silence_retries()
    return Network.of(os.environ, urls, bandwidth=Bandwidth(rate))


def sources(settings: Settings, registry: Registry, *, offline: bool = False, keeps: bool = True) -> Sources:
    """Which registry each name of a recipe is looked up in, as the settings bind them."""
    # Here: the checks, which judge candidates, load numpy.
    from deltareg.resolve import Sources

    return Sources(
        registry=registry,
        urls=settings.urls,
        bound=settings.bound,
        default=settings.default_remote,
        offline=offline,
        keeps=keeps,
        network=network(settings),
    )


def _silence_retries() -> None:
    """Where structlog is installed, each retry would be told on stdout, among what `--json` prints."""
    import stamina.instrumentation

    stamina.instrumentation.set_on_retry_hooks(())
