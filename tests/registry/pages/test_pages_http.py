"""The pages by HTTP: what they say, to whom, with which headers, and what they do with texts that mean harm."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from deltareg import Registry
from deltareg.digest import sha256
from deltareg.manifest import INVENTORY_TYPE
from deltareg_registry.access.policy import PAGES
from deltareg_registry.authorise import COOKIE
from deltareg_registry.pages.forms import local_path
from deltareg_registry.settings import ServerSettings
from tests.registry.deltas import put_delta
from tests.registry.pages.world import FIRST, PRIVATE, SECOND, fill, with_config
from tests.servers.deltareg_server import RunningServer, running_server
from tests.servers.postgresql import PostgreSQL
from tests.weights import Pair

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
READ = [
    "/",
    "/?text=shark&yanked=1&order=size&licence=bsd-3-clause",
    "/sign-in",
    "/d/acme/shark",
    "/d/acme/shark?version=1.2.0",
    "/d/acme/hostile",
    "/d/acme/reef",
    "/fits",
    f"/compare?first={FIRST}&second={SECOND}",
    "/n",
    "/n/acme",
    "/tokens",
    "/audit",
    "/d/acme/nothing",
    "/nowhere",
]


@contextmanager
def visiting(server: RunningServer, token: str | None = None) -> Iterator[httpx2.Client]:
    """A client that behaves as a browser does, with a token in its cookie."""
    with httpx2.Client(base_url=server.url, headers=BROWSER, timeout=30) as client:
        if token is not None:
            client.cookies.set(COOKIE, token)
        yield client


def csrf(page: str) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', page)
    assert found is not None, "the page has no form of somebody who is signed in"
    return found[1]


class Reader(HTMLParser):
    """What a page is made of: tags with their attributes, and whether each is closed."""

    EMPTY = frozenset(("meta", "link", "input", "wbr", "br", "img"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def named(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in tags]


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
    place = path.format(namespace="acme", webhook="0" * 16, token="0" * 16)
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


def test_search_is_narrowed_down_and_paged(shown: RunningServer) -> None:
    with visiting(shown) as client:
        everything = client.get("/").text
        assert "1.<wbr>2.<wbr>0</a>" not in everything, "yanked versions come on request"
        assert "acme/<wbr>shark:1.<wbr>2.<wbr>0" in client.get("/?yanked=1").text
        assert '<h2 id="found">1 version</h2>' in client.get("/?text=tiger").text
        assert "Nothing was found." in client.get("/?text=nonsense").text
        assert 'href="/?licence=bsd-3-clause"' in everything
        narrowed = client.get("/?licence=bsd-3-clause&text=shark").text
        assert 'href="/?text=shark"' in narrowed and 'name="licence" value="bsd-3-clause"' in narrowed
        digest = re.search(r"Fingerprint</dt><dd><code>(sha256:[0-9a-f]{64})", client.get("/d/acme/shark").text)
        assert digest is not None
        fitting = client.get(f"/?fingerprint={digest[1].upper().replace('SHA256', 'sha256')}").text
        assert '<span class="badge fit">homologous</span>' in fitting
        assert "0 versions" in client.get(f"/?fingerprint={sha256(b'another')}").text


def test_search_leads_from_page_to_page(tmp_path: Path, registry: Registry) -> None:
    with running_server(tmp_path) as server:
        data = registry.store.read(registry.artifact(FIRST).digest)
        for number in range(21):
            put_delta(server.state, registry, f"acme/many:1.0.{number}", data)
        with visiting(server, server.token) as client:
            first = client.get("/?order=name").text
            following = re.search(r'href="(/\?cursor=[^"]+)" rel="next"', first)
            assert following is not None and "First page" not in first and first.count('<li class="card">') == 20
            last = client.get(following[1].replace("&amp;", "&")).text
            assert last.count('<li class="card">') == 1
            assert 'href="/?order=name">First page' in last and 'rel="next"' not in last


def test_page_of_a_delta_tells_what_there_is(shown: RunningServer) -> None:
    with visiting(shown) as client:
        page = client.get("/d/acme/shark?version=1.0.0").text
        assert f"deltareg pull acme/shark:1.0.0 --remote {shown.url}" in page
        assert "deltareg apply path/to/target acme/shark:1.0.0 -o path/to/output" in page
        for told in ("antibody_4_2", "bit for bit", "MiB", "bsd-3-clause", "stable", "Norm of the delta by layer"):
            assert told in page
        assert page.count("<polyline") == 4, "two classes in two lists of layers"
        latest = client.get("/d/acme/shark").text
        assert "<strong>Deprecated:</strong> version 1.2.0 is smaller" in latest, "latest skips what is yanked"
        assert '<span class="version">1.0.0</span>' in client.get("/d/acme/shark?version=stable").text
        stacked = client.get("/d/acme/reef").text
        assert "deltareg apply path/to/target acme/shark:VERSION acme/reef:0.1.0 -o path/to/output" in stacked
        assert '<a href="/d/acme/shark">acme/shark ^1</a>' in stacked
        assert client.get("/d/acme/shark?version=9.9.9").status_code == 404


def test_lineage_tells_what_is_stacked_on_a_delta_and_what_lies_beside_it(shown: RunningServer) -> None:
    with visiting(shown) as client:
        page = client.get("/d/acme/shark?version=1.0.0").text
        stacked = client.get("/d/acme/reef").text.partition('id="lineage"')[2]
    lineage = page[page.index('id="lineage"') : page.index('id="versions"')]
    assert 'stacked on it: <a href="/d/acme/reef?version=0.1.0">' in lineage
    assert 'of the same base: <a href="/d/acme/tiger?version=1.0.0">' in lineage
    assert "secret" not in lineage
    assert "of the same base" not in stacked or "acme/shark:" not in stacked, "what it is stacked on is above it"
    assert "/compare?first=acme%2Fshark%3A1.0.0&amp;second=acme%2Ftiger%3A1.0.0" in lineage


def test_damaged_inventory_does_not_hide_the_rest_of_a_delta(tmp_path: Path, registry: Registry) -> None:
    with running_server(tmp_path) as server:
        put_delta(server.state, registry, "acme/hurt:1.0.0", with_config(registry, FIRST, description="Hurt."))
        inventory = registry.artifact(FIRST).manifest.layers_of(INVENTORY_TYPE)[0].digest
        next(tmp_path.rglob(inventory.removeprefix("sha256:"))).write_bytes(b"damaged")
        with visiting(server, server.token) as client:
            page = client.get("/d/acme/hurt").text
    assert "Norms by layer cannot be told:" in page and "deltareg pull acme/hurt:1.0.0" in page


def test_pages_say_the_same_over_postgresql(
    tmp_path: Path, postgresql: PostgreSQL, registry: Registry, shown: RunningServer
) -> None:
    paths = [path for path in READ if not path.startswith(("/n", "/tokens", "/audit"))]
    odd = ["/?text=%00&base=%00", "/?licence=%F0%9F%90%9F", "/audit?actor=%00", "/d/acme/shark?version=%00", "/n/%00"]
    with postgresql.database() as url, running_server(tmp_path, ServerSettings(tmp_path, database=url)) as server:
        fill(server.state, registry)
        with visiting(server, server.token) as here, visiting(shown, shown.token) as there:
            for path in paths:
                told, expected = without_times(here.get(path).text), without_times(there.get(path).text)
                assert told.replace(server.url, shown.url) == expected, path
            for path in odd:
                assert here.get(path).status_code == there.get(path).status_code < 500, path


def without_times(page: str) -> str:
    """A page without what differs from server to server."""
    return re.sub(r'<time.*?</time>|name="csrf" value="[0-9a-f]+"', "", page)


def test_comparison_shows_cosines_by_layer(shown: RunningServer) -> None:
    with visiting(shown) as client:
        page = client.get(f"/compare?first={FIRST}&second={SECOND}").text
        assert page.count('<rect class="cell warm"') > 8 and "decoder.layers.0, attention: 0." in page
        assert "Comparison by module class" in page and "were not compared" in page
        alone = client.get(f"/compare?first={FIRST}")
        assert alone.status_code == 400 and "Name two deltas." in alone.text
        same = client.get(f"/compare?first={FIRST}&second={FIRST}")
        assert same.status_code == 400 and "is given twice" in same.text
        assert "<svg" not in client.get("/compare").text


def test_uploaded_files_are_judged(shown: RunningServer, anarcii_bf16: dict[str, Path], minilm_bf16: Pair) -> None:
    config = (anarcii_bf16["antibody_4_2"] / "config.json").read_bytes()
    with visiting(shown) as client:
        page = client.post("/fits", files={"config": ("any.name", config)}, data={"deltas": f"{FIRST}, {SECOND}"}).text
        assert "2 deltas judged" in page and "lineage-unknown" in page
        nearest = client.post("/fits", files={"config": ("config.json", config)}).text
        assert "acme/<wbr>tiger" in nearest and "secret" not in nearest
        other = {
            "config": ("config.json", (minilm_bf16.base / "config.json").read_bytes()),
            "tokenizer": ("tokenizer.json", (minilm_bf16.base / "tokenizer.json").read_bytes()),
        }
        told = client.post("/fits", files=other, data={"deltas": FIRST}).text
        assert '<span class="badge incompatible">incompatible</span>' in told
        assert "made for a model of this kind" in client.post("/fits", files=other).text


@pytest.mark.parametrize(
    ("files", "deltas", "status", "told"),
    [
        ({}, "", 400, "config.json is missing"),
        ({"config": ("config.json", b"{")}, "", 422, "config.json"),
        ({"config": ("config.json", b"\xff")}, "", 400, "not a text in UTF-8"),
        ({"config": ("config.json", b"{}")}, "acme/nothing", 404, "not in the registry"),
        ({"config": ("config.json", b"{}")}, "!", 400, "!"),
        ({"config": ("config.json", b"{}")}, " ".join(["acme/shark"] * 21), 400, "at most 20"),
        ({"config": ("config.json", b"{}")}, PRIVATE, 404, "not in the registry"),
    ],
)
def test_uploads_that_make_no_sense_are_refused(
    shown: RunningServer, files: dict[str, tuple[str, bytes]], deltas: str, status: int, told: str
) -> None:
    with visiting(shown) as client:
        answer = client.post("/fits", files=files or {"other": ("x", b"")}, data={"deltas": deltas})
    assert (answer.status_code, told in answer.text) == (status, True)
    assert 'role="alert"' in answer.text and "<form" in answer.text


def test_token_is_shown_once_and_revoked(shown: RunningServer) -> None:
    with visiting(shown, shown.user("tina", acme="publisher")) as client:
        sent = {"csrf": csrf(client.get("/tokens").text), "name": "<b>ci</b>", "days": "5", "action": "read"}
        page = client.post("/tokens", data={**sent, "namespace": "acme"}).text
        found = re.search(r"drt_[\w-]{30,}", page)
        assert found is not None and "&lt;b&gt;ci" in page and "read in acme" in page
        again = client.get("/tokens").text
        assert found[0] not in again
        with visiting(shown, found[0]) as limited:
            assert "limited token" in limited.get("/tokens").text
            refused = limited.post("/tokens", data={"csrf": csrf(limited.get("/").text), "name": "more"})
            assert refused.status_code == 403
        own = client.post("/tokens", data={**sent, "namespace": "acme", "action": "own"})
        assert own.status_code == 403 and "you may not own" in own.text
        place = re.search(r'action="(/tokens/[0-9a-f]{16})"[^>]*>(?:(?!</form>).)*Revoke &lt;b&gt;ci', again, re.S)
        assert place is not None
        assert client.post(place[1], data={"csrf": sent["csrf"]}).status_code == 303
        assert "that are good no longer" in client.get("/tokens").text
    with visiting(shown, found[0]) as client:
        assert client.get("/tokens").status_code == 401


def test_owners_change_members_webhooks_and_settings(shown: RunningServer) -> None:
    shown.user("nils")
    with visiting(shown, shown.token) as client:
        key = {"csrf": csrf(client.get("/n").text)}
        made = client.post("/n", data={**key, "name": "pond"})
        assert (made.status_code, made.headers["Location"]) == (303, "/n/pond")
        assert client.post("/n", data={**key, "name": "pond"}).status_code == 409
        assert client.post("/n", data={**key, "name": "No Name"}).status_code == 400
        role = {**key, "user": "nils", "role": "publisher"}
        assert client.post("/n/pond/members", data=role).headers["Location"] == "/n/pond#members"
        assert "nils" in client.get("/n/pond").text
        assert client.post("/n/pond/members", data={**role, "user": "nobody"}).status_code == 404
        assert client.post("/n/pond/members", data={**role, "role": "king"}).status_code == 400
        assert client.post("/n/pond/members", data={**key, "user": "owner", "action": "remove"}).status_code == 409
        client.post("/n/pond/members", data={**key, "user": "nils", "action": "remove"})
        assert "Remove nils" not in client.get("/n/pond").text

        client.post("/n/pond", data={**key, "public": "1"})
        client.post("/n/pond/quota", data={**key, "bytes": "4096"})
        page = client.get("/n/pond").text
        assert "everybody" in page and "of 4 KiB" in page

        hook = client.post("/n/pond/webhooks", data={**key, "url": "https://hooks.invalid/", "events": "channel.set"})
        secret = re.search(r"whsec_[\w+/=]+", hook.text)
        assert secret is not None and secret[0] not in client.get("/n/pond").text
        place = re.search(r"/n/pond/webhooks/[0-9a-f]{16}", hook.text)
        assert place is not None
        for action, told in (("test", "ping"), ("disable", ">disabled<"), ("enable", "Send a test")):
            assert client.post(place[0], data={**key, "action": action}).status_code == 303
            assert told in client.get("/n/pond").text
        assert client.post(place[0], data={**key, "action": "paint"}).status_code == 400
        client.post(place[0], data={**key, "action": "remove"})
        assert "There is none." in client.get("/n/pond").text
        inside = client.post("/n/pond/webhooks", data={**key, "url": "http://127.0.0.1/", "events": "channel.set"})
        assert inside.status_code == 403

        log = client.get("/audit?namespace=pond").text
        assert "webhook.delete" in log and "member.set" in log
        assert "webhook.delete" not in client.get("/audit?namespace=pond&action=member.set").text
        assert "Nothing was found." in client.get("/audit?since=2100-01-01").text
        assert client.get("/audit?since=never").status_code == 400


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
