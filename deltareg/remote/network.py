"""How remotes on the network are reached: addresses, patience, the token of the environment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from deltareg.errors import BadConfig, DeltaregError, UsageError
from deltareg.remote.bandwidth import Bandwidth

__all__ = ["TOKEN_VARIABLE", "Address", "Network", "Patience", "is_loopback", "origin_of", "parse_address", "shown"]

TOKEN_VARIABLE = "DELTAREG_TOKEN"
"""The environment variable that holds a token."""

_PORTS = {"http": 80, "https": 443}
_PLAIN = {"oci": "https", "oci+http": "http", "https": "https", "http": "http"}
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]{2,45}\]")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*")
_LOOPBACK = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]")
_TOKEN = re.compile(r"[\x21-\x7e]{1,8192}")


@dataclass(frozen=True)
class Patience:
    """Seconds that are waited: for a connection, for the next byte, and for all tries of one request together."""

    connect: float = 10
    silence: float = 60
    total: float = 60
    attempts: int = 6


@dataclass(frozen=True)
class Address:
    """Where a remote is: `origin` is scheme, host and, where it is not the usual one, port; `path` has no slash at its
    end."""

    url: str
    scheme: str
    origin: str
    path: str

    @property
    def base(self) -> str:
        """The URL of HTTP."""
        return self.origin + self.path

    @property
    def host(self) -> str:
        """Host and port, as docker's credential files have them."""
        return self.origin.partition("://")[2]


@dataclass(frozen=True)
class Network:
    """What every remote on the network has in common in one process.

    `token` is what `DELTAREG_TOKEN` holds. It is sent to the origins in `token_for` alone: those that the user has
    meant, not whatever a file that came with a project names.
    """

    bandwidth: Bandwidth = field(default_factory=Bandwidth)
    token: str | None = field(default=None, repr=False)
    token_for: frozenset[str] = frozenset()
    patience: Patience = field(default_factory=Patience)

    @classmethod
    def of(
        cls, environment: Mapping[str, str], meant: Iterable[str] = (), *, bandwidth: Bandwidth | None = None
    ) -> Network:
        """The network for a user who has meant the URLs `meant`; those that are no URLs of servers count for nothing.

        Raises BadConfig for a token that no header can hold.
        """
        token = (environment.get(TOKEN_VARIABLE) or "").strip() or None
        if token is not None and _TOKEN.fullmatch(token) is None:
            raise BadConfig(f"{TOKEN_VARIABLE} holds what cannot be a token", hint=f"set {TOKEN_VARIABLE} anew")
        origins = {origin for url in meant if (origin := _server_origin(url)) is not None}
        return cls(bandwidth or Bandwidth(), token, frozenset(origins))


def parse_address(url: str) -> Address:
    """The address in the URL of a remote on the network. Raises UsageError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _no_address(url) from None
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise UsageError(
            f"{shown(url)} was given with a user name or a password, which a URL must not hold: it is shown and kept",
            hint=f"write it without, and keep the secret apart: deltareg login {shown(url)}",
        )
    scheme = parts.scheme.lower()
    host = parts.netloc.rpartition(":")[0] if port is not None else parts.netloc.removesuffix(":")
    if scheme not in _PLAIN or _HOST.fullmatch(host) is None or "?" in url or "#" in url:
        raise _no_address(url)
    path = re.sub("/+", "/", parts.path).rstrip("/")
    if _PATH.fullmatch(path) is None or any(part in (".", "..") for part in path.split("/")):
        raise _no_address(url)
    plain = _PLAIN[scheme]
    where = host.lower() + ("" if port is None or port == _PORTS[plain] else f":{port}")
    return Address(f"{scheme}://{where}{path}", scheme, f"{plain}://{where}", path)


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL of HTTP, as `Address.origin` has them. Raises ValueError."""
    parts = urlsplit(url)
    scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
    if scheme not in _PORTS or not host:
        raise ValueError("no URL of HTTP")
    host = f"[{host}]" if ":" in host else host
    port = parts.port
    return f"{scheme}://{host}" + ("" if port is None or port == _PORTS[scheme] else f":{port}")


def is_loopback(origin: str) -> bool:
    """Whether an origin is this machine."""
    host = re.sub(r":\d+$", "", origin.partition("://")[2])
    return _LOOPBACK.fullmatch(host) is not None


def shown(url: str) -> str:
    """A URL as it may be told: without user, password, query and fragment."""
    text = re.sub(r"[?#].*", "", url, flags=re.DOTALL)
    text = re.sub(r"//[^/]*@", "//", text)
    # A password may hold what ends an authority: then what follows its name is no port.
    return re.sub(r"//(?!\[)[^/:]*:(?![0-9]*(?:/|$)).*", "//…", text, flags=re.DOTALL)[:500]


def _server_origin(url: str) -> str | None:
    try:
        address = parse_address(url)
    except DeltaregError:
        return None
    return address.origin if address.scheme in _PORTS else None


def _no_address(url: str) -> UsageError:
    return UsageError(
        f"{shown(url)!r} is no URL of a remote",
        cause="it takes a scheme, a host, perhaps a port and a path, and nothing more",
        hint="write https://host/path or oci://host:5000/prefix",
    )
