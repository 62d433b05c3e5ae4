"""What each page says, and what its forms do."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import httpx2
import pytest

from deltareg import Registry
from deltareg.digest import sha256
from deltareg.manifest import INVENTORY_TYPE
from deltareg.signing import told_keys
from deltareg_registry.pages.lineage import MOST
from deltareg_registry.settings import ServerSettings
from tests.keys import make_key
from tests.registry.deltas import put_delta
from tests.registry.pages.reading import READ, csrf, visiting
from tests.registry.pages.world import FIRST, PRIVATE, SECOND, fill, with_config
from tests.servers.deltareg_server import RunningServer, running_server
from tests.servers.postgresql import PostgreSQL
from tests.weights import Pair


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
        assert "<dt>tied_embeddings</dt><dd>false</dd>" in page
        latest = client.get("/d/acme/shark").text
        assert "<strong>Deprecated:</strong> version 1.2.0 is smaller" in latest, "latest skips what is yanked"
        assert '<span class="version">1.0.0</span>' in client.get("/d/acme/shark?version=stable").text
        stacked = client.get("/d/acme/reef").text
        assert "deltareg apply path/to/target acme/shark:VERSION acme/reef:0.1.0 -o path/to/output" in stacked
        assert '<a href="/d/acme/shark">acme/shark ^1</a>' in stacked
        assert client.get("/d/acme/shark?version=9.9.9").status_code == 404


def test_publishers_yank_and_deprecate(server: RunningServer, registry: Registry) -> None:
    put_delta(server.state, registry, "pool/carp:1.0.0", with_config(registry, FIRST, description="A carp."))
    with visiting(server, server.user("rita", pool="reader")) as client:
        assert "Deprecate" not in client.get("/d/pool/carp").text
    with visiting(server, server.user("paul", pool="publisher")) as client:
        key = {"csrf": csrf(client.get("/d/pool/carp").text)}
        place = "/d/pool/carp/versions/1.0.0"
        done = client.post(place, data={**key, "action": "yank", "reason": "wrong <b>data"})
        assert (done.status_code, done.headers["Location"]) == (303, "/d/pool/carp?version=1.0.0")
        client.post(place, data={**key, "action": "deprecate", "reason": "old"})
        page = client.get(done.headers["Location"]).text
        assert "<strong>Yanked:</strong> wrong &lt;b&gt;data" in page and "<strong>Deprecated:</strong> old" in page
        for action in ("unyank", "undeprecate"):
            assert client.post(place, data={**key, "action": action}).status_code == 303
        page = client.get(done.headers["Location"]).text
        assert "Yanked:" not in page and "Deprecated:" not in page
        assert client.post(place, data={**key, "action": "yank"}).status_code == 400, "a reason is needed"
        assert client.post(place, data={**key, "action": "burn"}).status_code == 400
        assert client.post("/d/pool/carp/versions/9.0.0", data={**key, "action": "unyank"}).status_code == 404


def test_publishers_move_channels(server: RunningServer, registry: Registry) -> None:
    for number in ("1.0.0", "1.1.0", "1.2.0"):
        put_delta(server.state, registry, f"pool/carp:{number}", with_config(registry, FIRST, description=number))
    with visiting(server, server.user("rita", pool="reader")) as client:
        assert 'id="channels"' not in client.get("/d/pool/carp").text
    with visiting(server, server.user("paul", pool="publisher")) as client:
        page = client.get("/d/pool/carp?version=1.0.0").text
        key = {"csrf": csrf(page)}
        assert "There is none. A channel is" in page

        def move(version: str, expected: str = "", channel: str = "stable") -> httpx2.Response:
            place = f"/d/pool/carp/versions/{version}/channels"
            return client.post(place, data={**key, "channel": channel, "expected": expected})

        made = move("1.0.0")
        assert (made.status_code, made.headers["Location"]) == (303, "/d/pool/carp?version=1.0.0#channels")
        before = _expected(client.get("/d/pool/carp?version=1.1.0").text, "Move stable to 1.1.0")
        assert "Move stable to" not in client.get(made.headers["Location"]).text, "it leads there already"
        assert move("1.1.0", before).status_code == 303
        assert '<span class="version">1.1.0</span>' in client.get("/d/pool/carp?version=stable").text

        late = move("1.2.0", before)
        assert late.status_code == 409
        assert "leads to 1.1.0 now, and not to 1.0.0: somebody changed it after you opened the page" in late.text
        assert move("1.2.0").status_code == 409 and "already: it leads to 1.1.0" in move("1.2.0").text
        assert '<span class="version">1.1.0</span>' in client.get("/d/pool/carp?version=stable").text
        again = _expected(late.text, "Move stable to 1.2.0")
        assert move("1.2.0", again).status_code == 303, "the page that tells it can be sent again"

        for name in ("latest", "Stable", "1.0.0"):
            refused = move("1.0.0", channel=name)
            assert refused.status_code == 400 and 'role="alert"' in refused.text, name
        assert move("1.0.0", channel="").status_code == 400
        assert move("1.0.0", "nonsense").status_code == 400
        assert move("9.0.0").status_code == 404


def _expected(page: str, button: str) -> str:
    """Where a channel led when a page was made, as its form says."""
    form = page[: page.index(f'aria-label="{button}"')].rpartition("<form")[2]
    return form.partition('name="expected" value="')[2].partition('"')[0]


def test_lineage_is_seen_whole_page_by_page(server: RunningServer, registry: Registry) -> None:
    put_delta(server.state, registry, "pool/first:1.0.0", with_config(registry, FIRST, description="The first."))
    plain = registry.store.read(registry.artifact(FIRST).digest)
    for number in range(25):
        put_delta(server.state, registry, f"pool/one-{number}:1.0.0", plain)
    for number in range(MOST - 20):
        put_delta(server.state, registry, f"pool/last:1.0.{number}", plain)
    with visiting(server, server.token) as client:
        page = client.get("/d/pool/last").text
        lineage = page[page.index('id="lineage"') : page.index('id="versions"')]
        assert f"{MOST} of {MOST + 6} versions of its parameter space were looked at, the newest" in lineage
        assert "/d/pool/one-24?version" in lineage and "/d/pool/first?" not in lineage
        assert "<summary>" not in lineage, "twenty fit"
        following = re.search(r'href="([^"]*older=[^"]*)" rel="next"', lineage)
        assert following is not None
        older = client.get(unescape(following[1])).text
        lineage = older[older.index('id="lineage"') : older.index('id="versions"')]
        assert f"6 of {MOST + 6} versions" in lineage and "/d/pool/first?" in lineage and "The newest</a>" in lineage
        assert 'rel="next"' not in lineage
        whole = client.get("/d/pool/first").text
        assert "<summary>1 more</summary>" in whole[whole.index('id="lineage"') :], "none is left out"
        assert client.get("/d/pool/last?older=nonsense").status_code == 400


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
        assert page.count('<span class="badge homologous">') == 2, "the base of both, which does not say what it ties"
        assert "Write <code>tie_word_embeddings</code> into <code>config.json</code>" in page
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


def test_owners_set_who_has_to_sign(shown: RunningServer, tmp_path: Path) -> None:
    first, second = make_key(tmp_path, "first"), make_key(tmp_path, "second")
    texts = [first.public.read_text(), second.public.read_text()]
    names = [key.fingerprint for key in told_keys(shown.url, "lake", texts)]
    with visiting(shown, shown.token) as client:
        key = {"csrf": csrf(client.get("/n").text)}
        client.post("/n", data={**key, "name": "lake", "public": "1"})
        assert "No signatures are asked for." in client.get("/n/lake").text
        # As browsers send what stands in a field of several lines.
        sent = "\n".join(texts).replace("\n", "\r\n")
        answer = client.post("/n/lake/signers", data={**key, "keys": sent})
        assert (answer.status_code, answer.headers["Location"]) == (303, "/n/lake#signers")
        with shown.client() as owner:
            assert owner.get("/api/v1/namespaces/lake").json()["policy"]["signedBy"] == texts
        page = client.get("/n/lake").text
        assert all(name in page for name in names) and "one of 2 keys" in page
        for wrong in ("no key", texts[0] + "more", first.private.read_text()):
            assert client.post("/n/lake/signers", data={**key, "keys": wrong}).status_code == 400
        with visiting(shown) as stranger:
            seen = stranger.get("/n/lake").text
            assert names[0] in seen and "<textarea" not in seen
        client.post("/n/lake/signers", data={**key, "keys": ""})
        assert "No signatures are asked for." in client.get("/n/lake").text


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
