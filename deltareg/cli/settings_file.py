"""Writing `deltareg.toml`: a new one, and remotes in one that people have written."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tomlkit

from deltareg.config import FileSettings, check_namespace, check_remote_name, parse_settings, read_settings
from deltareg.editing import read_text, replace_text
from deltareg.errors import BadConfig, InvalidArgument, OutputExists, translate_os_errors

__all__ = ["FIRST_REMOTE", "add_remote", "create_settings", "remove_remote"]

FIRST_REMOTE = "origin"
"""What `deltareg init --remote` calls the remote."""

_TEMPLATE = """\
# Settings of deltareg for this project. Variables win over them: DELTAREG_HOME, DELTAREG_THREADS,
# DELTAREG_BANDWIDTH, DELTAREG_REMOTE.

# The directory of the local registry; by default the platform's data directory.
# home = "registry"

# The number of threads; by default the number of processors.
# threads = 4

# What transfers over a network may take, in bytes a second; by default no limit.
# bandwidth = "10MB/s"

# The remote that push and pull use without --remote, and the remotes by name.
# remote = "team"
#
# [remotes.team]
# url = "/mnt/share/deltas"
# namespaces = ["acme"]  # what recipes look up in it, and nowhere else

# By whom the deltas of a namespace must be signed before they are used.
# [policies.acme]
# signed-by = ["keys/acme.pem"]

# The recipe, [build] and [[delta]], stands in this file too: deltareg new writes one.
"""


def create_settings(path: Path, *, remote: str | None = None, dry_run: bool = False) -> None:
    """Write a new settings file that explains its keys; `remote` is the URL or path of its first remote.

    Raises OutputExists where there is one, NotAllowed.
    """
    text = _TEMPLATE
    if remote is not None:
        text += f'remote = "{FIRST_REMOTE}"\n\n[remotes.{FIRST_REMOTE}]\nurl = {_toml_string(remote)}\n'
    parse_settings(text.encode(), path)
    if os.path.lexists(path):
        raise OutputExists(f"{path} exists already", hint="edit it, or add to it: deltareg remote add NAME URL")
    if not dry_run:
        with translate_os_errors("write the settings", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError as error:
                raise OutputExists(f"{path} exists already") from error


def add_remote(
    path: Path,
    name: str,
    url: str,
    *,
    namespaces: Sequence[str] = (),
    default: bool = False,
    dry_run: bool = False,
) -> None:
    """Put a remote into the file at `path`, which is made if need be; comments and order stay.

    Adding what is there already is no error; `namespaces` are bound to it besides those that are. Raises
    InvalidArgument for a name that is taken or not allowed, BadName for what is no namespace.
    """
    check_remote_name(name)
    for namespace in namespaces:
        check_namespace(namespace)
    now = read_settings(path) if path.exists() else FileSettings(path)
    there = now.remotes.get(name)
    if there is not None and there.url != url:
        raise InvalidArgument(
            f"a remote is called {name} already: {there.url}",
            hint=f"deltareg remote remove {name}, or choose another name",
        )

    def change(document: dict[str, Any]) -> None:
        if there is None:
            document.setdefault("remotes", {})[name] = {"url": url}
        bound = list(dict.fromkeys([*(() if there is None else there.namespaces), *namespaces]))
        if bound and (there is None or tuple(bound) != there.namespaces):
            document["remotes"][name]["namespaces"] = bound
        if default:
            document["remote"] = name

    _edit(path, change, dry_run=dry_run)


def remove_remote(path: Path, name: str, *, dry_run: bool = False) -> None:
    """Take a remote out of the file at `path`; if it is the file's default remote, that too."""

    def change(document: dict[str, Any]) -> None:
        document["remotes"].pop(name)
        if not document["remotes"]:
            document.pop("remotes")
        if document.get("remote") == name:
            document.pop("remote")

    _edit(path, change, dry_run=dry_run)


def _edit(path: Path, change: Callable[[dict[str, Any]], None], *, dry_run: bool) -> None:
    """Apply `change` to a file's document, and write it only if it reads back as meant."""
    before = read_text(path) if path.exists() else ""
    try:
        document: Any = tomlkit.parse(before)
    except ValueError as error:
        raise BadConfig(f"{path} is not valid TOML: {error}", cause=str(error), path=path) from error
    change(document)
    after = tomlkit.dumps(document)
    wanted = tomllib.loads(before)
    change(wanted)
    if tomllib.loads(after) != wanted:
        raise BadConfig(f"{path} is written in a way that cannot be changed safely", hint="edit it by hand", path=path)
    parse_settings(after.encode(), path)
    if not dry_run:
        replace_text(path, after)


def _toml_string(text: str) -> str:
    return tomlkit.item(text).as_string()
