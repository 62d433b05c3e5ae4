"""`https://` and `http://` remotes: a deltareg server or a static mirror, as the server tells when it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from deltareg.errors import BadManifest, NotAllowed, NotFound, RemoteUnavailable
from deltareg.remote.answers import Answer
from deltareg.remote.authorization import Basic, BearerToken
from deltareg.remote.credentials import Credentials, Secret, server_secret
from deltareg.remote.http import Authorization, HttpClient
from deltareg.remote.mirror import HttpMirror
from deltareg.remote.network import Address, Network, parse_address
from deltareg.remote.server import ServerRemote

if TYPE_CHECKING:
    from deltareg.remote.protocol import Remote

__all__ = ["Kind", "WebRemote", "authorization_of", "web_client"]


@dataclass(frozen=True)
class Kind:
    """A kind of remote on the web: what `path` below its URL answers with, and what it is then."""

    path: str
    is_it: Callable[[Mapping[str, Any]], bool]
    open: Callable[[str, HttpClient], Remote]


_KINDS = (
    Kind("api/v1", lambda document: document.get("registry") == "deltareg", ServerRemote),
    Kind("oci-layout", lambda document: "imageLayoutVersion" in document, HttpMirror),
)


class WebRemote:
    """The remote at a URL, of the kind that it turns out to be: it is asked once, at the first use."""

    def __init__(self, url: str, network: Network | None = None) -> None:
        self._address = parse_address(url)
        self.url = self._address.url
        self._network = network or Network()
        self._lock = threading.Lock()
        self._found: Remote | None = None

    def __getattr__(self, name: str) -> Any:
        # All that a remote does, the found one does. Names with an underscore are this class's own.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._remote(), name)

    def _remote(self) -> Remote:
        with self._lock:
            if self._found is None:
                self._found = self._look()
            return self._found

    def _look(self) -> Remote:
        http = web_client(self._address, self._network)
        refused: NotAllowed | None = None
        for kind in _KINDS:
            try:
                answer = http.ask("GET", kind.path, limit=65536)
            except (NotFound, BadManifest):
                continue
            except NotAllowed as error:
                refused = refused or error
                continue
            if kind.is_it(_document(answer)):
                return kind.open(self.url, http)
        http.close()
        if refused is not None:
            raise refused
        raise RemoteUnavailable(
            f"there is neither a deltareg server nor a static mirror at {self.url}",
            cause=" and ".join(f"{kind.path} is not what it would be" for kind in _KINDS),
            hint=f"check the URL; an OCI registry is written oci://{self._address.host}{self._address.path}",
        )


def web_client(address: Address, network: Network, kept: Credentials | None = None) -> HttpClient:
    """A client for a server on the web, which is told who the user is, as far as that is known. Raises NotAllowed."""
    secret = server_secret(address, network, kept or Credentials())
    known = None if secret is None else authorization_of(secret)
    return HttpClient(address.base, network, authorization=known, login=address.url)


def authorization_of(secret: Secret) -> Authorization:
    """How a server on the web is told a secret: a token as such, a password with its name."""
    return BearerToken(secret.password) if secret.username is None else Basic(secret)


def _document(answer: Answer) -> Mapping[str, Any]:
    try:
        value = answer.json()
    except BadManifest:
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
