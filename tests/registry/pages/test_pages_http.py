"""All pages by HTTP: to whom they are shown, with which headers, and what they do with texts that mean harm."""

from __future__ import annotations

import gc
import re
import socket
import warnings
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from deltareg_registry.access.policy import PAGES
from deltareg_registry.authorise import COOKIE
from deltareg_registry.pages.forms import local_path
from deltareg_registry.settings import ServerSettings
from tests.registry.pages.reading import READ, Reader, csrf, visiting
from tests.registry.pages.world import FIRST, PRIVATE
from tests.servers.deltareg_server import RunningServer, running_server


@pytest.mark.parametrize("path", READ)
def test_pages_forbid_all_that_they_do_not_need(shown: RunningServer, path: str) -> None:
    with visiting(shown, shown.token) as client:
        headers = client.get(path).headers
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "base-uri 'none'" in policy
    assert "unsafe" not in policy and "*" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", READ)
def test_pages_are_sound_and_can_be_read_with_any_device(shown: RunningServer, path: str) -> None:
    with visiting(shown, shown.token) as client:
        page = Reader(client.get(path).text)
    assert page.open == []
    assert [attributes["lang"] for attributes in page.named("html")] == ["en"]
    for once in ("main", "header", "footer", "h1"):
        assert len(page.named(once)) == 1, once
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes.get("for") for attributes in page.named("label")}
    for attributes in page.named("input", "select", "textarea"):
        assert attributes.get("type") == "hidden" or attributes.get("id") in labelled, attributes
    for _, attributes in page.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((attributes.get(name) or "").split()) <= set(ids), attributes
        # The policy would not let them work.
        assert not [name for name in attributes if name == "style" or name.startswith("on")], attributes
    assert len(page.named("table")) == len(page.named("caption"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.named("th"))
    for attributes in page.named("svg"):
        assert attributes["role"] == "img" and attributes.get("aria-labelledby")


@pytest.mark.parametrize("path", ["/", "/?yanked=1", "/d/acme/hostile", "/d/acme/shark?version=1.2.0", "/d/acme/shark"])
def test_texts_that_mean_harm_stay_texts(shown: RunningServer, path: str) -> None:
    with visiting(shown, shown.token) as client:
        text = client.get(path).text
    assert "&lt;script&gt;document.title" in text and "{{ 7 * 7 }}" in text
    page = Reader(text)
    assert [attributes.get("src", "").split("?")[0] for attributes in page.named("script")] == ["/static/copy.js"]  # type: ignore[union-attr]
    assert page.named("img") == []


@pytest.mark.parametrize(
    "path",
    [
        "/?text={}",
        "/?base={}&model_type={}",
        "/?cursor={}",
        "/compare?first={}&second={}",
        "/d/acme/shark?version={}",
        "/d/acme/{}",
        "/n/{}",
        "/fits?delta={}",
        "/sign-in?following={}",
        "/audit?actor={}",
        "/{}",
    ],
)
def test_what_an_address_brings_along_stays_text(shown: RunningServer, path: str) -> None:
    harm = "%22%27%3E%3Cscript%3Ealert(1)%3C/script%3E"
    with visiting(shown, shown.token) as client:
        answer = client.get(path.replace("{}", harm))
    assert answer.status_code < 500 and "<script>alert" not in answer.text
    assert Reader(answer.text).open == []


def test_anybody_sees_what_is_public_and_nothing_else(shown: RunningServer) -> None:
    with visiting(shown) as client:
        listed = client.get("/").text
        assert "acme/<wbr>shark:1.<wbr>0.<wbr>0" in listed and "secret" not in listed
        assert "secret" not in client.get("/n").text
        hidden = client.get("/d/secret/plan")
        assert hidden.status_code == 401 and 'name="token"' in hidden.text
        assert client.get("/d/nowhere/plan").status_code == 401, "nobody is told which namespaces there are"
        assert 'id="members"' not in client.get("/n/acme").text
        assert client.get(f"/compare?first={FIRST}&second={PRIVATE}").status_code == 404
        assert client.get("/tokens").status_code == 401
    with visiting(shown, shown.user("rolf", secret="reader")) as client:
        assert "secret/<wbr>plan" in client.get("/").text
        page = client.get("/n/secret").text
        assert 'id="members"' in page and 'id="webhooks"' not in page
        refused = client.get("/audit")
        assert refused.status_code == 403 and "Signed in as <strong>rolf</strong>" in refused.text


def test_errors_are_pages_for_browsers_and_problems_for_programs(shown: RunningServer) -> None:
    with visiting(shown, shown.token) as client:
        missing = client.get("/d/acme/nothing")
        assert (missing.status_code, "<h1>Not Found</h1>" in missing.text) == (404, True)
        assert "is not in the registry" in missing.text
        assert client.get("/?order=sideways").status_code == 400
        assert "<h1>Bad Request</h1>" in client.get("/?fingerprint=abc").text
        assert client.post("/").status_code == 405
        assert client.get("/api/v1/nothing").headers["Content-Type"] == "application/problem+json"
        assert client.get("/d/acme/nothing", headers={"Accept": "*/*"}).json()["code"] == "DR0002"
    with visiting(shown) as client:
        asked = client.get("/tokens?x=1")
        assert asked.headers["WWW-Authenticate"].startswith("Bearer"), "browsers ask for a password where it is Basic"
        assert 'name="following" value="/tokens?x=1"' in asked.text


def test_files_of_a_form_are_closed_once_it_is_answered(server: RunningServer) -> None:
    large = {"config": ("config.json", b" " * (2 << 20))}  # so much is kept in a file of its own
    with warnings.catch_warnings(record=True) as told, visiting(server, server.token) as client:
        warnings.simplefilter("always", ResourceWarning)
        assert client.post("/fits", files=large).status_code == 403, "it comes without the secret"
        assert client.post("/fits", files=large, data={"csrf": csrf(client.get("/fits").text)}).status_code == 422
        gc.collect()
    assert [str(one.message) for one in told if "unclosed file" in str(one.message).lower()] == []


def test_cookie_is_given_for_a_good_token_and_taken_back(shown: RunningServer) -> None:
    with visiting(shown) as client:
        refused = client.post("/sign-in", data={"token": "drt_wrong", "following": "/n"})
        assert refused.status_code == 401 and COOKIE not in client.cookies and 'role="alert"' in refused.text
        assert client.post("/sign-in", data={"token": "drt_ä\n"}).status_code == 401
        done = client.post("/sign-in", data={"token": f" {shown.token} ", "following": "/n/acme"})
        assert (done.status_code, done.headers["Location"]) == (303, "/n/acme")
        told = done.headers["Set-Cookie"]
        assert "HttpOnly" in told and "SameSite=strict" in told and "Path=/" in told and "Secure" not in told
        page = client.get("/").text
        assert "Signed in as <strong>owner</strong>" in page
        out = client.post("/sign-out", data={"csrf": csrf(page)})
        assert out.status_code == 303 and COOKIE not in client.cookies
        assert "Sign in</a>" in client.get("/").text


def test_cookie_is_for_https_alone_where_the_registry_is_behind_it(tmp_path: Path) -> None:
    settings = ServerSettings(data=tmp_path, url="https://deltas.example.org")
    with running_server(tmp_path / "server", settings) as server, visiting(server) as client:
        done = client.post("/sign-in", data={"token": server.token}, headers={"Origin": "https://deltas.example.org"})
        assert "Secure" in done.headers["Set-Cookie"]
        assert "https://deltas.example.org" in client.get("/sign-in").text


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ("/n/acme?x=1", "/n/acme?x=1"),
        ("//evil.example/", "/"),
        ("/\\evil.example/", "/"),
        ("https://evil.example/", "/"),
        ("/\t/evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("", "/"),
        (None, "/"),
    ],
)
def test_signing_in_leads_on_to_this_server_alone(asked: str | None, allowed: str) -> None:
    assert local_path(asked) == allowed


