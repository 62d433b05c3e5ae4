"""How a server is told who asks: a token as it is, a name with a password, or docker's tokens for a scope."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlencode

from deltareg.errors import NotAllowed, RemoteUnavailable
from deltareg.remote.credentials import Secret
from deltareg.remote.http import HttpClient
from deltareg.remote.network import Address, Network, is_loopback, origin_of, shown

__all__ = ["Basic", "BearerToken", "RegistryAuthorization", "challenge_of"]

_PARAMETER = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9-]{0,31})[ \t]+)?(?P<key>[A-Za-z0-9_-]{1,32})[ \t]*=[ \t]*"
    r'(?:"(?P<quoted>(?:[^"\\]|\\.){0,2048})"|(?P<plain>[^\s,"]{0,2048}))[ \t]*(?:,[ \t]*|$)'
)
_CLIENT = "deltareg"
_SHORTEST = 60
"""Seconds that a token lives where nobody says for how long."""
_LONGEST = 86400
_EARLY = 5
_LONGEST_TOKEN = 64 << 10


class BearerToken:
    """One token for all."""

    def __init__(self, token: str) -> None:
        self._token = token

    def header(self, scope: str) -> str | None:
        """The token."""
        return f"Bearer {self._token}"

    def challenged(self, challenges: list[str], scope: str, sent: str | None) -> bool:
        """There is no other one."""
        return False

    def conceal(self, text: str) -> str:
        """The text without the token."""
        return text.replace(self._token, "…")


class Basic:
    """A user name and a password."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret
        packed = base64.b64encode(f"{secret.username or _CLIENT}:{secret.password}".encode()).decode()
        self._header = f"Basic {packed}"

    def header(self, scope: str) -> str | None:
        """Both, packed."""
        return self._header

    def challenged(self, challenges: list[str], scope: str, sent: str | None) -> bool:
        """There is nothing else to say."""
        return False

    def conceal(self, text: str) -> str:
        """The text without the password."""
        return text.replace(self._secret.password, "…").replace(self._header[6:], "…")


@dataclass(frozen=True)
class _Challenge:
    """What a registry asks for: `scheme` is basic or bearer."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


@dataclass(frozen=True)
class _Token:
    value: str
    until: float


class RegistryAuthorization:
    """An OCI registry: it is asked without a name first, and answers how it wants to be told.

    `find` looks up the secret, once, and not before a registry asks for it.
    """

    def __init__(
        self,
        address: Address,
        network: Network,
        find: Callable[[], Secret | None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._network = network
        self._find = find
        self._clock = clock
        self._lock = threading.RLock()
        self._secret: Secret | None = None
        self._asked = False
        self._challenge: _Challenge | None = None
        self._tokens: dict[str, _Token] = {}

    def header(self, scope: str) -> str | None:
        """What the registry asked for last time: name and password, or a token, fetched anew where it is too old."""
        with self._lock:
            if self._challenge is None:
                return None
            if self._challenge.scheme == "basic":
                secret = self._known()
                return None if secret is None else Basic(secret).header(scope)
            token = self._tokens.get(scope)
            if token is None or token.until <= self._clock():
                token = self._fetch(self._challenge, scope)
            return f"Bearer {token.value}"

    def challenged(self, challenges: list[str], scope: str, sent: str | None) -> bool:
        """Learn what the registry asks for; whether it can be given."""
        found = challenge_of(challenges)
        if found is None:
            return False
        with self._lock:
            if self._challenge is not None and self.header(scope) != sent:
                return True  # another thread has learnt it meanwhile
            self._tokens.pop(scope, None)
            self._challenge = found
            if found.scheme == "basic":
                return self.header(scope) not in (None, sent)
            self._tokens[scope] = self._fetch(found, found.scope or scope)
            return True

    def conceal(self, text: str) -> str:
        """The text without the secret and the tokens."""
        with self._lock:
            hidden = [token.value for token in self._tokens.values()]
            if self._secret is not None:
                text = Basic(self._secret).conceal(text)
        for secret in filter(None, hidden):
            text = text.replace(secret, "…")
        return text

    def _known(self) -> Secret | None:
        if not self._asked:
            self._secret = self._find()
            self._asked = True
        return self._secret

    def _fetch(self, challenge: _Challenge, scope: str) -> _Token:
        """A token of the service that the registry trusts. Raises NotAllowed, RemoteUnavailable."""
        secret = self._known()
        login = self._address.url
        self._check_realm(challenge.realm)
        scopes = [("scope", one) for one in scope.split(" ") if one]
        asked = [("service", challenge.service), *scopes] if challenge.service else scopes
        identity = secret is not None and secret.identity
        basic = Basic(secret) if secret is not None and not identity else None
        client = HttpClient(challenge.realm, self._network, authorization=basic, login=login)
        try:
            if secret is not None and identity:
                form = [*asked, ("client_id", _CLIENT), ("grant_type", "refresh_token")]
                answer = client.ask(
                    "POST",
                    challenge.realm,
                    body=urlencode([*form, ("refresh_token", secret.password)]).encode(),
                    headers={"Content-Type": "application/x-www-form-urlencoded"},
                    repeatable=True,
                    accept=(307, 308),  # a form with a token in it is not sent on
                )
            else:
                query = urlencode([*asked, *([("account", secret.username)] if secret and secret.username else [])])
                answer = client.ask("GET", f"{challenge.realm}{'&' if '?' in challenge.realm else '?'}{query}")
        finally:
            client.close()
        return self._token_in(answer.json() if answer.status < 300 else None, shown(challenge.realm))

    def _token_in(self, document: Any, place: str) -> _Token:
        fields = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
        value = fields.get("token") or fields.get("access_token")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable() or len(value) > _LONGEST_TOKEN:
            raise RemoteUnavailable(f"{place} gave no token", hint="ask the owner of the registry to check it")
        lives = fields.get("expires_in")
        seconds = lives if isinstance(lives, (int, float)) and not isinstance(lives, bool) else _SHORTEST
        return _Token(value, self._clock() + min(max(seconds, _SHORTEST), _LONGEST) - _EARLY)

    def _check_realm(self, realm: str) -> None:
        try:
            origin = origin_of(realm)
        except ValueError:
            origin = ""
        # A secret for a registry on this machine was never meant to leave it without TLS.
        plain = self._address.origin.startswith("http:") and not is_loopback(self._address.origin)
        secure = origin.startswith("https:") or is_loopback(origin) or plain
        if not origin or "@" in realm.partition("?")[0] or not secure:
            raise NotAllowed(
                f"{self._address.url} sends its users to {shown(realm)!r} for a token, where none is asked for",
                cause="it is no https:// URL, so that everybody on the way could read the password",
                hint="ask the owner of the registry to mend its realm",
            )


def challenge_of(challenges: list[str]) -> _Challenge | None:
    """What values of `WWW-Authenticate` ask for, of what can be given; tokens go before passwords."""
    found: dict[str, dict[str, str]] = {}
    for text in challenges[:8]:
        scheme = text.strip().partition(" ")[0].lower()
        found.setdefault(scheme, {})
        for part in _PARAMETER.finditer(text[:8192]):
            scheme = (part["scheme"] or scheme).lower()
            value = part["plain"] if part["quoted"] is None else re.sub(r"\\(.)", r"\1", part["quoted"])
            found.setdefault(scheme, {}).setdefault(part["key"].lower(), value)
    bearer = found.get("bearer", {})
    if bearer.get("realm"):
        return _Challenge("bearer", bearer["realm"], bearer.get("service", ""), bearer.get("scope", ""))
    return _Challenge("basic") if "basic" in found else None
