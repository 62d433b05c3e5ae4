"""A real OCI registry on loopback: the one of the Distribution project, as Debian ships it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["DockerRegistry", "serve_docker_registry"]

_PATIENCE = 60


@dataclass(frozen=True)
class DockerRegistry:
    """A running registry."""

    host: str
    """`127.0.0.1:PORT`, as references of images begin."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}"


@contextmanager
def serve_docker_registry(
    *, deletion: bool = True, users: Mapping[str, str] | None = None, read_only: bool = False
) -> Iterator[DockerRegistry]:
    """Run an empty registry as long as the body runs.

    `users` are the passwords of those whom it knows; without them it asks nobody who they are. Where it is `read_only`,
    it refuses every push, as it refuses every deletion unless `deletion`.
    """
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not on this machine (Debian: apt-get install docker-registry)")
    with tempfile.TemporaryDirectory(prefix="deltareg-docker-registry-") as name, socket.socket() as free:
        directory = Path(name)
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        config = {
            "version": 0.1,
            "log": {"level": "warn"},
            "http": {"addr": host, "secret": "only for tests"},
            "storage": {
                "filesystem": {"rootdirectory": str(directory / "storage")},
                "delete": {"enabled": deletion},
                "maintenance": {"readonly": {"enabled": read_only}},
            },
        }
        if users is not None:
            (directory / "users").write_text("".join(_line(*user) for user in users.items()))
            config["auth"] = {"htpasswd": {"realm": "tests", "path": str(directory / "users")}}
        # YAML holds JSON
        (directory / "config.yml").write_text(json.dumps(config))
        with (directory / "log").open("wb") as log:
            server = subprocess.Popen([program, "serve", directory / "config.yml"], stdout=log, stderr=log)
        try:
            _wait(server, f"http://{host}/v2/", directory / "log")
            yield DockerRegistry(host)
        finally:
            server.kill()
            server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"the registry does not start: {log.read_text(errors='replace')[-2000:]}")


def _line(name: str, password: str) -> str:
    import bcrypt

    # Few rounds: each request asks for the password again.
    return f"{name}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n"
