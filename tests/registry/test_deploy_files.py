"""registry/deploy: what can be checked of it where there is no container engine and no systemd."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from deltareg_registry.cli.app import app
from deltareg_registry.database import Database
from deltareg_registry.metrics import Metrics
from deltareg_registry.records.upkeep import claim_run, end_run
from tests.servers.deltareg_server import ROOT
from tests.servers.process import find

DEPLOY = ROOT / "registry" / "deploy"
ENVIRONMENT = dict(
    line.split("=", 1)
    for line in (DEPLOY / "registry.env.example").read_text().splitlines()
    if line and not line.startswith("#")
)


def parsed(arguments: Iterable[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options of `serve`, as the program itself reads arguments and environment."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    root: Any = typer.main.get_command(app)
    name, *rest = arguments
    command = root.commands[name]
    return command.make_context(name, list(rest)).params


def directive(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def test_compose_file_starts_servers_as_the_program_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    upstream = (DEPLOY / "nginx-upstream-compose.conf").read_text()
    monkeypatch.setenv("DELTAREG_REGISTRY_DATA", "/data")
    servers = [name for name, service in services.items() if service.get("image") == "deltareg-registry"]
    assert len(servers) == 2
    for name in servers:
        options = parsed(services[name]["command"], monkeypatch)
        assert options["database"] == ENVIRONMENT["DELTAREG_REGISTRY_DATABASE"]
        assert options["storage"] == ENVIRONMENT["DELTAREG_REGISTRY_STORAGE"]
        assert f"server {name}:{options['port']} " in upstream
        assert options["drain"] < float(services[name]["stop_grace_period"].removesuffix("s"))
    subnet = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["networks"]["inside"]["ipam"]["config"][0]["subnet"]
    assert options["proxy"] == [subnet]


def test_passwords_of_the_example_agree() -> None:
    identity = json.loads((DEPLOY / "s3.json").read_text())["identities"][0]
    (credentials,) = identity["credentials"]
    assert credentials == {
        "accessKey": ENVIRONMENT["AWS_ACCESS_KEY_ID"],
        "secretKey": ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
    }
    user, password = ENVIRONMENT["POSTGRES_USER"], ENVIRONMENT["POSTGRES_PASSWORD"]
    database = f"postgresql://{user}:{password}@database/{ENVIRONMENT['POSTGRES_DB']}"
    assert ENVIRONMENT["DELTAREG_REGISTRY_DATABASE"] == database


def test_container_starts_a_server_as_the_program_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DEPLOY / "Containerfile").read_text()
    assert re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE) == ['["deltareg-registry"]']
    monkeypatch.setenv("DELTAREG_REGISTRY_DATA", "/data")
    options = parsed(json.loads(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[0]), monkeypatch)
    assert f"EXPOSE {options['port']}\n" in text and f"127.0.0.1:{options['port']}/healthz" in text
    for source in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)[0].split():
        assert (ROOT / source).exists()


def test_unit_is_one_that_systemd_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DEPLOY / "deltareg-registry@.service").read_text()
    (command,) = directive(text, "ExecStart")
    monkeypatch.setenv("DELTAREG_REGISTRY_DATA", "/var/lib/deltareg")
    options = parsed(shlex.split(command.replace("%i", "8401"))[1:], monkeypatch)
    assert options["drain"] < float(directive(text, "TimeoutStopSec")[0])
    locations = (DEPLOY / "nginx-locations.conf").read_text()
    assert f"location {options['accel']}/ {{" in locations and f"alias {options['data']}/storage/;" in locations
    # The programs and users that it names are not on this machine.
    made = text.replace("/usr/local/lib/deltareg/bin/deltareg-registry", "/bin/true").replace(
        "=deltareg\n", "=root\n", 2
    )
    unit = tmp_path / "deltareg-registry@8401.service"
    unit.write_text(made)
    verify = [find("systemd-analyze", "systemd"), "verify", "--man=no", unit]
    told = subprocess.run(verify, capture_output=True, text=True)
    assert [line for line in told.stderr.splitlines() if "deltareg-registry" in line] == []


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    subject = ["-subj", "/CN=registry.example.com", "-days", "1", "-nodes"]
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *subject]
    files = ["-keyout", str(tmp_path / "privkey.pem"), "-out", str(tmp_path / "fullchain.pem")]
    subprocess.run([find("openssl", "openssl"), *made, *files], check=True, capture_output=True)
    for name in ("nginx.conf", "nginx-locations.conf", "nginx-upstream.conf"):
        text = (DEPLOY / name).read_text().replace("/etc/nginx/tls/", f"{tmp_path}/")
        text = text.replace("/etc/nginx/deltareg-", f"{tmp_path}/nginx-")
        text = re.sub(r"listen (\[::\]:)?(80|443)", lambda found: f"listen {found[1] or ''}1{found[2]}", text)
        (tmp_path / name).write_text(text)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = " ".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds)
    main = tmp_path / "main.conf"
    main.write_text(
        f"pid {tmp_path}/pid; events {{}} http {{ access_log off; {paths} include {tmp_path}/nginx.conf; }}"
    )
    told = subprocess.run(
        [find("nginx", "nginx-light"), "-e", "stderr", "-t", "-p", tmp_path, "-c", main], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert [line for line in told.stderr.splitlines() if "[warn]" in line] == []


def test_wheels_hold_all_that_a_server_needs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("deltareg", "registry"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheels, places = tmp_path / "wheels", [source, source / "registry"]
    # Without isolation and dependencies: what the build would fetch is installed here already.
    made = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", wheels, *places]
    subprocess.run(made, check=True, capture_output=True)
    installed = [*pip, "install", "--no-deps", "--no-index", "--target", tmp_path / "site", *sorted(wheels.iterdir())]
    subprocess.run(installed, check=True, capture_output=True)
    program = [sys.executable, tmp_path / "site" / "bin" / "deltareg-registry"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "DELTAREG_REGISTRY_DATA": str(tmp_path / "data")}
    server = subprocess.Popen(
        [*program, "serve", "--port", "0"], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    )
    try:
        assert server.stdout is not None and server.stdout.readline().startswith("serving http")
    finally:
        server.terminate()
        server.communicate(timeout=10)
    told = subprocess.run(
        [*program, "admin", "user", "list", "--json"], capture_output=True, env=environment, cwd=tmp_path, check=True
    )
    assert json.loads(told.stdout)["users"][0]["name"] == "owner"


def test_commands_of_the_guide_are_those_of_the_program() -> None:
    guide = (ROOT / "docs" / "operating.md").read_text()
    commands = re.findall(r"^deltareg-registry (.*)$", guide, re.MULTILINE)
    assert len(commands) > 10
    for line in commands:
        command: Any = typer.main.get_command(app)
        rest = shlex.split(line)
        while hasattr(command, "commands"):
            name, *rest = rest
            command = command.commands[name]
        command.make_context(name, rest)


def test_options_that_the_guide_names_exist() -> None:
    guide = (ROOT / "docs" / "operating.md").read_text()
    root: Any = typer.main.get_command(app)
    commands, known = [root], set[str]()
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        known |= {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    named = {found for code in re.findall(r"`([^`\n]+)`", guide) for found in re.findall(r"--[a-z-]+", code)}
    assert len(named) > 8 and named <= known


def test_metrics_of_the_guide_are_those_that_are_told(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "operating.md").read_text()
    named = set(re.findall(r"`((?:deltareg_registry|process)_[a-z_]+)", guide))
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    database.upgrade()
    with database.writing() as connection:
        claim_run(connection, "gc", 0)
        end_run(connection, "gc")
    metrics = Metrics(database)
    metrics.count("/api/v1", "GET", 200, 0.1, 0, 0)
    text = metrics.text().decode()
    told = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    database.close()
    assert named <= told
    assert {name for name in told if name.startswith("deltareg_registry") and not name.endswith("_created")} <= named


def test_blobs_that_nginx_sends_itself_ask_for_https_too() -> None:
    told = r"^ *(add_header Strict-Transport-Security .*;)$"
    whole = re.findall(told, (DEPLOY / "nginx.conf").read_text(), re.MULTILINE)
    stored = (DEPLOY / "nginx-locations.conf").read_text().partition("location /stored/ {")[2]
    assert re.findall(told, stored, re.MULTILINE) == whole and len(whole) == 1
