"""Webhooks: what happens in a namespace is told, signed, once it has happened, to those who may be told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import func, select, update

from deltareg.errors import Conflict, InvalidArgument, NotAllowed, NotFound
from deltareg.names import parse_reference
from deltareg.store import Store
from deltareg_registry.app import open_state
from deltareg_registry.database import at, now
from deltareg_registry.database.tables import deliveries, webhooks
from deltareg_registry.first import first_token
from deltareg_registry.records.channels import remove_channel, set_channel
from deltareg_registry.records.events import EVENTS, emit
from deltareg_registry.records.marks import set_mark
from deltareg_registry.records.namespaces import make_namespace
from deltareg_registry.records.webhooks import (
    MOST_FAILURES,
    MOST_WEBHOOKS,
    Delivery,
    Webhook,
    add_webhook,
    claim,
    delete_webhook,
    enable_webhook,
    forget_old,
    list_deliveries,
    list_webhooks,
    settle,
)
from deltareg_registry.settings import ServerSettings
from deltareg_registry.state import State
from deltareg_registry.upkeep.addresses import check_url, parse_host, resolve
from deltareg_registry.upkeep.background import background
from deltareg_registry.upkeep.deliveries import backoff, deliver_due, open_sender
from tests.registry.deltas import OWNER, publish_delta
from tests.registry.receiver import Receiver, receive, until
from tests.servers.deltareg_server import running_server

PUBLISH = "version.publish"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receive() as found:
        yield found


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """A registry that may send to loopback, whose server does not run: the tests send for it."""
    found = open_state(ServerSettings(data=tmp_path / "server", webhook_hosts=("127.0.0.0/8",)))
    first_token(found.database)
    yield found
    found.database.close()


def webhook(state: State, url: str) -> tuple[Webhook, str]:
    with state.database.writing() as connection:
        make_namespace(connection, "acme", OWNER, public=False)
        return add_webhook(connection, OWNER, "acme", url, [PUBLISH])


def happen(state: State, count: int = 1) -> None:
    for number in range(count):
        with state.database.writing() as connection:
            emit(connection, "acme", PUBLISH, f"acme/search:1.0.{number}", {"digest": "sha256:…"})


def send(state: State, seconds: float = 10) -> int:
    async def once() -> int:
        async with open_sender() as sender:
            return await deliver_due(state, sender, seconds=seconds)

    return anyio.run(once)


def sent(state: State, hook: Webhook) -> list[Delivery]:
    with state.database.reading() as connection:
        return list_deliveries(connection, hook.id, limit=100)


def let_time_pass(state: State, **span: float) -> None:
    """Make all that waits look as old as that, and due."""
    past = at(datetime.now(UTC) - timedelta(**span))
    with state.database.writing() as connection:
        connection.execute(update(deliveries).where(deliveries.c.due.is_not(None)).values(due=now()))
        connection.execute(update(deliveries).values(created=past))


def test_publishing_is_told_by_a_running_server_and_proved_by_a_signature(tmp_path: Path, receiver: Receiver) -> None:
    settings = ServerSettings(data=tmp_path, webhook_hosts=("127.0.0.1",))
    with running_server(tmp_path / "server", settings) as server, server.client(server.user("olga")) as client:
        assert client.post("/api/v1/namespaces", json={"name": "acme"}).status_code == 201
        path = "/api/v1/namespaces/acme/webhooks"
        made = client.post(path, json={"url": f"{receiver.url}/hook?a=b", "events": [PUBLISH]}).json()
        digest = publish_delta(server.state, "acme/search:1.0.0", Store(tmp_path / "local"))
        (message,) = receiver.wait(1)
        until(lambda: client.get(f"{path}/{made['id']}/deliveries").json()["deliveries"][0]["due"] is None)
        (delivery,) = client.get(f"{path}/{made['id']}/deliveries").json()["deliveries"]
        (shown,) = client.get(path).json()["webhooks"]
    assert (delivery["status"], delivery["fault"], delivery["attempts"]) == (204, None, 1)
    assert "secret" not in shown and shown["id"] == made["id"]
    told = json.loads(message.body)
    assert (told["type"], told["data"]["subject"]) == (PUBLISH, "acme/search:1.0.0")
    assert told["data"]["detail"] == {"digest": digest}
    assert message.path == "/hook?a=b"
    assert message.headers["host"] == receiver.url.removeprefix("http://")
    stamp = message.headers["webhook-timestamp"]
    assert abs(int(stamp) - time.time()) < 60
    key = base64.b64decode(made["secret"].removeprefix("whsec_"))
    proof = hmac.digest(key, f"{message.headers['webhook-id']}.{stamp}.".encode() + message.body, hashlib.sha256)
    assert message.headers["webhook-signature"] == "v1," + base64.b64encode(proof).decode()


def test_every_change_of_a_name_is_told_with_what_it_changed(state: State, receiver: Receiver, tmp_path: Path) -> None:
    digest = publish_delta(state, "acme/search:1.0.0", Store(tmp_path / "local"))
    version, channel = parse_reference("acme/search:1.0.0"), parse_reference("acme/search:prod")
    with state.database.writing() as connection:
        add_webhook(connection, OWNER, "acme", receiver.url, EVENTS)
        for mark in ("yanked", "deprecated"):
            set_mark(connection, OWNER, version, mark, "worse than before")
            set_mark(connection, OWNER, version, mark, None)
        set_channel(connection, OWNER, channel, digest, None)
        set_channel(connection, OWNER, channel, digest, digest)  # it leads there already
        remove_channel(connection, OWNER, channel)
    send(state)
    told = sorted((json.loads(message.body) for message in receiver.received), key=lambda each: each["type"])
    assert [(each["type"], each["data"]["subject"]) for each in told] == [
        ("channel.remove", "acme/search:prod"),
        ("channel.set", "acme/search:prod"),
        ("version.deprecate", "acme/search:1.0.0"),
        ("version.undeprecate", "acme/search:1.0.0"),
        ("version.unyank", "acme/search:1.0.0"),
        ("version.yank", "acme/search:1.0.0"),
    ]
    assert told[1]["data"]["detail"] == {"from": None, "to": digest}
    assert told[5]["data"]["detail"] == {"digest": digest, "reason": "worse than before"}


def test_what_was_undone_is_not_told(state: State, receiver: Receiver) -> None:
    hook, _ = webhook(state, receiver.url)
    with pytest.raises(ValueError), state.database.writing() as connection:
        emit(connection, "acme", PUBLISH, "acme/search:1.0.0")
        raise ValueError
    with state.database.writing() as connection:
        emit(connection, "acme", "version.yank", "acme/search:1.0.0")  # not asked for
    assert send(state) == 0 and sent(state, hook) == []


def test_a_message_is_sent_again_later_until_it_arrives(state: State, receiver: Receiver) -> None:
    receiver.statuses = [500, 307]
    hook, _ = webhook(state, receiver.url)
    happen(state)
    faults: list[tuple[int | None, str | None]] = []
    for _ in range(3):
        assert send(state) == 1
        assert send(state) == 0  # it waits
        faults += [(each.status, each.fault) for each in sent(state, hook)]
        let_time_pass(state)
    assert faults == [(500, "refused by the receiver"), (307, "redirects are not followed"), (204, None)]
    assert [message.path for message in receiver.received] == ["/"] * 3
    assert len({message.headers["webhook-id"] for message in receiver.received}) == 1
    assert send(state) == 0


def test_a_receiver_that_is_slow_or_absent_is_a_fault(state: State, receiver: Receiver) -> None:
    receiver.delay = 2.0
    hook, _ = webhook(state, receiver.url)
    happen(state)
    assert send(state, seconds=0.3) == 1
    assert sent(state, hook)[0].fault == "no answer in 0.3 s"
    absent, _ = webhook(state, "http://127.0.0.1:1/")
    happen(state)
    send(state, seconds=5)
    assert sent(state, absent)[0].fault == "not reached: ConnectError"


def test_a_message_that_cannot_be_made_keeps_no_other_from_being_sent(state: State, receiver: Receiver) -> None:
    damaged, _ = webhook(state, receiver.url)
    with state.database.writing() as connection:
        connection.execute(update(webhooks).values(secret="whsec_x"))
    whole, _ = webhook(state, receiver.url)
    happen(state)
    assert send(state) == 2
    assert [(each.status, each.fault) for each in sent(state, whole)] == [(204, None)]
    assert [(each.status, each.fault) for each in sent(state, damaged)] == [(None, "the server failed")]


def test_a_task_that_fails_ends_no_other(state: State, receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    webhook(state, receiver.url)
    # What cannot be sorted: nothing like it is counted, and whatever fails so is not foreseen.
    state.pulls.count(1, "sha256:…")
    state.pulls.count("one", "sha256:…")  # type: ignore[arg-type]

    def look() -> None:
        until(lambda: "a regular task failed" in caplog.text)
        happen(state)
        receiver.wait(1)

    async def run() -> None:
        async with background(state):
            await anyio.to_thread.run_sync(look)

    anyio.run(run)


def test_messages_are_given_up_after_a_day_and_the_webhook_after_ten_of_them(state: State, receiver: Receiver) -> None:
    receiver.statuses = [500] * 100
    hook, _ = webhook(state, receiver.url)
    happen(state, MOST_FAILURES + 2)
    let_time_pass(state, hours=25)
    assert send(state) == 10
    given_up = [each for each in sent(state, hook) if each.due is None]
    assert len(given_up) == MOST_FAILURES + 2, "what waited for a disabled webhook is given up too"
    with state.database.writing() as connection:
        assert list_webhooks(connection, "acme")[0].disabled is not None
        emit(connection, "acme", PUBLISH, "acme/search:9.0.0")
    assert len(sent(state, hook)) == MOST_FAILURES + 2
    with state.database.writing() as connection:
        enable_webhook(connection, OWNER, "acme", hook.id, enabled=True, address=None)
    receiver.statuses = []
    happen(state)
    assert send(state) == 1
    assert sent(state, hook)[0].status == 204
    let_time_pass(state, days=31)
    with state.database.writing() as connection:
        assert forget_old(connection) == MOST_FAILURES + 3


def test_a_webhook_that_is_disabled_is_told_nothing_more(any_state: State) -> None:
    hook, _ = webhook(any_state, "https://hooks.invalid/")
    happen(any_state, 2)
    with any_state.database.writing() as connection:
        (under_way,) = claim(connection, limit=1)
        enable_webhook(connection, OWNER, "acme", hook.id, enabled=False, address=None)
        settle(connection, under_way, status=500, fault="refused by the receiver", wait=5)
    faults = {(each.due, each.fault) for each in sent(any_state, hook)}
    assert faults == {(None, "refused by the receiver"), (None, "the webhook was disabled")}


def test_processes_that_claim_at_once_get_different_messages(any_state: State) -> None:
    webhook(any_state, "https://hooks.invalid/")
    happen(any_state, 30)

    def take(_: int) -> list[int]:
        with any_state.database.writing() as connection:
            return [due.id for due in claim(connection, limit=4)]

    with ThreadPoolExecutor(10) as pool:
        taken = [identity for some in pool.map(take, range(10)) for identity in some]
    assert sorted(taken) == sorted(set(taken)), "no message is claimed twice"
    # A round may pass over what another is claiming; what is left comes next.
    taken += take(0) + take(0) + take(0)
    with any_state.database.writing() as connection:
        assert len(taken) + len(claim(connection, limit=30)) == 30
        assert claim(connection, limit=30) == []
        # Whoever claimed them was killed: when the claims have run out, they are free again.
        connection.execute(update(deliveries).values(due=now()))
        assert {due.attempts for due in claim(connection, limit=30)} == {2}
        assert connection.execute(select(func.count()).select_from(deliveries)).scalar_one() == 30


def test_no_message_has_the_number_of_one_that_was_removed(any_state: State) -> None:
    """Receivers that know a number leave out what comes with it again."""
    numbers: list[int] = []
    for _ in range(2):
        hook, _ = webhook(any_state, "https://hooks.invalid/")
        happen(any_state)
        numbers += [each.id for each in sent(any_state, hook)]
        with any_state.database.writing() as connection:
            delete_webhook(connection, OWNER, "acme", hook.id)
    assert numbers[0] < numbers[1]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://sub.localhost./",
        "http://[::1]:80/",
        "http://[::ffff:10.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "http://10.1.2.3/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://192.0.0.192/opc/v2/",
        "http://168.63.129.16/machine",
        "http://[fec0::1]/",
        "http://[::127.0.0.1]/",
        "http://[::ffff:0:127.0.0.1]/",
        "http://[64:ff9b:1::7f00:1]/",
        "http://[3fff::1]/",
        "http://100.64.0.1/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
    ],
)
def test_no_message_goes_to_a_private_address(url: str) -> None:
    with pytest.raises(NotAllowed, match="private network"):
        resolve(check_url(url, ()), ())


def test_operators_allow_hosts_and_networks() -> None:
    assert resolve(check_url("http://127.0.0.1:81/", ("127.0.0.1",)), ("127.0.0.1",)) == ["127.0.0.1"]
    assert resolve(check_url("http://127.0.0.9/", ("127.0.0.0/8",)), ("127.0.0.0/8",)) == ["127.0.0.9"]
    assert set(resolve(check_url("http://localhost/", ("LocalHost.",)), ("localhost",))) <= {"127.0.0.1", "::1"}
    with pytest.raises(NotAllowed):
        resolve(check_url("http://10.0.0.1/", ("127.0.0.0/8", "::/0")), ("127.0.0.0/8", "::/0"))
    assert resolve(check_url("http://8.8.8.8/", ()), ()) == ["8.8.8.8"]
    assert resolve(check_url("http://[2606:4700::1111]/", ()), ()) == ["2606:4700::1111"]
    for wrong in ("", "a b", "https://host", "10.0.0.1/8"):
        with pytest.raises(InvalidArgument):
            parse_host(wrong)


@pytest.mark.parametrize(
    "url",
    ["ftp://host/", "https://", "https:///path", "https://u:p@host/", "https://host:99999/", "https://[::1/"],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument):
        check_url(url, ())


def test_a_private_address_is_refused_when_it_is_sent_to(state: State, receiver: Receiver) -> None:
    hook, _ = webhook(state, receiver.url)
    happen(state)
    closed = replace(state, settings=replace(state.settings, webhook_hosts=()))
    assert send(closed) == 1
    fault = sent(state, hook)[0].fault
    assert fault is not None and "private network" in fault
    assert receiver.received == []


def test_tls_is_checked_for_the_name_though_an_address_is_connected_to(state: State, tmp_path: Path) -> None:
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    context.set_servername_callback(lambda _socket, name, _context: asked.append(name))
    listening = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with listening, pytest.raises(ssl.SSLError), listening.accept()[0] as connection:
            context.wrap_socket(connection, server_side=True).recv(1)

    answering = threading.Thread(target=accept)
    answering.start()
    hook, _ = webhook(state, f"https://localhost:{listening.getsockname()[1]}/")
    happen(state)
    send(replace(state, settings=replace(state.settings, webhook_hosts=("localhost",))))
    answering.join(10)
    assert asked == ["localhost"]
    assert sent(state, hook)[0].fault == "not reached: ConnectError", "nobody vouches for its certificate"


def self_signed(directory: Path) -> Path:
    """A certificate for localhost, with its key, that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    today = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, today, today + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    path = directory / "localhost.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(secret + builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    return path


