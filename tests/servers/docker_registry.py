"""A real OCI registry on loopback: the one of the Distribution project, as Debian ships it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bcrypt

from tests.servers.process import answers_http, find, keep, scratch

__all__ = ["DockerRegistry", "serve_docker_registry"]


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
    program = find("docker-registry", "docker-registry")
    with scratch("docker-registry") as directory:
        config = {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {
                "filesystem": {"rootdirectory": str(directory / "storage")},
                "delete": {"enabled": deletion},
                "maintenance": {"readonly": {"enabled": read_only}},
            },
        }
        if users is not None:
            (directory / "users").write_text("".join(_line(*user) for user in users.items()))
            config["auth"] = {"htpasswd": {"realm": "tests", "path": str(directory / "users")}}

        def command(ports: list[int]) -> list[str | Path]:
            listening = {"http": {"addr": f"127.0.0.1:{ports[0]}", "secret": "only for tests"}}
            # YAML holds JSON
            (directory / "config.yml").write_text(json.dumps(config | listening))
            return [program, "serve", directory / "config.yml"]

        with keep(directory, command, lambda ports: answers_http(f"http://127.0.0.1:{ports[0]}/v2/")) as ports:
            yield DockerRegistry(f"127.0.0.1:{ports[0]}")


def _line(name: str, password: str) -> str:
    # Few rounds: each request asks for the password again.
    return f"{name}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n"
