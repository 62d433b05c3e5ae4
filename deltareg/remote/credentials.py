"""What `deltareg login` keeps: in the system's keyring where there is one, else in a file that the user alone reads.

`DELTAREG_TOKEN` goes before what is kept, for the servers that the user has meant (see `Network`).
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from deltareg.editing import sync_directory
from deltareg.errors import BadConfig, BadManifest, NotAllowed, translate_os_errors
from deltareg.manifest import Document, parse
from deltareg.remote.network import TOKEN_VARIABLE, Address, Network, is_loopback
from deltareg.store import FileLock

__all__ = ["Credentials", "Secret", "check_plain", "key_of", "server_secret"]

_SERVICE = "deltareg"
_LIMIT = 1 << 20


@dataclass(frozen=True)
class Secret:
    """A token, or the password of a user name. With `identity` it is a token that other tokens are got for."""

    password: str = field(repr=False)
    username: str | None = None
    identity: bool = False


class _Kept(Document):
    """What is kept for one remote; the secret itself is absent where the keyring has it."""

    username: str | None = None
    secret: str | None = Field(default=None, repr=False)


class _File(Document):
    version: int = 1
    remotes: dict[str, _Kept] = Field(default={})


class Credentials:
    """The secrets by remote, as `key_of` names these. `path` is the file that says where each one is."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or _default_path()

    def find(self, key: str) -> Secret | None:
        """The secret for a remote. Raises NotAllowed where others could read the file, or the keyring is closed."""
        kept = self._read().remotes.get(key)
        if kept is None:
            return None
        if kept.secret is not None:
            return Secret(kept.secret, kept.username)
        ring = _keyring()
        found = None if ring is None else _from_ring(lambda: ring.get_password(_SERVICE, key))
        if found is None:
            raise NotAllowed(
                f"what is kept for {key} lies in the keyring, which does not give it out now",
                hint=f"open the keyring, or log in anew: deltareg login {key}",
            )
        return Secret(str(found), kept.username)

    def keep(self, key: str, secret: Secret) -> str:
        """Keep a secret in place of an older one; return where. Raises NotAllowed, DiskFull."""
        self._read()  # refused before anything is changed
        ring = _keyring()
        in_ring = ring is not None and _stored(ring, key, secret.password)
        kept = _Kept(username=secret.username, secret=None if in_ring else secret.password)
        self._change(lambda remotes: {**remotes, key: kept})
        return "the keyring" if in_ring else str(self.path)

    def forget(self, key: str) -> bool:
        """Forget a secret; whether there was one. Raises NotAllowed, also where the keyring does not let go of it."""
        kept = self._read().remotes.get(key)
        if kept is None:
            return False
        if kept.secret is None and not _dropped(_keyring(), key):
            raise NotAllowed(
                f"what is kept for {key} lies in the keyring, which does not let go of it now",
                hint="open the keyring, and run this again; if the secret may be known to others, revoke it",
            )
        self._change(lambda remotes: {name: one for name, one in remotes.items() if name != key})
        return True

    def _read(self) -> _File:
        with translate_os_errors("read what login keeps", self.path):
            try:
                with self.path.open("rb") as file:
                    status = os.fstat(file.fileno())
                    data = file.read(_LIMIT)
            except FileNotFoundError:
                return _File()
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or status.st_uid not in (os.geteuid(), 0):
            raise NotAllowed(
                f"{self.path} holds secrets, and others may read it or own it",
                cause=f"its mode is {stat.S_IMODE(status.st_mode):04o}, its owner {status.st_uid}",
                hint=f"chmod 600 {self.path}; where others can have read it, revoke the tokens and log in anew",
                path=self.path,
            )
        try:
            return parse(_File, data, what=str(self.path))
        except BadManifest:
            # Not chained: what is told of a wrong value shows the value.
            pass
        raise BadConfig(f"{self.path} is not what login wrote", hint=f"remove it, and log in anew: rm {self.path}")

    def _change(self, change: Callable[[dict[str, _Kept]], dict[str, _Kept]]) -> None:
        with translate_os_errors("make the directory of what login keeps", self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(self.path.with_suffix(".lock")).exclusive():
            now = self._read()
            after = now.model_copy(update={"remotes": change(dict(now.remotes))})
            _write_privately(self.path, json.dumps(after.model_dump(by_alias=True, exclude_none=True), indent=1))


def key_of(address: Address) -> str:
    """What a remote's secret is kept under: its scheme, host and port."""
    return f"{address.scheme}://{address.host}"


def server_secret(address: Address, network: Network, kept: Credentials) -> Secret | None:
    """The secret for a server on the web: the token of the environment, where it is meant for it, else what login kept.

    Raises NotAllowed.
    """
    if network.token is not None and address.origin in network.token_for:
        check_plain(address, TOKEN_VARIABLE)
        return Secret(network.token)
    return kept.find(key_of(address))


def check_plain(address: Address, what: str) -> None:
    """Raise NotAllowed where a secret would travel over a network that anybody can listen to."""
    if address.origin.startswith("http:") and not is_loopback(address.origin):
        raise NotAllowed(
            f"{what} is not sent to {address.origin}: without TLS everybody on the way reads it",
            hint="use https, or keep a token for just this server: deltareg login --insecure",
        )


def _default_path() -> Path:
    import platformdirs

    return platformdirs.user_config_path("deltareg") / "credentials.json"


def _write_privately(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with translate_os_errors("write what login keeps", path):
        try:
            # From its first moment on nobody else can read it.
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)


def _keyring() -> Any | None:
    """The keyring of the system, if there is one that keeps anything."""
    try:
        ring = importlib.import_module("keyring").get_keyring()
    except Exception:  # keyring is no requirement, and its backends fail at anything
        return None
    where = type(ring).__module__
    if where in ("keyring.backends.fail", "keyring.backends.null"):
        return None
    return ring if getattr(ring, "backends", True) else None


def _stored(ring: Any, key: str, secret: str) -> bool:
    """Whether the keyring took a secret and gives it out again."""
    try:
        ring.set_password(_SERVICE, key, secret)
        return ring.get_password(_SERVICE, key) == secret
    except Exception:  # as above: a locked or a remote keyring; the file is there for that
        return False


def _dropped(ring: Any | None, key: str) -> bool:
    """Whether the keyring has no secret any more: somebody else may have taken it out."""
    try:
        if ring is not None and ring.get_password(_SERVICE, key) is not None:
            ring.delete_password(_SERVICE, key)
        return ring is not None
    except Exception:  # as above
        return False


def _from_ring(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception:  # as above
        return None
