"""`deltareg-registry admin`: what an operator does with the database itself, while the server runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deltareg.errors import DeltaregError, NotFound
from deltareg.signing import told_keys
from deltareg_registry.app import open_state
from deltareg_registry.cli.app import app
from deltareg_registry.settings import ServerSettings
from tests.keys import make_key
from tests.servers.deltareg_server import ROOT, RunningServer, running_server


class Operator:
    """Somebody at the machine of a registry."""

    def __init__(self, settings: ServerSettings) -> None:
        self._where = ["--data", str(settings.data)]
        if settings.database is not None:
            self._where += ["--database", settings.database]

    def run(self, *arguments: str) -> str:
        """What a command prints. Raises DeltaregError."""
        result = CliRunner().invoke(app, ["admin", *arguments, *self._where], catch_exceptions=True)
        if result.exception is not None:
            raise result.exception
        return result.stdout

    def json(self, *arguments: str) -> Any:
        """What a command prints for programs."""
        return json.loads(self.run(*arguments, "--json"))

    def fails(self, *arguments: str) -> DeltaregError:
        """The error of a command that fails."""
        with pytest.raises(DeltaregError) as caught:
            self.run(*arguments)
        return caught.value


def test_an_operator_rules_a_registry_while_it_runs(any_settings: ServerSettings) -> None:
    with running_server(any_settings.data, any_settings) as server:
        operator = Operator(any_settings)
        assert operator.json("user", "add", "rita")["admin"] is False
        assert "rita" in operator.run("user", "list") and "owner" in operator.run("user", "list")
        given = operator.json("token", "create", "rita", "--name", "laptop", "--days", "3")
        operator.run("namespace", "create", "acme", "--owner", "owner")
        assert operator.json("member", "set", "acme", "rita", "publisher")["role"] == "publisher"
        assert operator.json("namespace", "quota", "acme", "2GiB")["quota"] == 2 << 30
        with server.client(given["token"]) as client:
            who = client.get("/api/v1/whoami").json()
            assert who["namespaces"] == [{"namespace": "acme", "role": "publisher"}]
            assert client.get("/api/v1/namespaces/acme").json()["quota"] == 2 << 30
            operator.run("user", "disable", "rita")
            assert client.get("/api/v1/whoami").status_code == 401
            operator.run("user", "enable", "rita")
            assert client.get("/api/v1/whoami").status_code == 200
            assert "rita is no longer a member" in operator.run("member", "remove", "acme", "rita")
            assert client.get("/api/v1/namespaces/acme").status_code == 404
            assert operator.json("token", "revoke", given["id"])["revoked"] is not None
            assert client.get("/api/v1/whoami").status_code == 401
        (kept,) = operator.json("token", "list", "rita")["tokens"]
        assert (kept["name"], "token" in kept) == ("laptop", False)
        assert given["token"] not in operator.run("token", "list")
        assert operator.json("namespace", "quota", "acme", "none")["quota"] is None
        (row,) = operator.json("namespace", "list")["namespaces"]
        assert (row["name"], row["used"], row["versions"]) == ("acme", 0, 0)
        assert "acme" in operator.run("namespace", "list")
        with server.client() as client:
            told = client.get("/api/v1/audit").json()["records"]
        assert {"user.create", "token.create", "token.revoke", "namespace.change", "member.remove", "user.change"} <= {
            one["action"] for one in told if one["actor"] is None
        }


def test_a_token_is_limited_to_its_scopes(server: RunningServer) -> None:
    operator = Operator(server.state.settings)
    scopes = ["--scope", "acme:publish", "--scope", "*:read"]
    given = operator.json("token", "create", "owner", *scopes, "--expires", "2100-01-01")
    assert given["scopes"] == [
        {"namespace": "acme", "action": "publish"},
        {"namespace": "*", "action": "read"},
    ]
    assert given["expires"].startswith("2100-01-01T00:00:00")
    assert "acme:publish *:read" in operator.run("token", "list", "owner")
    with server.client(given["token"]) as client:
        assert client.post("/api/v1/tokens", json={"name": "more"}).status_code == 403


def test_an_operator_sets_who_has_to_sign(any_settings: ServerSettings, tmp_path: Path) -> None:
    first, second = make_key(tmp_path, "first"), make_key(tmp_path, "second")
    with running_server(any_settings.data, any_settings) as server:
        operator = Operator(any_settings)
        operator.run("namespace", "create", "acme", "--owner", "owner")
        with server.client() as client:
            client.patch("/api/v1/namespaces/acme", json={"policy": {"deletion": True}}).raise_for_status()
            assert operator.run("namespace", "signers", "acme") == ""
            both = ["--key", str(first.public), "--key", str(second.public), "--key", str(first.public)]
            signers = operator.json("namespace", "signers", "acme", *both)["signers"]
            assert [one["pem"] for one in signers] == [first.public.read_text(), second.public.read_text()]
            told = client.get("/api/v1/namespaces/acme").json()["policy"]
            assert told == {"deletion": True, "signedBy": [one["pem"] for one in signers]}
            # What a client calls them.
            known = told_keys(server.url, "acme", told["signedBy"])
            shown = operator.run("namespace", "signers", "acme")
            assert [one["fingerprint"] for one in signers] == [key.fingerprint for key in known]
            assert all(key.fingerprint in shown for key in known)
            assert operator.json("namespace", "signers", "acme", "--none")["signers"] == []
            assert client.get("/api/v1/namespaces/acme").json()["policy"] == {"deletion": True, "signedBy": []}


def test_keys_that_nobody_could_sign_with_are_refused(server: RunningServer, tmp_path: Path) -> None:
    operator, key = Operator(server.state.settings), make_key(tmp_path, "acme")
    operator.run("namespace", "create", "acme", "--owner", "owner")
    (tmp_path / "text.pem").write_text("no key")
    (tmp_path / "more.pem").write_text(key.public.read_text() + "and more")
    (tmp_path / "bytes.pem").write_bytes(b"\xff" * 100)
    (tmp_path / "broken.pem").write_text(key.public.read_text().replace("M", "N", 1))
    for name, message in {
        "absent.pem": "is no file",
        "text.pem": "is not one PEM public key after another",
        "more.pem": "is not one PEM public key after another",
        "bytes.pem": "is not one PEM public key after another",
        "broken.pem": "is no public key in PEM form",
        key.private.name: "is a private key",
    }.items():
        assert message in operator.fails("namespace", "signers", "acme", "--key", str(tmp_path / name)).message, name
    public = str(key.public)
    assert operator.fails("namespace", "signers", "acme", "--key", public, "--none").code == "DR0100"
    assert operator.fails("namespace", "signers", "other", "--key", public).message == "there is no namespace other"
    assert operator.fails("namespace", "signers", "other").code == "DR0002"
    many = tmp_path / "many.pem"
    many.write_text("".join(make_key(tmp_path, f"{number}").public.read_text() for number in range(21)))
    assert "21 keys are too many" in operator.fails("namespace", "signers", "acme", "--key", str(many)).message
    assert operator.json("namespace", "signers", "acme")["signers"] == []


def test_mistakes_of_an_operator_are_told(server: RunningServer) -> None:
    operator = Operator(server.state.settings)
    operator.run("user", "add", "rita")
    operator.run("namespace", "create", "acme", "--owner", "rita")
    told = {
        ("user", "add", "rita"): "there is a user rita already",
        ("user", "add", "Rita"): "'Rita' cannot be the name of a user",
        ("user", "disable", "owner"): "owner is the last administrator",
        ("user", "disable", "nobody"): "there is no user nobody",
        ("token", "create", "nobody"): "there is no user nobody",
        ("token", "create", "rita", "--scope", "acme"): "'acme' is no scope",
        ("token", "create", "rita", "--expires", "soon"): "'soon' is not a time",
        ("token", "create", "rita", "--days", "0"): "0 days are not allowed",
        ("token", "create", "rita", "--name", ""): "'' cannot be a token's name",
        ("token", "list", "nobody"): "there is no user nobody",
        ("token", "revoke", "0" * 16): f"there is no token {'0' * 16}",
        ("namespace", "create", "acme", "--owner", "rita"): "there is a namespace acme already",
        ("namespace", "create", "other", "--owner", "nobody"): "there is no user nobody",
        ("namespace", "quota", "other", "1"): "there is no namespace other",
        ("namespace", "quota", "acme", "much"): "'much' is no size",
        ("member", "set", "acme", "rita", "king"): "'king' is no role",
        ("member", "set", "acme", "rita", "reader"): "rita is the last owner of acme",
        ("member", "remove", "acme", "rita"): "rita is the last owner of acme",
    }
    for arguments, message in told.items():
        assert operator.fails(*arguments).message == message, arguments
    assert operator.fails("namespace", "quota", "other", "1").hint == (
        "deltareg-registry admin namespace list --data DIR"
    )
    operator.run("user", "add", "mia")
    assert operator.fails("member", "remove", "acme", "mia").message == "mia is not a member of acme"
    assert operator.fails("member", "remove", "acme", "mia").hint == "its members are rita"


def test_an_empty_registry_says_what_to_type(tmp_path: Path) -> None:
    open_state(ServerSettings(data=tmp_path)).database.close()
    for arguments, hint in {
        ("user", "list"): f"deltareg-registry admin user add NAME --data {tmp_path}",
        ("token", "list"): f"deltareg-registry admin token create USER --data {tmp_path}",
        ("namespace", "list"): f"deltareg-registry admin namespace create NAME --owner USER --data {tmp_path}",
    }.items():
        result = CliRunner().invoke(app, ["admin", *arguments, "--data", str(tmp_path)])
        assert (result.exit_code, result.stdout) == (0, ""), result.output
        assert hint in result.stderr
    assert Operator(ServerSettings(data=tmp_path)).json("user", "list")["users"] == []


def test_restoring_what_is_no_copy_makes_no_registry(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for copy in ("absent", "empty"):
        arguments = ["restore", str(tmp_path / copy), "--data", str(tmp_path / "new")]
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, NotFound)
        assert "there is no copy of a registry" in result.exception.message
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_errors_are_told_to_people_and_to_programs(tmp_path: Path) -> None:
    done = command("admin", "user", "list", "--data", str(tmp_path), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "DR0002"
    assert done.stderr.splitlines() == [
        f"error[DR0002]: there is no registry in {tmp_path}",
        "cause: it has no registry.db",
        f"hint: check --data; a new registry is made by deltareg-registry serve --data {tmp_path}",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["gc"], ["fsck"], ["backup", "copy"]], ids=lambda given: given[0])
def test_a_misspelt_directory_does_not_become_an_empty_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    (tmp_path / "other").mkdir()
    for name, cause in (("absent", "it is no directory"), ("file", "it is no directory"), ("other", "no registry.db")):
        result = CliRunner().invoke(app, [*arguments, "--data", name])
        assert isinstance(result.exception, NotFound)
        assert result.exception.message == f"there is no registry in {tmp_path / name}"
        assert cause in (result.exception.cause or "")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "other"]


def test_a_host_that_webhooks_may_reach_is_checked_when_the_server_starts(tmp_path: Path) -> None:
    done = command("serve", "--data", str(tmp_path), "--webhook-host", "10.0.0.1/8")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'10.0.0.1/8' is not a network" in done.stderr


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'registry'}", "NO_COLOR": "1"}
    program = [sys.executable, "-c", "from deltareg_registry.cli import main; main()", *arguments]
    return subprocess.run(program, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60)
