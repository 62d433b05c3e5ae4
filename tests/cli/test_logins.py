"""`login`, `logout`, `whoami`, and what goes over the network: remotes by URL, limits, and whom a token is sent to."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltareg_registry.access.principal import Scope
from tests.cli.program import Workplace
from tests.remote.site import Asked, Site, say, serve_site
from tests.servers.deltareg_server import running_server
from tests.servers.docker_registry import DockerRegistry, serve_docker_registry

TOKEN = "a-token-that-nobody-may-see"
DELTA = "acme/search:1.0.0"
IDENTITY = {
    "user": "ann",
    "admin": True,
    "token": {
        "name": "laptop",
        "expires": "2027-03-01T00:00:00Z",
        "scopes": [{"namespace": "acme", "action": "publish"}],
    },
    "namespaces": [{"namespace": "acme", "role": "owner"}],
}


@pytest.fixture
def site() -> Iterator[Site]:
    """What a deltareg server says of who asks."""

    def answer(asked: Asked, before: int) -> None:
        if asked.path == "/api/v1":
            say(asked, 200, {"registry": "deltareg", "apiVersion": 1})
        elif asked.path == "/api/v1/whoami" and asked.headers.get("authorization") == f"Bearer {TOKEN}":
            say(asked, 200, IDENTITY)
        else:
            say(asked, 401)

    with serve_site(answer) as running:
        yield running


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with serve_docker_registry() as running:
        yield running


@pytest.fixture
def person(stocked: Workplace) -> Workplace:
    """A user whose configuration and state lie in the place where he works, and who has no keyring."""
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "HOME"):
        stocked.environment[name] = str(stocked.root / name.lower())
    stocked.environment["PYTHON_KEYRING_BACKEND"] = "keyring.backends.null.Keyring"
    return stocked


def log_in(person: Workplace, url: str, secret: str, *more: str) -> str:
    before, sys.stdin = sys.stdin, io.StringIO(f"{secret}\n")
    try:
        done = person.run("login", url, "--token-stdin", *more)
    finally:
        sys.stdin = before
    assert TOKEN not in done.out + done.err
    return f"{done.status} {done.out}{done.err}"


def tokens(site: Site) -> list[str | None]:
    return [asked.headers.get("authorization") for asked in site.requests]


def test_server_of_a_team_takes_a_login(person: Workplace, tmp_path: Path) -> None:
    with running_server(tmp_path / "server") as server:
        told = log_in(person, server.url, server.token)
        assert told.startswith(f"0 logged in at {server.url} as owner"), told
        done = person.ok("whoami", "--remote", server.url)
        assert re.search(r"user +owner \(admin\)", done.out) and re.search(r"scopes +all", done.out)
        with server.client() as client:
            assert client.post("/api/v1/namespaces", json={"name": "acme"}).status_code == 201
        limited = server.user("paul", scopes=[Scope(namespace="acme", action="publish")], acme="owner")
        assert log_in(person, server.url, limited).startswith("0 ")
        done = person.ok("whoami", "--remote", server.url)
        assert re.search(r"scopes +acme:publish", done.out) and re.search(r"acme +\w+", done.out)
        token = person.ok("whoami", "--remote", server.url, "--json").document("whoami")["token"]
        assert token["scopes"] == [{"namespace": "acme", "action": "publish"}]
        told = log_in(person, f"{server.url}/elsewhere", server.token).replace("\n", " ")
        assert told.startswith("6 error[DR0500]: there is neither a deltareg server nor a static mirror"), told


def test_token_is_tried_kept_used_and_forgotten(person: Workplace, site: Site) -> None:
    assert log_in(person, site.url, "wrong").startswith("4 ")
    assert "deltareg login" in person.run("whoami", "--remote", site.url).err
    told = log_in(person, site.url, TOKEN)
    assert re.search(rf"0 logged in at {site.url} as ann; kept in .*credentials\.json", told.replace("\n", " "))
    done = person.ok("whoami", "--remote", site.url)
    assert re.search(r"user +ann \(admin\)", done.out)
    assert re.search(r"acme +owner", done.out)
    assert person.ok("whoami", "--remote", site.url, "--json").document("whoami")["namespaces"][0]["role"] == "owner"
    assert person.ok("logout", site.url, "--json").document("logout")["forgotten"]
    assert "nothing was kept" in person.ok("logout", site.url).out
    assert person.run("whoami", "--remote", site.url).status == 4


def test_login_takes_the_name_of_a_remote(person: Workplace, site: Site) -> None:
    person.ok("remote", "add", "team", site.url)
    assert log_in(person, "team", TOKEN).startswith("0 ")
    assert "ann" in person.ok("whoami").out


@pytest.mark.parametrize("url", ["deltas.acme.org/x", "s3://bucket/x", "https://ann:secret@host/", "/mnt/share"])
def test_what_takes_no_login_is_told(person: Workplace, url: str) -> None:
    told = log_in(person, url, "token")
    assert told.startswith("2 ")
    assert "secret@" not in told


def test_nothing_is_asked_where_there_is_no_terminal(person: Workplace, site: Site) -> None:
    done = person.run("login", site.url)
    assert done.status == 2
    assert "--token-stdin" in done.err
    assert log_in(person, site.url, "").startswith("2 ")
    assert site.requests == []


def test_token_of_the_environment_goes_to_the_remote_that_is_named(person: Workplace, site: Site) -> None:
    person.environment["DELTAREG_TOKEN"] = TOKEN
    assert "ann" in person.ok("whoami", "--remote", site.url).out
    person.environment["DELTAREG_REMOTE"] = site.url
    assert "ann" in person.ok("whoami").out


def test_token_of_the_environment_does_not_go_where_a_project_sends_it(person: Workplace, site: Site) -> None:
    person.environment["DELTAREG_TOKEN"] = TOKEN
    (person.directory / "deltareg.toml").write_text(f'remote = "theirs"\n[remotes.theirs]\nurl = "{site.url}"\n')
    assert person.run("list", "--remote", "theirs").status != 0
    assert f"Bearer {TOKEN}" in tokens(site)
    site.requests.clear()
    for command in (("push", DELTA), ("pull", "acme/x"), ("whoami",)):
        assert person.run(*command).status != 0
    assert site.requests
    assert set(tokens(site)) == {None}
    assert "goes nowhere by default" in person.run("doctor").out


def test_token_of_the_environment_goes_to_the_users_own_default(person: Workplace, site: Site) -> None:
    person.environment["DELTAREG_TOKEN"] = TOKEN
    person.ok("remote", "add", "mine", site.url, "--default")
    assert "ann" in person.ok("whoami").out
    (person.directory / "deltareg.toml").write_text('[remotes.mine]\nurl = "http://127.0.0.1:9"\n')
    assert person.run("whoami").status == 4


def test_delta_travels_by_way_of_a_registry_of_containers(person: Workplace, registry: DockerRegistry) -> None:
    url = f"oci+http://{registry.host}/travels"
    person.ok("remote", "add", "team", url, "--default")
    person.ok("push", DELTA)
    assert DELTA in person.ok("list", "--remote", "team").out
    person.environment["DELTAREG_HOME"] = str(person.root / "theirs")
    assert person.ok("pull", "acme/search", "--json").document("transfer")["reference"] == DELTA
    person.ok("yank", DELTA, "--reason", "wrong", "--remote", "team")
    assert "wrong" in person.ok("pull", DELTA).err
    assert "answers" in person.run("doctor").out


def test_limit_of_the_rate_is_kept(person: Workplace, registry: DockerRegistry) -> None:
    url = f"oci+http://{registry.host}/limited"
    size = person.ok("push", DELTA, "--remote", url, "--dry-run", "--json").document("transfer")["bytes"]
    begun = time.monotonic()
    person.ok("push", DELTA, "--remote", url, "--limit-rate", f"{size}B/s")
    assert time.monotonic() - begun > 0.8
    person.environment["DELTAREG_BANDWIDTH"] = "fast"
    assert "DELTAREG_BANDWIDTH" in person.run("pull", DELTA, "--remote", url).err
    del person.environment["DELTAREG_BANDWIDTH"]
    assert person.run("pull", DELTA, "--remote", url, "--limit-rate", "0").status == 2


def test_url_with_a_password_is_neither_taken_nor_shown(person: Workplace) -> None:
    done = person.run("remote", "add", "team", "https://ann:hidden@deltas.acme.org")
    assert done.status == 2
    assert "hidden" not in done.out + done.err
    assert "deltareg login https://deltas.acme.org" in done.err
    assert "no remote is set up" in person.ok("remote", "list").err