def test_cookie_counts_for_pages_and_for_nothing_else(shown: RunningServer) -> None:
    with visiting(shown, shown.token) as client:
        assert client.get("/tokens").status_code == 200
        assert client.get("/api/v1/whoami").status_code == 401
        assert client.get("/api/v1/deltas/secret/plan").status_code == 401
        assert client.get("/v2/secret/plan/tags/list").status_code == 401
        assert client.post("/api/v1/tokens", json={"name": "stolen"}).status_code == 401


def test_cookie_of_a_token_that_ended_makes_one_a_stranger(shown: RunningServer) -> None:
    with visiting(shown, "drt_ended") as client:
        assert client.get("/").status_code == 200
        assert client.get("/d/acme/shark").status_code == 200
        assert client.get("/tokens").status_code == 401
        assert client.post("/sign-in", data={"token": shown.token}).status_code == 303


POSTED = sorted(route.removeprefix("POST ") for route in PAGES if route.startswith("POST ") and "sign-in" not in route)


@pytest.mark.parametrize("path", POSTED)
def test_forms_of_other_sites_are_refused(shown: RunningServer, path: str) -> None:
    place = path.format(namespace="acme", name="shark", version="1.0.0", webhook="0" * 16, token="0" * 16)
    other = csrf_of_another(shown)
    for sent, headers in (
        ({}, {}),
        ({"csrf": "0" * 64}, {}),
        ({"csrf": "ä"}, {}),
        ({"csrf": other}, {}),
    ):
        with visiting(shown, shown.token) as client:
            answer = client.post(place, data=sent, headers=headers)
            assert answer.status_code == 403 and "before you signed in" in answer.text, sent
    with visiting(shown, shown.token) as client:
        good = {"csrf": csrf(client.get("/").text)}
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://x.org"}):
            answer = client.post(place, data=good, headers=headers)
            assert answer.status_code == 403 and "another site" in answer.text, headers
        with visiting(shown) as stranger:
            assert stranger.post("/sign-in", data={}, headers={"Origin": "https://x.org"}).status_code == 403


