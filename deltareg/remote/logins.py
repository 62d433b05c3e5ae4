"""Logging in: a secret is tried before it is kept, and nobody's before he has said where it is for."""

from __future__ import annotations

import re

from pydantic import Field

from deltareg.errors import (
    BadManifest,
    InvalidArgument,
    NotAllowed,
    NotFound,
    NotSignedIn,
    RemoteUnavailable,
    UsageError,
)
from deltareg.manifest import Document, parse
from deltareg.remote.authorization import RegistryAuthorization
from deltareg.remote.credentials import Credentials, Secret, check_plain, key_of, server_secret
from deltareg.remote.http import HttpClient
from deltareg.remote.network import Address, Network, parse_address, shown
from deltareg.remote.oci import OciClient
from deltareg.remote.web import authorization_of, web_client

__all__ = [
    "Identity",
    "LoginReport",
    "LogoutReport",
    "Membership",
    "TokenDetails",
    "TokenScope",
    "log_in",
    "log_out",
    "who_am_i",
]

_SECRET = re.compile(r"[^\x00-\x1f\x7f]{1,8192}")
_TOKEN = re.compile(r"[\x21-\x7e]{1,8192}")
_IDENTITY_LIMIT = 4 << 20


class TokenScope(Document):
    """What a token may do at most, in one namespace or (`*`) in all that its user has a role in."""

    namespace: str = Field(description="a namespace, or * for all")
    action: str = Field(description="read, publish or own: each includes those before it")

    def __str__(self) -> str:
        return f"{self.namespace}:{self.action}"


class TokenDetails(Document):
    """What a server tells of the token that it was asked with."""

    name: str
    expires: str | None = Field(default=None, description="RFC 3339; null for never")
    scopes: list[TokenScope] | None = Field(default=None, description="null: all that the user may do")


class Membership(Document):
    """What a user may do in a namespace."""

    namespace: str
    role: str


class Identity(Document):
    """Who a server takes the user for."""

    user: str
    admin: bool = False
    token: TokenDetails | None = None
    namespaces: list[Membership] = Field(default=[])


class LoginReport(Document):
    """What `login` found and kept."""

    url: str
    user: str | None = Field(description="who the remote takes the user for; null where it does not tell")
    checked: bool = Field(description="whether the remote asked for the secret; where it asks nobody, it stays untried")
    kept: str = Field(description="where the secret is kept: the keyring, or a file")


class LogoutReport(Document):
    """What `logout` forgot."""

    url: str
    forgotten: bool = Field(description="false where nothing was kept")


def log_in(
    url: str, secret: Secret, network: Network, *, insecure: bool = False, kept: Credentials | None = None
) -> LoginReport:
    """Try a secret at a remote, and keep it for that remote.

    `insecure` lets it be sent without TLS. Raises UsageError for a remote that has no logins, InvalidArgument for what
    is no secret, NotAllowed where the remote does not take it, RemoteUnavailable.
    """
    address = _address(url)
    _check(secret, address)
    if not insecure:
        check_plain(address, "the secret")
    if address.scheme in ("http", "https"):
        user, checked = _try_on_the_web(address, secret, network)
    else:
        user, checked = secret.username, _try_at_registry(address, secret, network)
    where = (kept or Credentials()).keep(key_of(address), secret)
    return LoginReport(url=address.url, user=user, checked=checked, kept=where)


def log_out(url: str, *, kept: Credentials | None = None) -> LogoutReport:
    """Forget what is kept for a remote. Raises UsageError, NotAllowed."""
    address = _address(url)
    return LogoutReport(url=address.url, forgotten=(kept or Credentials()).forget(key_of(address)))


def who_am_i(url: str, network: Network, *, kept: Credentials | None = None) -> Identity:
    """Who a deltareg server takes the user for. Raises UsageError for another kind of remote, NotAllowed."""
    address = _address(url)
    if address.scheme not in ("http", "https"):
        raise UsageError(f"{address.url} is an OCI registry, which tells nobody who he is", hint="deltareg login")
    known = kept or Credentials()
    if server_secret(address, network, known) is None:
        raise NotSignedIn(f"you are not logged in at {address.url}", hint=f"deltareg login {address.url}")
    client = web_client(address, network, known)
    try:
        return _identity(client)
    except NotFound as error:
        raise UsageError(
            f"{address.url} is no deltareg server, which alone tells who you are", cause=error.cause
        ) from error
    finally:
        client.close()


def _try_on_the_web(address: Address, secret: Secret, network: Network) -> tuple[str | None, bool]:
    """Who the server takes the user for, and whether it asked for the secret at all."""
    client = HttpClient(address.base, network, authorization=authorization_of(secret), login=address.url)
    try:
        return _identity(client).user, True
    except NotFound:
        # No deltareg server: a mirror that lets not everybody in.
        try:
            client.ask("GET", "oci-layout")
        except NotFound as error:
            raise RemoteUnavailable(
                f"there is neither a deltareg server nor a static mirror at {address.url}",
                cause=error.message,
                hint=f"check the URL; an OCI registry is written oci://{address.host}{address.path}",
            ) from error
        return secret.username, _refuses_strangers(address, network, "oci-layout")
    finally:
        client.close()


def _try_at_registry(address: Address, secret: Secret, network: Network) -> bool:
    asked: list[bool] = []

    def given() -> Secret:
        asked.append(True)
        return secret

    authorization = RegistryAuthorization(address, network, given)
    client = HttpClient(address.origin, network, authorization=authorization, login=address.url)
    try:
        OciClient(client).ping()
    finally:
        client.close()
    return bool(asked)


def _refuses_strangers(address: Address, network: Network, path: str) -> bool:
    client = HttpClient(address.base, network, login=address.url)
    try:
        client.ask("GET", path)
    except NotAllowed:
        return True
    finally:
        client.close()
    return False


def _identity(client: HttpClient) -> Identity:
    """Raises NotFound where nothing of the kind answers."""
    answer = client.ask("GET", "api/v1/whoami", limit=_IDENTITY_LIMIT)
    try:
        return parse(Identity, answer.body, what=shown(answer.url))
    except BadManifest as error:
        raise NotFound(f"{shown(answer.url)} is not what a deltareg server says", cause=error.cause) from error


def _address(url: str) -> Address:
    if "://" not in url:
        raise UsageError(f"{url!r} is no URL", hint=f"write https://{shown(url)} or oci://{shown(url)}")
    if url.partition("://")[0].lower() not in ("http", "https", "oci", "oci+http"):
        raise UsageError(
            f"remotes at {shown(url)} have no logins",
            hint="for buckets and the Hub their own variables count; see docs/remotes.md",
        )
    return parse_address(url)


def _check(secret: Secret, address: Address) -> None:
    form = _SECRET if secret.username is not None else _TOKEN
    if form.fullmatch(secret.password) is None:
        raise InvalidArgument("that is no token" if secret.username is None else "that is no password")
    name = secret.username
    if name is not None and (not name or ":" in name or not name.isprintable()):
        raise InvalidArgument("that is no user name", cause="it has a colon or what cannot be printed")
    if secret.username is None and address.scheme not in ("http", "https"):
        raise UsageError(
            f"{address.url} is an OCI registry, which takes a user name and a password",
            hint=f"deltareg login {address.url} --username NAME",
        )
