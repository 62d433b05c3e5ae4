"""The HTTP client: what is tried again, what is resumed, where secrets go, and what failures become."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import stamina

from deltareg.digest import sha256
from deltareg.errors import (
    BadManifest,
    DeltaregError,
    DigestMismatch,
    DiskFull,
    NotAllowed,
    NotFound,
    NotSignedIn,
    RemoteUnavailable,
    UsageError,
    VersionExists,
)
from deltareg.remote.authorization import BearerToken
from deltareg.remote.bodies import Download, FilePart
from deltareg.remote.http import HttpClient
from deltareg.remote.network import Network, Patience
from tests.deltas import noise
from tests.remote.site import IMPATIENT, Asked, cut, say, serve_site

TOKEN = "a-token-that-nobody-may-see"


@pytest.fixture(autouse=True)
def no_pauses() -> Iterator[None]:
    with stamina.set_testing(True, attempts=4):
        yield


def client(url: str, *, token: str | None = None, network: Network = IMPATIENT) -> HttpClient:
    return HttpClient(url, network, authorization=None if token is None else BearerToken(token))


# --- what is tried again ---


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_what_may_pass_is_asked_again(status: int) -> None:
    def answer(asked: Asked, before: int) -> None:
        say(asked, status if before < 2 else 200, b"here", {"Retry-After": "0"})

    with serve_site(answer) as site:
        assert client(site.url).ask("GET", "x").body == b"here"
        assert len(site.requests) == 3


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((status, NotAllowed) for status in (400, 403, 405, 413, 422)),
        (401, NotSignedIn),
        *((status, NotFound) for status in (404, 410)),
        (500, RemoteUnavailable),
        (507, DiskFull),
    ],
)
def test_what_is_refused_is_not_asked_again(status: int, error: type[DeltaregError]) -> None:
    with serve_site(lambda asked, before: say(asked, status)) as site:
        with pytest.raises(error) as raised:
            client(site.url).ask("GET", "x")
        assert type(raised.value) is error
        assert len(site.requests) == 1


def test_what_does_not_pass_is_told_after_a_few_tries() -> None:
    with serve_site(lambda asked, before: say(asked, 503)) as site:
        with pytest.raises(RemoteUnavailable, match="503 Service Unavailable") as raised:
            client(site.url).ask("GET", "x")
        assert len(site.requests) == 4
        assert raised.value.exit_code == 6
        assert raised.value.__cause__ is None


def test_longer_pause_than_there_is_patience_for_is_not_waited_for() -> None:
    with serve_site(lambda asked, before: say(asked, 503, headers={"Retry-After": "3600"})) as site:
        with pytest.raises(RemoteUnavailable):
            client(site.url).ask("GET", "x")
        assert len(site.requests) == 1


def test_pause_that_the_server_asks_for_is_waited_for() -> None:
    def answer(asked: Asked, before: int) -> None:
        say(asked, 429 if before == 0 else 200, headers={"Retry-After": "1"})

    with stamina.set_testing(False), serve_site(answer) as site:
        begun = time.monotonic()
        client(site.url).ask("GET", "x")
        assert 0.9 < time.monotonic() - begun < 5


def test_request_that_may_have_been_done_is_not_sent_again() -> None:
    with serve_site(lambda asked, before: say(asked, 503)) as site:
        with pytest.raises(RemoteUnavailable):
            client(site.url).ask("PATCH", "x", body=b"chunk")
        assert len(site.requests) == 1


def test_request_that_was_not_looked_at_is_sent_again() -> None:
    with serve_site(lambda asked, before: say(asked, 429 if before == 0 else 202)) as site:
        assert client(site.url).ask("PATCH", "x", body=b"chunk").status == 202
        assert [asked.body for asked in site.requests] == [b"chunk", b"chunk"]


def test_cut_answer_is_asked_for_again() -> None:
    def answer(asked: Asked, before: int) -> None:
        if before == 0:
            cut(asked, 200, b"an answer", after=4)
        else:
            say(asked, 200, b"an answer")

    with serve_site(answer) as site:
        assert client(site.url).ask("GET", "x").body == b"an answer"


def test_nobody_there_is_told_soon() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RemoteUnavailable, match="could not be reached") as raised:
        client(f"http://127.0.0.1:{port}").ask("GET", "x")
    assert "check the connection" in (raised.value.hint or "")


def test_unknown_host_is_told() -> None:
    with pytest.raises(RemoteUnavailable, match=r"no-such-host\.invalid"):
        client("http://no-such-host.invalid").ask("GET", "x")


def test_silent_server_is_not_waited_for_without_end() -> None:
    with serve_site(lambda asked, before: time.sleep(3)) as site:
        network = Network(patience=Patience(connect=1, silence=0.1, total=2, attempts=2))
        with pytest.raises(RemoteUnavailable, match="took too long"):
            client(site.url, network=network).ask("GET", "x")


def test_what_is_no_http_is_unavailable() -> None:
    def answer(asked: Asked, before: int) -> None:
        asked.handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        asked.handler.close_connection = True

    with serve_site(answer) as site, pytest.raises(RemoteUnavailable, match="broke the connection off"):
        client(site.url).ask("GET", "x")


def test_answer_without_end_is_refused() -> None:
    with serve_site(lambda asked, before: say(asked, 200, bytes(1000))) as site:
        with pytest.raises(BadManifest, match="more than 999 bytes"):
            client(site.url).ask("GET", "x", limit=999)
        assert len(client(site.url).ask("GET", "x", limit=1000).body) == 1000


def drip(asked: Asked, status: int = 200) -> None:
    """One byte after another, each well in time, of an answer that would take hours."""
    asked.handler.send_response(status)
    asked.handler.send_header("Content-Length", "100000")
    asked.handler.end_headers()
    with suppress(OSError):
        for _ in range(200):
            asked.handler.wfile.write(b"x")
            asked.handler.wfile.flush()
            time.sleep(0.05)
    asked.handler.close_connection = True


@pytest.mark.parametrize("status", [200, 403])
def test_answer_that_drips_is_not_waited_for_without_end(status: int) -> None:
    begun = time.monotonic()
    network = Network(patience=Patience(connect=1, silence=0.5, total=0.4, attempts=2))
    with serve_site(lambda asked, before: drip(asked, status)) as site:
        with stamina.set_testing(True, attempts=2), pytest.raises(RemoteUnavailable, match="took too long"):
            client(site.url, network=network).ask("GET", "x")
        assert time.monotonic() - begun < 5


# --- downloads ---

DATA = noise(300_000)


def wanted(size: int = len(DATA)) -> Download:
    return Download("blob", size, sha256(DATA))


def received(url: str, offset: int = 0, size: int = len(DATA)) -> bytes:
    return b"".join(client(url).download(wanted(size), offset))


def ranged(asked: Asked) -> None:
    """Answer as a server does that knows byte ranges."""
    begin = asked.offset
    if "range" not in asked.headers:
        say(asked, 200, DATA)
    elif begin >= len(DATA):
        say(asked, 416, headers={"Content-Range": f"bytes */{len(DATA)}"})
    else:
        say(asked, 206, DATA[begin:], content_range(begin))


def content_range(begin: int, size: int = len(DATA)) -> dict[str, str]:
    return {"Content-Range": f"bytes {begin}-{size - 1}/{size}"}


def test_download_is_whole_from_any_offset() -> None:
    with serve_site(lambda asked, before: ranged(asked)) as site:
        for offset in (0, 1, 100_000, len(DATA) - 1, len(DATA)):
            assert received(site.url, offset) == DATA[offset:]
        assert "range" not in site.requests[0].headers
        assert site.requests[2].headers["range"] == "bytes=100000-"


def test_cut_download_goes_on_where_it_was() -> None:
    def answer(asked: Asked, before: int) -> None:
        if before < 3:
            cut(asked, 206 if asked.offset else 200, DATA[asked.offset :], after=70_000, headers=_where(asked))
        else:
            ranged(asked)

    with serve_site(answer) as site:
        assert received(site.url) == DATA
        assert [asked.offset for asked in site.requests] == [0, 70_000, 140_000, 210_000]


def _where(asked: Asked) -> dict[str, str]:
    return content_range(asked.offset) if asked.offset else {}


def test_server_without_ranges_sends_again_what_is_there() -> None:
    def answer(asked: Asked, before: int) -> None:
        if before == 0:
            cut(asked, 200, DATA, after=100_000)
        else:
            say(asked, 200, DATA)

    with serve_site(answer) as site:
        assert received(site.url) == DATA
        assert len(site.requests) == 2
        assert received(site.url, 250_000) == DATA[250_000:]


def test_server_that_cuts_each_time_at_once_is_given_up() -> None:
    with serve_site(lambda asked, before: cut(asked, 200, DATA, after=0)) as site:
        with pytest.raises(RemoteUnavailable):
            received(site.url)
        assert len(site.requests) == 4


def test_server_that_sends_drops_is_given_up() -> None:
    def answer(asked: Asked, before: int) -> None:
        cut(asked, 206 if asked.offset else 200, DATA[asked.offset :], after=10, headers=_where(asked))

    with serve_site(answer) as site:
        with pytest.raises(RemoteUnavailable):
            received(site.url)
        assert len(site.requests) < 30


def test_download_that_drips_is_given_up_and_a_slow_reader_is_waited_for() -> None:
    begun = time.monotonic()
    network = Network(patience=Patience(connect=1, silence=0.5, total=0.1, attempts=2))
    wanted = Download("blob", 100_000, sha256(bytes(100_000)))
    with (
        serve_site(lambda asked, before: drip(asked, 206 if asked.offset else 200)) as site,
        stamina.set_testing(True, attempts=2),
        pytest.raises(RemoteUnavailable),
    ):
        list(client(site.url, network=network).download(wanted))
    assert time.monotonic() - begun < 6
    with serve_site(lambda asked, before: say(asked, 200, DATA)) as site:
        pieces = client(site.url, network=network).download(Download("blob", len(DATA), sha256(DATA)))
        found = bytearray(next(pieces))
        time.sleep(0.6)
        for piece in pieces:
            found += piece
        assert (bytes(found), len(site.requests)) == (DATA, 1)


@pytest.mark.parametrize("headers", [{}, content_range(0), {"Content-Range": "bytes x-y/z"}, content_range(99)])
def test_other_range_than_was_asked_for_is_refused(headers: dict[str, str]) -> None:
    with (
        serve_site(lambda asked, before: say(asked, 206, DATA[100:], headers)) as site,
        pytest.raises(RemoteUnavailable, match="another byte"),
    ):
        received(site.url, 100)


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
def test_blob_of_another_size_is_no_match(size: int) -> None:
    with serve_site(lambda asked, before: ranged(asked)) as site:
        for offset in (0, 100):
            with pytest.raises(DigestMismatch, match=f"instead of {size}"):
                received(site.url, offset, size)
        with pytest.raises(DigestMismatch):
            received(site.url, len(DATA), len(DATA) + 1)


def test_end_that_was_sent_too_early_is_no_match() -> None:
    def answer(asked: Asked, before: int) -> None:
        asked.handler.send_response(200)
        asked.handler.send_header("Transfer-Encoding", "chunked")
        asked.handler.end_headers()
        asked.handler.wfile.write(b"5\r\nshort\r\n0\r\n\r\n")

    with serve_site(answer) as site:
        with pytest.raises(DigestMismatch, match="5 bytes instead of"):
            received(site.url)
        assert len(site.requests) == 1


def test_compressed_blob_is_refused() -> None:
    with serve_site(lambda asked, before: say(asked, 200, DATA, {"Content-Encoding": "gzip"})) as site:
        with pytest.raises(RemoteUnavailable, match="another form"):
            received(site.url)
        assert site.requests[0].headers["accept-encoding"] == "identity"


def test_download_that_is_not_read_to_its_end_leaves_no_connection_busy() -> None:
    with serve_site(lambda asked, before: ranged(asked)) as site:
        http = client(site.url)
        for _ in range(80):  # more than there are connections
            pieces = http.download(wanted())
            next(pieces)
            pieces.close()  # type: ignore[attr-defined]
        assert http.ask("GET", "x").status == 200


# --- sending ---


def test_part_of_a_file_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with serve_site(lambda asked, before: say(asked, 503 if before == 0 else 201)) as site:
        client(site.url).ask("PUT", "x", body=FilePart(path, 1000, 200_000, sha256(DATA)))
        assert [asked.body == DATA[1000:201_000] for asked in site.requests] == [True, True]


def test_file_that_got_shorter_is_no_match(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"short")
    with serve_site(lambda asked, before: say(asked, 201)) as site, pytest.raises(DigestMismatch):
        client(site.url).ask("PUT", "x", body=FilePart(path, 0, 6, sha256(b"longer")))


# --- redirects and secrets ---


def test_secret_follows_a_redirect_within_the_server_alone() -> None:
    with serve_site(lambda asked, before: say(asked, 200, b"here")) as other:

        def answer(asked: Asked, before: int) -> None:
            if asked.path == "/start":
                say(asked, 307, headers={"Location": "/next"})
            elif asked.path == "/next":
                say(asked, 302, headers={"Location": f"{other.url}/there?signature=s"})

        with serve_site(answer) as site:
            assert client(site.url, token=TOKEN).ask("GET", "start").body == b"here"
            assert [asked.headers.get("authorization") for asked in site.requests] == [f"Bearer {TOKEN}"] * 2
            assert "authorization" not in other.requests[0].headers


def test_secret_does_not_come_back_by_way_of_another_server() -> None:
    def home(asked: Asked, before: int) -> None:
        if asked.path == "/start":
            say(asked, 307, headers={"Location": other.url})
        else:
            say(asked, 200)

    with serve_site(home) as site, serve_site(lambda asked, before: say(asked, 307, headers=back(site.url))) as other:
        client(site.url, token=TOKEN).ask("GET", "start")
        assert "authorization" not in site.requests[-1].headers


def back(url: str) -> dict[str, str]:
    return {"Location": f"{url}/admin"}


@pytest.mark.parametrize(
    "target", ["ftp://host/x", "file:///etc/passwd", "http://ann:secret@127.0.0.1/x", "http://[", "/loop"]
)
def test_redirect_that_leads_astray_is_not_followed(target: str) -> None:
    with serve_site(lambda asked, before: say(asked, 302, headers={"Location": target})) as site:
        with pytest.raises(NotAllowed, match="redirects") as raised:
            client(site.url).ask("GET", "x")
        assert "secret" not in str(raised.value.as_dict())
        assert len(site.requests) <= 6


def test_what_is_sent_follows_only_redirects_that_let_it() -> None:
    def answer(asked: Asked, before: int) -> None:
        if asked.path == "/goal":
            say(asked, 201)
        else:
            say(asked, int(asked.path[1:]), headers={"Location": "/goal"})

    with serve_site(answer) as site:
        assert client(site.url).ask("PUT", "307", body=b"bytes").status == 201
        assert site.requests[-1].body == b"bytes"
        with pytest.raises(NotAllowed, match="redirects with 302"):
            client(site.url).ask("PUT", "302", body=b"bytes")


def test_secret_that_a_server_repeats_is_not_told() -> None:
    told = {"errors": [{"code": "DENIED", "message": f"no right for Bearer {TOKEN}"}]}
    with serve_site(lambda asked, before: say(asked, 403, told)) as site:
        with pytest.raises(NotAllowed) as raised:
            client(site.url, token=TOKEN).ask("GET", "x")
        assert TOKEN not in str(raised.value.as_dict())


@pytest.mark.parametrize("data", [{"echo": [{"of": f"Bearer {TOKEN}"}]}, {TOKEN.replace("-", "_"): 1, "x": TOKEN}])
def test_secret_that_a_server_repeats_in_the_data_of_an_error_is_not_told(data: dict[str, object]) -> None:
    problem = {"code": "DR0002", "message": "it is not there", "data": data}
    with serve_site(lambda asked, before: say(asked, 404, problem)) as site:
        with pytest.raises(NotFound, match="it is not there") as raised:
            client(site.url, token=TOKEN).ask("GET", "x")
        assert TOKEN not in str(raised.value.as_dict())


def test_logs_show_no_signatures_and_no_tokens(caplog: pytest.LogCaptureFixture) -> None:
    def answer(asked: Asked, before: int) -> None:
        say(asked, *((302, b"", {"Location": "/blob?signature=abc123"}) if before == 0 else (200, b"", {})))

    caplog.set_level(logging.DEBUG)
    with serve_site(answer) as site:
        client(site.url, token=TOKEN).ask("GET", "x")
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "HTTP Request" in told
    assert "abc123" not in told
    assert TOKEN not in told


def test_cookies_are_not_kept() -> None:
    with serve_site(lambda asked, before: say(asked, 200, headers={"Set-Cookie": "session=1"})) as site:
        http = client(site.url)
        http.ask("GET", "x")
        http.ask("GET", "x")
        assert "cookie" not in site.requests[1].headers
        assert site.requests[1].headers["user-agent"].startswith("deltareg/")


# --- TLS ---


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    key, path = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, key)
    return context, path


def test_unknown_certificate_is_refused_and_a_named_one_taken(
    certificate: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, path = certificate
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with serve_site(lambda asked, before: say(asked, 200, b"here"), context) as site:
        with pytest.raises(RemoteUnavailable, match="does not trust") as raised:
            client(site.url).ask("GET", "x")
        assert "SSL_CERT_FILE" in (raised.value.hint or "")
        assert site.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        assert client(site.url).ask("GET", "x").body == b"here"


def test_redirect_away_from_tls_is_not_followed(
    certificate: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, path = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with (
        serve_site(lambda asked, before: say(asked, 200)) as plain,
        serve_site(lambda asked, before: say(asked, 307, headers={"Location": plain.url}), context) as site,
    ):
        with pytest.raises(NotAllowed, match="from https to http"):
            client(site.url, token=TOKEN).ask("GET", "x")
        assert plain.requests == []


def test_certificates_that_are_not_there_are_a_setting_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent/certificates.pem")
    with pytest.raises(UsageError, match=r"/nonexistent/certificates\.pem"):
        client("https://127.0.0.1:1")


@pytest.mark.parametrize(
    "proxy",
    ["foo://ann:secret@host", "http://ann:secret@[::1", "http://ann:sec/ret@host", "http://ann:secret\x01@host"],
)
def test_proxy_that_cannot_be_is_a_setting_to_mend(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(UsageError, match="proxy") as raised:
        client("http://127.0.0.1:1")
    assert "sec" not in str(raised.value.as_dict())
    assert "HTTP_PROXY" in (raised.value.hint or "")


# --- what servers say ---


def test_error_of_a_deltareg_server_is_raised_as_it_was_there() -> None:
    problem = {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "code": "DR0301",
        "detail": "acme/search:1.0.0 was published already",
        "cause": "versions never change",
        "hint": "publish under a new version number",
        "data": {"found": "sha256:0", "message": "not this one", "no identifier": 1, "self": 2},
    }
    headers = {"Content-Type": "application/problem+json"}
    with (
        serve_site(lambda asked, before: say(asked, 409, problem, headers)) as site,
        pytest.raises(VersionExists) as raised,
    ):
        client(site.url).ask("PUT", "x")
    error = raised.value
    assert (error.message, error.cause, error.hint) == (problem["detail"], problem["cause"], problem["hint"])
    assert error.data == {"found": "sha256:0"}


def test_error_of_a_deltareg_server_within_an_oci_error_is_raised_as_it_was_there() -> None:
    detail = {"code": "DR0004", "hint": "ask for more room"}
    body = {"errors": [{"code": "DENIED", "message": "the disk is full", "detail": detail}]}
    with (
        serve_site(lambda asked, before: say(asked, 507, body)) as site,
        pytest.raises(DiskFull, match="the disk is full") as raised,
    ):
        client(site.url).ask("PUT", "x")
    assert raised.value.hint == "ask for more room"


def test_words_of_an_oci_registry_are_told_as_plain_text() -> None:
    body = {"errors": [{"code": "X", "message": "not\x1b[31m red\nnot two lines"}, {"code": "TOOMANY"}, 7]}
    with serve_site(lambda asked, before: say(asked, 400, body)) as site, pytest.raises(NotAllowed) as raised:
        client(site.url).ask("PUT", "x")
    assert "red not two lines; TOOMANY" in raised.value.message
    assert "\x1b" not in raised.value.message


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"errors": 1}', b'{"code": 1}', b'{"code": "DR9999"}'])
def test_error_that_cannot_be_read_is_told_by_its_status(body: bytes) -> None:
    with (
        serve_site(lambda asked, before: say(asked, 403, body, {"Content-Type": "application/json"})) as site,
        pytest.raises(NotAllowed) as raised,
    ):
        client(site.url).ask("GET", "x")
    assert raised.value.cause == "403 Forbidden"


def test_stranger_is_told_how_to_log_in() -> None:
    with serve_site(lambda asked, before: say(asked, 401)) as site, pytest.raises(NotAllowed) as raised:
        client(site.url).ask("GET", "x")
    assert raised.value.hint == f"deltareg login {site.url}"
    assert raised.value.exit_code == 4