def csrf_of_another(shown: RunningServer) -> str:
    with visiting(shown, shown.user("rolf", secret="reader")) as client:
        return csrf(client.get("/").text)


def test_forms_have_an_end(shown: RunningServer) -> None:
    with visiting(shown, shown.token) as client:
        # The server may hang up before all was sent.
        with suppress(httpx2.WriteError):
            assert client.post("/tokens", data={"name": "x" * 400_000}).status_code == 413
        fields = {f"field{number}": "1" for number in range(300)}
        assert client.post("/tokens", data=fields).status_code == 400
        answer = client.post("/tokens", data={"csrf": csrf(client.get("/").text), "name": "", "days": "soon"})
        assert answer.status_code == 400 and "not a whole number" in answer.text


def test_forms_that_come_too_slowly_are_not_waited_for(tmp_path: Path) -> None:
    with running_server(tmp_path, ServerSettings(data=tmp_path, body_seconds=0.5)) as server:
        parts = urlsplit(server.url)
        head = ["POST /sign-in HTTP/1.1", f"Host: {parts.netloc}", "Accept: text/html", "Content-Length: 50"]
        head.append("Content-Type: application/x-www-form-urlencoded")
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as connection:
            connection.sendall("\r\n".join([*head, "", "token=drt"]).encode())
            received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 408 ") and b"<h1>Request Timeout</h1>" in received


def test_files_of_the_pages_are_kept_by_browsers_until_they_change(shown: RunningServer) -> None:
    with visiting(shown) as client:
        page = Reader(client.get("/").text)
        style = next(one["href"] for one in page.named("link") if one["rel"] == "stylesheet")
        assert style is not None
        answer = client.get(style)
        assert "immutable" in answer.headers["Cache-Control"] and answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Type"].startswith("text/css")
        assert client.get(urlsplit(style).path).headers["Cache-Control"] == "no-cache"
        assert client.get("/static/page.py").status_code == 404
        assert client.get("/static/..%2fforms.py").status_code == 404