def test_waits_grow_and_differ() -> None:
    waits = [backoff(attempts) for attempts in range(1, 30)]
    assert 5 <= waits[0] <= 6 and 10 <= waits[1] <= 12 and 4 * 3600 <= waits[-1] <= 1.2 * 4 * 3600
    assert len({backoff(3) for _ in range(20)}) > 10


def test_a_namespace_has_only_so_many_webhooks(state: State) -> None:
    webhook(state, "https://hooks.invalid/")
    with state.database.writing() as connection:
        for _ in range(MOST_WEBHOOKS - 1):
            add_webhook(connection, OWNER, "acme", "https://hooks.invalid/", [PUBLISH])
        with pytest.raises(Conflict):
            add_webhook(connection, OWNER, "acme", "https://hooks.invalid/", [PUBLISH])
        with pytest.raises(NotFound):
            add_webhook(connection, OWNER, "nothing", "https://hooks.invalid/", [PUBLISH])


def test_webhooks_are_tested_switched_off_and_removed_over_http(tmp_path: Path, receiver: Receiver) -> None:
    settings = ServerSettings(data=tmp_path, webhook_hosts=("127.0.0.1",))
    with running_server(tmp_path / "server", settings) as server, server.client() as client:
        client.post("/api/v1/namespaces", json={"name": "acme"})
        path = "/api/v1/namespaces/acme/webhooks"
        refused = client.post(path, json={"url": "http://10.0.0.1/", "events": [PUBLISH]})
        assert (refused.status_code, refused.json()["code"]) == (403, "DR0300")
        assert client.post(path, json={"url": receiver.url, "events": ["everything"]}).status_code == 400
        hook = f"{path}/{client.post(path, json={'url': receiver.url, 'events': [PUBLISH]}).json()['id']}"
        assert client.post(f"{hook}/test").status_code == 202
        (message,) = receiver.wait(1)
        assert json.loads(message.body)["type"] == "ping"
        assert client.patch(hook, json={"enabled": False}).json()["disabled"] is not None
        assert client.post(f"{hook}/test").status_code == 409
        assert client.patch(hook, json={"enabled": True}).json()["disabled"] is None
        assert client.delete(hook).status_code == 204
        assert client.get(f"{hook}/deliveries").status_code == 404
        actions = [each["action"] for each in client.get("/api/v1/audit?namespace=acme").json()["records"]]
    assert actions == ["webhook.delete", "webhook.enable", "webhook.disable", "webhook.create", "namespace.create"]
