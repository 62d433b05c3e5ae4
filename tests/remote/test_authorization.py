"""How registries are told who asks: docker's tokens, and what is sent to whom on the way to one."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import pytest
import stamina

from deltareg.errors import BadManifest, NotAllowed, RemoteUnavailable
from deltareg.remote.authorization import RegistryAuthorization, challenge_of
from deltareg.remote.credentials import Secret
from deltareg.remote.http import HttpClient
from deltareg.remote.network import Network, parse_address
from tests.remote.site import IMPATIENT, Asked, Site, say, serve_site

SECRET = Secret("a-password-that-nobody-may-see", "ann")
SCOPE = "repository:deltas/acme/search:pull"


@dataclass
class Clock:
    """A clock that stands until it is moved."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Closed:
    """A registry that wants tokens of a service: `realm` may be set to send users elsewhere."""

    service: Site
    realm: str
    registry: Site | None = None
    valid: set[str] = field(default_factory=set)

    def answer(self, asked: Asked, before: int) -> None:
        token = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if token in self.valid:
            say(asked, 200, b"here")
            return
        challenge = f'Bearer realm="{self.realm}",service="registry",scope="{SCOPE}"'
        say(asked, 401, {"errors": [{"code": "UNAUTHORIZED"}]}, {"WWW-Authenticate": challenge})


@contextmanager
def closed_registry(give: Callable[[Asked, int], None] | None = None) -> Iterator[Closed]:
    def token(asked: Asked, before: int) -> None:
        name = f"token-{before}"
        closed.valid.add(name)
        say(asked, 200, {"token": name, "expires_in": 300})

    with serve_site(give or token) as service:
        closed = Closed(service, f"{service.url}/token")
        with serve_site(closed.answer) as registry:
            closed.registry = registry
            yield closed


def client(closed: Closed, secret: Secret | None = SECRET, clock: Clock | None = None) -> HttpClient:
    assert closed.registry is not None
    address = parse_address(closed.registry.url.replace("http:", "oci+http:"))
    network: Network = IMPATIENT
    authorization = RegistryAuthorization(address, network, lambda: secret, clock=clock or Clock())
    return HttpClient(address.origin, network, authorization=authorization, login=address.url)


def test_token_is_got_once_and_used_for_its_scope() -> None:
    with closed_registry() as closed:
        http = client(closed)
        for _ in range(3):
            assert http.ask("GET", "x", scope=SCOPE).body == b"here"
        (asked,) = closed.service.requests
        assert parse_qs(urlsplit(asked.path).query) == {"service": ["registry"], "scope": [SCOPE], "account": ["ann"]}
        assert asked.headers["authorization"] == _basic("ann", SECRET.password)
        assert closed.registry is not None
        assert all("Basic" not in one.headers.get("authorization", "") for one in closed.registry.requests)
        http.ask("GET", "x", scope="repository:other:pull")
        assert len(closed.service.requests) == 2


def test_token_is_got_anew_before_it_is_too_old_and_when_it_is_refused() -> None:
    with closed_registry() as closed:
        clock = Clock()
        http = client(closed, clock=clock)
        http.ask("GET", "x", scope=SCOPE)
        clock.now = 299
        http.ask("GET", "x", scope=SCOPE)
        assert len(closed.service.requests) == 2
        closed.valid.clear()
        http.ask("GET", "x", scope=SCOPE)
        assert len(closed.service.requests) == 3


def test_stranger_asks_for_a_token_without_a_name() -> None:
    with closed_registry() as closed:
        assert client(closed, None).ask("GET", "x", scope=SCOPE).body == b"here"
        assert "authorization" not in closed.service.requests[0].headers


def test_identity_token_is_sent_in_a_form_and_not_along_a_redirect() -> None:
    with closed_registry() as closed:
        client(closed, Secret("refresh", identity=True)).ask("GET", "x", scope=SCOPE)
        (asked,) = closed.service.requests
        form = parse_qs(asked.body.decode())
        assert (asked.method, form["refresh_token"], form["scope"]) == ("POST", ["refresh"], [SCOPE])
    with (
        serve_site(lambda asked, before: say(asked, 200, {"token": "x"})) as elsewhere,
        closed_registry(lambda asked, before: say(asked, 307, headers={"Location": elsewhere.url})) as closed,
    ):
        with pytest.raises(RemoteUnavailable, match="gave no token"):
            client(closed, Secret("refresh", identity=True)).ask("GET", "x", scope=SCOPE)
        assert elsewhere.requests == []


