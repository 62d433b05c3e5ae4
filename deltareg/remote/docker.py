"""The secrets for OCI registries that docker, podman and their kind keep."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard, cast

from deltareg.errors import BadConfig, NotAllowed, translate_os_errors
from deltareg.remote.credentials import Secret

__all__ = ["find_docker_secret"]

_LIMIT = 1 << 20
_HELPER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HELPER_SECONDS = 30
_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_HUB_KEY = "https://index.docker.io/v1/"
_TOKEN_USER = "<token>"
"""What helpers give for a user name where the secret is an identity token."""


class _Endless(Exception):
    """A program that keeps secrets does not come to an end."""


def find_docker_secret(
    host: str, path: str, environment: Mapping[str, str], *, seconds: float = _HELPER_SECONDS
) -> Secret | None:
    """The secret for a registry, of the first of docker's and podman's files that has one. `path` is the prefix there.

    Raises BadConfig for a file that is no JSON; NotAllowed, also where a program that keeps secrets does not end
    within `seconds`, or prints without end.
    """
    for file in _files(environment):
        config = _read(file)
        for key in _keys(host, path):
            found = _of_helper(config, key, seconds) or _of_auths(config, key)
            if found is not None:
                return found
    return None


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    if named := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
        return
    home = Path(environment.get("HOME") or Path.home())
    docker = environment.get("DOCKER_CONFIG")
    yield (Path(docker) if docker else home / ".docker") / "config.json"
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"
    yield Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "containers" / "auth.json"


def _read(path: Path) -> Mapping[str, Any]:
    with translate_os_errors("read the credentials of docker", path):
        try:
            with path.open("rb") as file:
                data = file.read(_LIMIT)
        except (FileNotFoundError, NotADirectoryError):
            return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        # Not chained: what is told of the place of an error shows the text around it.
        value = None
    if not isinstance(value, dict):
        raise BadConfig(f"{path} is no JSON object", hint="mend it, or log in anew with docker login", path=path)
    return cast("dict[str, Any]", value)


def _keys(host: str, path: str) -> Iterator[str]:
    """How the files may call a registry, from the narrowest on: podman keeps secrets by path too."""
    if host in _HUB:
        yield from (_HUB_KEY, *_HUB)
        return
    parts = [host, *filter(None, path.split("/"))]
    for end in range(len(parts), 0, -1):
        yield "/".join(parts[:end])
    for scheme in ("https", "http"):
        yield from (f"{scheme}://{host}", f"{scheme}://{host}/", f"{scheme}://{host}/v2/", f"{scheme}://{host}/v1/")


def _of_auths(config: Mapping[str, Any], key: str) -> Secret | None:
    entry = _table(config, "auths").get(key)
    if not isinstance(entry, dict):
        return None
    fields = cast("dict[str, Any]", entry)
    identity = fields.get("identitytoken")
    if _is_text(identity) and identity:
        return Secret(identity, identity=True)
    username, password = fields.get("username"), fields.get("password")
    packed = fields.get("auth")
    if isinstance(packed, str) and packed:
        try:
            username, _, password = base64.b64decode(packed, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
    if _is_text(username) and _is_text(password) and password:
        return Secret(password.rstrip("\0"), username)
    return None


def _of_helper(config: Mapping[str, Any], key: str, seconds: float) -> Secret | None:
    """What a `docker-credential-…` program gives out; None where there is none, or it knows nothing."""
    helper = _table(config, "credHelpers").get(key) or config.get("credsStore")
    if not isinstance(helper, str) or _HELPER.fullmatch(helper) is None:
        return None
    program = shutil.which(f"docker-credential-{helper}")
    if program is None:
        return None
    try:
        given = json.loads(_printed(program, key, seconds))
    except _Endless as error:
        # It would be asked again for each name of the registry.
        raise NotAllowed(
            f"{program} does not answer: it was asked for the login of {key}",
            cause=str(error),
            hint=f"see why, with echo {key} | {program} get; or take credsStore and credHelpers out of docker's file",
        ) from None
    except (OSError, ValueError, RecursionError):
        return None
    fields = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    username, password = fields.get("Username"), fields.get("Secret")
    if not _is_text(username) or not _is_text(password) or not password:
        return None
    return Secret(password, identity=True) if username == _TOKEN_USER else Secret(password, username)


def _printed(program: str, key: str, seconds: float) -> bytes:
    """What a program says of a key; nothing where it failed. Raises _Endless for one that does not come to its end."""
    end = time.monotonic() + seconds
    # Not a pipe, which would wait for a program that reads nothing.
    with tempfile.TemporaryFile() as asked:
        asked.write(key.encode())
        asked.seek(0)
        command = [program, "get"]
        with subprocess.Popen(command, stdin=asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            try:
                assert process.stdout is not None
                found = _all_of(process.stdout.fileno(), end)
                return found if process.wait(max(0.0, end - time.monotonic())) == 0 else b""
            except (TimeoutError, subprocess.TimeoutExpired):
                raise _Endless(f"{seconds:.0f} s went by") from None
            finally:
                process.kill()


def _all_of(pipe: int, end: float) -> bytes:
    """What comes through a pipe. Raises _Endless for more than _LIMIT bytes, TimeoutError at `end`."""
    found = bytearray()
    while piece := _next_piece(pipe, end):
        found += piece
        if len(found) > _LIMIT:
            raise _Endless(f"it printed more than {_LIMIT} bytes")
    return bytes(found)


def _next_piece(pipe: int, end: float) -> bytes:
    ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
    if not ready:
        raise TimeoutError
    return os.read(pipe, 65536)


def _is_text(value: object) -> TypeGuard[str]:
    """Whether it can be sent: JSON takes half of a character for text."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _table(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
