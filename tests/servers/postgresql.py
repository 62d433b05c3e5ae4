"""A real PostgreSQL on loopback, of a cluster of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.servers.process import Outage, find, keep, scratch

__all__ = ["PostgreSQL", "serve_postgresql"]

_USER = "deltareg"


class PostgreSQL:
    """A running server, on which nobody needs a password."""

    def __init__(self, programs: Path, port: int, directory: Path) -> None:
        self.port = port
        self.outage = Outage(directory)
        """Of a server that was started for it."""
        self._programs = programs
        self._databases = 0

    @contextmanager
    def database(self) -> Iterator[str]:
        """A new, empty database; gives its URL. In the end its connections are cut and it is dropped."""
        self._databases += 1
        name = f"database_{self._databases}"
        self._administrate("createdb", name)
        try:
            yield f"postgresql://{_USER}@127.0.0.1:{self.port}/{name}"
        finally:
            self._administrate("dropdb", "--force", name)

    def _administrate(self, program: str, *arguments: str) -> None:
        where = ("--host=127.0.0.1", f"--port={self.port}", f"--username={_USER}")
        subprocess.run([self._programs / program, *where, *arguments], check=True, capture_output=True, text=True)


@contextmanager
def serve_postgresql(
    *, fsync: bool = False, settings: Mapping[str, str] | None = None, outages: bool = False
) -> Iterator[PostgreSQL]:
    """Run a server as long as the body runs, which may crash and come back where there are to be `outages`.

    Without `fsync` it is quick, and a crash of the machine would spoil its files. `settings` are of postgresql.conf.
    """
    programs = find("/usr/lib/postgresql/*/bin/postgres", "postgresql").parent
    with scratch("postgresql") as directory:
        cluster = directory / "cluster"
        cluster.mkdir()
        drop = _drop_root(cluster)
        made = [programs / "initdb", f"--pgdata={cluster}", f"--username={_USER}", "--auth=trust", "--encoding=UTF8"]
        made += ["--locale=C.UTF-8", "--no-sync", "--no-instructions"]
        subprocess.run([*drop, *made], check=True, capture_output=True, cwd=directory, text=True)
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "on" if fsync else "off",
            **({} if fsync else {"synchronous_commit": "off", "full_page_writes": "off"}),
            **(settings or {}),
        }
        switches = [f"--{name}={value}" for name, value in options.items()]

        def command(ports: list[int]) -> list[str | Path]:
            run = [*drop, programs / "postgres", "-D", cluster, "-p", str(ports[0]), *switches]
            return Outage.again(run) if outages else run

        with keep(
            directory,
            command,
            lambda ports: subprocess.run([programs / "pg_isready", "-qh127.0.0.1", f"-p{ports[0]}"]).returncode == 0,
            ending="SIGKILL" if outages else "SIGINT",  # that does not wait for clients
        ) as ports:
            yield PostgreSQL(programs, ports[0], directory)


def _drop_root(cluster: Path) -> list[str]:
    """What a command has to begin with: PostgreSQL refuses to run as root. `cluster` is given to whom it runs as."""
    if os.geteuid() != 0:
        return []
    user = next(entry for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody"))
    shutil.chown(cluster, user.pw_uid, user.pw_gid)
    setpriv = find("setpriv", "util-linux")
    return [str(setpriv), f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