def test_wrong_password_is_told_with_the_way_to_log_in() -> None:
    with closed_registry(lambda asked, before: say(asked, 401)) as closed:
        with pytest.raises(NotAllowed) as raised:
            client(closed).ask("GET", "x", scope=SCOPE)
        assert "deltareg login oci+http://127.0.0.1" in (raised.value.hint or "")
        assert SECRET.password not in str(raised.value.as_dict())


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"token": 7}', b'{"token": ""}', b'{"token": "a\\nb"}', b'{"token": "\\u00e4"}']
)
def test_service_that_gives_no_token_is_told(body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    with closed_registry(lambda asked, before: say(asked, 200, body, headers)) as closed, pytest.raises(Exception) as r:
        client(closed).ask("GET", "x", scope=SCOPE)
    assert type(r.value).__name__ in ("RemoteUnavailable", "BadManifest")


@pytest.mark.parametrize("realm", ["http://evil.example/token", "ftp://host", "/token", "http://a:b@127.0.0.1/x", ""])
def test_registry_with_tls_cannot_send_a_password_where_others_listen(realm: str) -> None:
    address = parse_address("oci://registry.acme.org")
    authorization = RegistryAuthorization(address, IMPATIENT, lambda: SECRET)
    challenges = [f'Bearer realm="{realm}",service="x"']
    if realm:
        with pytest.raises(NotAllowed, match="sends its users to"):
            authorization.challenged(challenges, SCOPE, None)
    else:
        assert not authorization.challenged(challenges, SCOPE, None)


@pytest.mark.parametrize("realm", ["http://evil.example/token", "http://127.०.०.१/token"])
def test_registry_on_this_machine_cannot_send_a_password_where_others_listen(realm: str) -> None:
    authorization = RegistryAuthorization(parse_address("oci+http://localhost:5000"), IMPATIENT, lambda: SECRET)
    with pytest.raises(NotAllowed, match="sends its users to"):
        authorization.challenged([f'Bearer realm="{realm}"'], SCOPE, None)


def test_token_that_lives_absurdly_long_is_taken() -> None:
    body = f'{{"token": "t", "expires_in": 1{"0" * 400}}}'.encode()
    with closed_registry(lambda asked, before: say(asked, 200, body)) as closed:
        closed.valid.add("t")
        assert client(closed).ask("GET", "x", scope=SCOPE).status == 200


@pytest.mark.parametrize("lives", ["1e999", "-1e999", "NaN"])
def test_token_that_lives_for_no_number_of_seconds_is_refused(lives: str) -> None:
    body = f'{{"token": "t", "expires_in": {lives}}}'.encode()
    with closed_registry(lambda asked, before: say(asked, 200, body)) as closed, pytest.raises(BadManifest):
        client(closed).ask("GET", "x", scope=SCOPE)


def test_registry_that_never_is_content_is_asked_twice() -> None:
    with closed_registry(lambda asked, before: say(asked, 200, {"token": "refused"})) as closed:
        with stamina.set_testing(True, attempts=2), pytest.raises(NotAllowed):
            client(closed).ask("GET", "x", scope=SCOPE)
        assert closed.registry is not None
        told = [asked.headers.get("authorization") for asked in closed.registry.requests]
        assert told == [None, "Bearer refused"]


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (['Basic realm="a b"'], ("basic", "", "")),
        (["basic"], ("basic", "", "")),
        (['Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"'], ("bearer", "https://a/t", "s")),
        (["Bearer realm=https://a/t , service=s"], ("bearer", "https://a/t", "s")),
        (['Basic realm="r", Bearer realm="https://a/t",service="s"'], ("bearer", "https://a/t", "s")),
        (['Basic realm="r"', 'Bearer realm="https://a/t"'], ("bearer", "https://a/t", "")),
        (['Bearer realm="https://a/\\"t"'], ("bearer", 'https://a/"t', "")),
    ],
)
def test_challenges_are_read_however_they_are_written(texts: list[str], found: tuple[str, str, str]) -> None:
    challenge = challenge_of(texts)
    assert challenge is not None
    assert (challenge.scheme, challenge.realm, challenge.service) == found


@pytest.mark.parametrize("text", ["", "Digest realm=x", "Bearer", "Bearer service=x", "Bearer " + "a=b," * 5000])
def test_challenge_that_cannot_be_met_is_none(text: str) -> None:
    assert challenge_of([text]) is None


def _basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
