"""A real nginx on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.process import answers_http, find, keep, scratch

__all__ = ["serve_nginx"]

_CONFIG = """\
{user}
daemon off;
pid {directory}/pid;
error_log stderr warn;
worker_processes 1;
events {{}}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    default_type application/octet-stream;
    {around}
    server {{
        listen 127.0.0.1:{port};
        {server}
    }}
}}
"""


@contextmanager
def serve_nginx(server: str, *, around: str = "") -> Iterator[str]:
    """Run nginx as long as the body runs; gives its URL.

    `server` is what stands in its server block (`root /some/directory;`), all but where it listens; `around` stands
    beside that block (`upstream name {…}`).
    """
    program = find("nginx", "nginx-light")
    # Files of tests belong to who runs them; the worker of a master that is root would be somebody else.
    user = "user root;" if os.geteuid() == 0 else ""
    with scratch("nginx") as directory:

        def command(ports: list[int]) -> list[str | Path]:
            text = _CONFIG.format(user=user, directory=directory, port=ports[0], server=server, around=around)
            (directory / "nginx.conf").write_text(text)
            return [program, "-e", "stderr", "-p", directory, "-c", directory / "nginx.conf"]

        with keep(directory, command, lambda ports: answers_http(f"http://127.0.0.1:{ports[0]}/")) as ports:
            yield f"http://127.0.0.1:{ports[0]}"
