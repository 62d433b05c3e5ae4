"""Where secrets are kept, and whom they are sent to."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keyring
import pytest

from deltareg.errors import BadConfig, DiskFull, NotAllowed, UsageError
from deltareg.remote import open_remote
from deltareg.remote.credentials import Credentials, Secret, server_secret
from deltareg.remote.docker import find_docker_secret
from deltareg.remote.network import Network, parse_address
from deltareg.remote.oci_remote import registry_secret
from tests.disks import read_only, small_disk
from tests.remote.keyring_in_memory import LockedKeyring, MemoryKeyring

KEY = "https://deltas.acme.org"
SECRET = "a-token-that-nobody-may-see"


@pytest.fixture
def kept(tmp_path: Path) -> Credentials:
    return Credentials(tmp_path / "config" / "credentials.json")


@pytest.fixture
def ring() -> Iterator[type[MemoryKeyring]]:
    before = keyring.get_keyring()
    keyring.set_keyring(MemoryKeyring())
    MemoryKeyring.secrets.clear()
    yield MemoryKeyring
    keyring.set_keyring(before)


# --- the file ---


def test_secret_is_kept_in_a_file_that_others_cannot_read(kept: Credentials) -> None:
    before = os.umask(0)
    try:
        assert kept.keep(KEY, Secret(SECRET, "ann")) == str(kept.path)
    finally:
        os.umask(before)
    assert kept.path.stat().st_mode & 0o777 == 0o600
    assert kept.path.parent.stat().st_mode & 0o777 == 0o700
    assert Credentials(kept.path).find(KEY) == Secret(SECRET, "ann")
    assert kept.find("https://other.acme.org") is None
    assert sorted(path.name for path in kept.path.parent.iterdir()) == ["credentials.json", "credentials.lock"]


def test_secret_is_replaced_and_forgotten(kept: Credentials) -> None:
    kept.keep(KEY, Secret("old"))
    kept.keep(KEY, Secret(SECRET))
    kept.keep("oci://registry", Secret("other", "ann"))
    assert kept.find(KEY) == Secret(SECRET)
    assert kept.forget(KEY)
    assert not kept.forget(KEY)
    assert kept.find(KEY) is None
    assert kept.find("oci://registry") == Secret("other", "ann")
    assert SECRET not in kept.path.read_text()


def test_nothing_is_kept_where_nobody_logged_in(kept: Credentials) -> None:
    assert kept.find(KEY) is None
    assert not kept.forget(KEY)
    assert not kept.path.parent.exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602])
def test_file_that_others_may_touch_is_refused(kept: Credentials, mode: int) -> None:
    kept.keep(KEY, Secret(SECRET))
    kept.path.chmod(mode)
    for ask in (lambda: kept.find(KEY), lambda: kept.forget(KEY), lambda: kept.keep(KEY, Secret("x"))):
        with pytest.raises(NotAllowed, match="others may read it") as raised:
            ask()
        assert f"chmod 600 {kept.path}" in (raised.value.hint or "")
    kept.path.chmod(0o600)
    assert kept.find(KEY) == Secret(SECRET)


@pytest.mark.parametrize("text", ["", "{", "[]", f'{{"remotes": {{"{KEY}": {{"secret": ["{SECRET}"]}}}}}}'])
def test_damaged_file_is_told_without_what_is_in_it(kept: Credentials, text: str) -> None:
    kept.keep(KEY, Secret(SECRET))
    kept.path.write_text(text)
    with pytest.raises(BadConfig) as raised:
        kept.find(KEY)
    assert SECRET not in str(raised.value.as_dict())
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_of_several_logins_at_once_none_is_lost(kept: Credentials) -> None:
    keys = [f"https://host-{number}" for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: Credentials(kept.path).keep(key, Secret(key)), keys))
    assert [kept.find(key) for key in keys] == [Secret(key) for key in keys]


def test_full_disk_leaves_what_was_kept(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        kept = Credentials(disk / "credentials.json")
        kept.keep(KEY, Secret(SECRET))
        with pytest.raises(DiskFull):
            kept.keep("https://other", Secret("x" * 200_000))
        assert kept.find(KEY) == Secret(SECRET)
        assert not [path for path in disk.iterdir() if path.name.startswith(".")]


def test_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    with read_only(tmp_path / "config"), pytest.raises(NotAllowed):
        Credentials(tmp_path / "config" / "credentials.json").keep(KEY, Secret(SECRET))


def test_secrets_do_not_show_themselves() -> None:
    assert SECRET not in repr(Secret(SECRET, "ann"))
    assert SECRET not in repr(Network.of({"DELTAREG_TOKEN": SECRET}, [KEY]))


# --- the keyring ---


def test_keyring_is_preferred_and_the_file_does_not_hold_the_secret(
    kept: Credentials, ring: type[MemoryKeyring]
) -> None:
    assert kept.keep(KEY, Secret(SECRET, "ann")) == "the keyring"
    assert SECRET not in kept.path.read_text()
    assert kept.find(KEY) == Secret(SECRET, "ann")
    assert kept.forget(KEY)
    assert ring.secrets == {}
    assert kept.find(KEY) is None


def test_secret_moves_from_the_file_to_a_keyring_that_came_later(
    kept: Credentials, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kept.keep(KEY, Secret("old"))
    request.getfixturevalue("ring")
    assert kept.find(KEY) == Secret("old")
    kept.keep(KEY, Secret(SECRET))
    assert "old" not in kept.path.read_text()
    assert kept.find(KEY) == Secret(SECRET)


def test_keyring_that_is_locked_is_told_and_gone_around(kept: Credentials, ring: type[MemoryKeyring]) -> None:
    kept.keep(KEY, Secret(SECRET))
    keyring.set_keyring(LockedKeyring())
    with pytest.raises(NotAllowed, match="keyring") as raised:
        kept.find(KEY)
    assert f"deltareg login {KEY}" in (raised.value.hint or "")
    with pytest.raises(NotAllowed, match="does not let go"):
        kept.forget(KEY)
    keyring.set_keyring(MemoryKeyring())
    assert kept.find(KEY) == Secret(SECRET)
    keyring.set_keyring(LockedKeyring())
    assert kept.keep(KEY, Secret("new")) == str(kept.path)
    assert kept.find(KEY) == Secret("new")
    assert kept.forget(KEY)


def test_secret_that_somebody_took_out_of_the_keyring_is_forgotten(
    kept: Credentials, ring: type[MemoryKeyring]
) -> None:
    kept.keep(KEY, Secret(SECRET))
    ring.secrets.clear()
    assert kept.forget(KEY)
    assert not kept.forget(KEY)


def test_secret_in_a_keyring_that_is_gone_is_not_told_to_be_forgotten(
    kept: Credentials, request: pytest.FixtureRequest
) -> None:
    before = keyring.get_keyring()
    request.getfixturevalue("ring")
    kept.keep(KEY, Secret(SECRET))
    keyring.set_keyring(before)
    with pytest.raises(NotAllowed, match="does not let go"):
        kept.forget(KEY)


# --- whom the token of the environment is for ---


def token_at(url: str, meant: list[str], kept: Credentials) -> str | None:
    found = server_secret(parse_address(url), Network.of({"DELTAREG_TOKEN": SECRET}, meant), kept)
    return None if found is None else found.password


@pytest.mark.parametrize(
    "url", [KEY, f"{KEY}/", f"{KEY}:443/deltas", "HTTPS://Deltas.Acme.ORG/x", "https://deltas.acme.org/other"]
)
def test_token_of_the_environment_goes_to_the_server_that_is_meant(kept: Credentials, url: str) -> None:
    assert token_at(url, [KEY], kept) == SECRET


@pytest.mark.parametrize(
    "url",
    [
        "https://deltas.acme.org.evil.org",
        "https://evil.org/deltas.acme.org",
        "https://deltas.acme.org:8443",
        "http://deltas.acme.org",
        "http://deltas.acme.org:443",
        "https://acme.org",
    ],
)
def test_token_of_the_environment_goes_to_no_other_server(kept: Credentials, url: str) -> None:
    assert token_at(url, [KEY, "/mnt/share", "oci://evil.org", "s3://evil"], kept) is None


def test_token_of_the_environment_goes_before_what_is_kept(kept: Credentials) -> None:
    kept.keep(KEY, Secret("kept"))
    assert token_at(KEY, [KEY], kept) == SECRET
    assert token_at(KEY, [], kept) == "kept"
    assert token_at("https://other.acme.org", [], kept) is None


def test_token_of_the_environment_is_not_sent_where_others_listen(kept: Credentials) -> None:
    with pytest.raises(NotAllowed, match="without TLS"):
        token_at("http://deltas.acme.org", ["http://deltas.acme.org"], kept)
    for url in ("http://127.0.0.1:8000", "http://localhost", "http://[::1]:8000"):
        assert token_at(url, [url], kept) == SECRET
    with pytest.raises(NotAllowed):
        token_at("http://127.0.0.1.evil.org", ["http://127.0.0.1.evil.org"], kept)


@pytest.mark.parametrize("text", ["two words", "line\nline", "ä", "\x00"])
def test_what_no_header_can_hold_is_no_token(text: str) -> None:
    with pytest.raises(BadConfig) as raised:
        Network.of({"DELTAREG_TOKEN": text})
    assert text not in raised.value.message


# --- URLs ---


@pytest.mark.parametrize(
    "url",
    [
        *("https://ann:sec/ret@host/x", "https://ann:sec?ret@host", "oci://ann:sec#ret@host", "hf://ann:secret@acme"),
        *("hf://secret@acme", "file://ann:secret@host/x"),
    ],
)
def test_password_that_ends_an_address_is_not_shown(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        open_remote(url)
    assert "sec" not in str(raised.value.as_dict())


@pytest.mark.parametrize("url", ["https://ann:secret@host/x", "oci://ann:secret@host", "https://secret@host"])
def test_url_with_a_password_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(UsageError, match="password") as raised:
        parse_address(url)
    assert "secret" not in str(raised.value.as_dict()).replace("keep the secret apart", "")
    assert "deltareg login" in (raised.value.hint or "")


@pytest.mark.parametrize(
    "url",
    [
        *("https://", "https:///x", "https://host:port", "https://host:99999", "https://ho st", "https://host/a b"),
        *("https://host?token=secret", "https://host/#x", "https://host/../x", "https://-", "ftp://host"),
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_address(url)
    assert "secret" not in str(raised.value.as_dict())


def test_address_is_written_in_one_way() -> None:
    address = parse_address("OCI://Registry.Acme.org:443//deltas/")
    assert (address.url, address.origin, address.path) == (
        "oci://registry.acme.org/deltas",
        "https://registry.acme.org",
        "/deltas",
    )
    assert parse_address("oci+http://[::1]:5000").origin == "http://[::1]:5000"


# --- docker's files ---


def packed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def docker_config(home: Path, config: object) -> dict[str, str]:
    (home / ".docker").mkdir(parents=True, exist_ok=True)
    (home / ".docker" / "config.json").write_text(json.dumps(config))
    return {"HOME": str(home)}


@pytest.mark.parametrize("key", ["registry:5000", "https://registry:5000", "http://registry:5000/v2/"])
def test_login_of_docker_is_found(tmp_path: Path, key: str) -> None:
    environment = docker_config(tmp_path, {"auths": {key: {"auth": packed("ann:pass:word")}}})
    assert find_docker_secret("registry:5000", "/deltas", environment) == Secret("pass:word", "ann")
    assert find_docker_secret("registry", "", environment) is None


def test_login_of_podman_is_found_by_the_narrowest_path(tmp_path: Path) -> None:
    (tmp_path / "containers").mkdir()
    auths = {"registry": {"auth": packed("all:a")}, "registry/acme": {"auth": packed("ann:b")}}
    (tmp_path / "containers" / "auth.json").write_text(json.dumps({"auths": auths}))
    environment = {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path)}
    assert find_docker_secret("registry", "/acme/deltas", environment) == Secret("b", "ann")
    assert find_docker_secret("registry", "/acmeister", environment) == Secret("a", "all")


def test_docker_hub_has_a_key_of_its_own(tmp_path: Path) -> None:
    auths = {"https://index.docker.io/v1/": {"auth": packed("ann:b")}}
    assert find_docker_secret("registry-1.docker.io", "", docker_config(tmp_path, {"auths": auths})) == Secret(
        "b", "ann"
    )


def test_identity_token_is_found(tmp_path: Path) -> None:
    auths = {"registry": {"auth": packed("ann:"), "identitytoken": "refresh"}}
    found = find_docker_secret("registry", "", docker_config(tmp_path, {"auths": auths}))
    assert found == Secret("refresh", identity=True)


@pytest.mark.parametrize("config", [{"credHelpers": {"registry": "tests"}}, {"credsStore": "tests"}])
def test_program_that_keeps_secrets_is_asked(
    tmp_path: Path, config: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "docker-credential-tests"
    program.write_text(
        '#!/bin/sh\nread -r server\n[ "$1 $server" = "get registry" ] || { echo not found; exit 1; }\n'
        'echo \'{"ServerURL": "registry", "Username": "ann", "Secret": "b"}\'\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    environment = docker_config(tmp_path, config)
    assert find_docker_secret("registry", "", environment) == Secret("b", "ann")
    assert find_docker_secret("other", "", environment) is None


@pytest.mark.parametrize("helper", ["no-such-program", "../../bin/sh", "", 7, None])
def test_program_that_is_not_there_is_done_without(tmp_path: Path, helper: object) -> None:
    config = {"credsStore": helper, "auths": {"registry": {"auth": packed("ann:b")}}}
    assert find_docker_secret("registry", "", docker_config(tmp_path, config)) == Secret("b", "ann")


@pytest.mark.parametrize("auths", [None, [], {"registry": 7}, {"registry": {"auth": "%"}}, {"registry": {}}])
def test_entry_that_cannot_be_read_is_none(tmp_path: Path, auths: object) -> None:
    assert find_docker_secret("registry", "", docker_config(tmp_path, {"auths": auths})) is None


@pytest.mark.parametrize("entry", [{"username": "\ud800", "password": "b"}, {"identitytoken": "\ud800"}])
def test_secret_that_is_no_text_is_none(tmp_path: Path, entry: dict[str, str]) -> None:
    assert find_docker_secret("registry", "", docker_config(tmp_path, {"auths": {"registry": entry}})) is None


def docker_helper(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = directory / "docker-credential-tests"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    "script",
    [
        *("printf '\\377'", "echo '[1]'", "exit 1", "head -c 100000 /dev/zero | tr '\\0' '['", "kill -9 $$"),
        """echo '{"Username": "\\ud800", "Secret": "b"}'""",
    ],
)
def test_program_that_says_no_secret_is_done_without(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker_helper(tmp_path, script, monkeypatch)
    config = {"credsStore": "tests", "auths": {"registry": {"auth": packed("ann:b")}}}
    assert find_docker_secret("registry", "", docker_config(tmp_path, config)) == Secret("b", "ann")


def test_program_that_hangs_is_asked_once_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker_helper(tmp_path, f"echo >> {tmp_path}/asked; exec sleep 20", monkeypatch)
    environment = docker_config(tmp_path, {"credsStore": "tests"})
    with pytest.raises(NotAllowed, match="docker-credential-tests does not answer"):
        find_docker_secret("registry", "/a/b", environment, seconds=0.5)
    assert (tmp_path / "asked").read_text() == "\n"


def test_program_that_prints_without_end_is_told_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker_helper(tmp_path, "exec yes", monkeypatch)
    environment = docker_config(tmp_path, {"credsStore": "tests"})
    begun = time.monotonic()
    with pytest.raises(NotAllowed, match="docker-credential-tests does not answer") as raised:
        find_docker_secret("registry", "", environment, seconds=20)
    assert raised.value.cause == "it printed more than 1048576 bytes"
    assert time.monotonic() - begun < 10


def test_login_of_docker_is_not_sent_where_others_listen(
    kept: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = docker_config(tmp_path, {"auths": {"registry": {"auth": packed("ann:b")}}})
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", environment["HOME"])
    assert registry_secret(parse_address("oci://registry/x"), kept) == Secret("b", "ann")
    with pytest.raises(NotAllowed, match="docker or podman") as raised:
        registry_secret(parse_address("oci+http://registry/x"), kept)
    assert "login --insecure" in (raised.value.hint or "")
    assert registry_secret(parse_address("oci+http://other/x"), kept) is None
    kept.keep("oci+http://registry", Secret("c", "ann"))
    assert registry_secret(parse_address("oci+http://registry/x"), kept) == Secret("c", "ann")


def test_file_of_docker_that_is_no_json_is_told_without_what_is_in_it(tmp_path: Path) -> None:
    environment = docker_config(tmp_path, {})
    (tmp_path / ".docker" / "config.json").write_text('{"auth": "secret"')
    with pytest.raises(BadConfig) as raised:
        find_docker_secret("registry", "", environment)
    assert '"secret"' not in str(raised.value.as_dict())
