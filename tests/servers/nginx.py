"""A real nginx on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not on this machine (Debian: apt-get install nginx-light)")
    # Files of tests belong to who runs them; the worker of a master that is root would be somebody else.
    user = "user root;" if os.geteuid() == 0 else ""
    with tempfile.TemporaryDirectory(prefix="deltareg-nginx-") as name:
        directory = Path(name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        text = _CONFIG.format(user=user, directory=directory, port=port, server=server, around=around)
        (directory / "nginx.conf").write_text(text)
        command = [program, "-e", "stderr", "-p", name, "-c", str(directory / "nginx.conf")]
        with (directory / "log").open("wb") as log:
            running = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(running, f"http://127.0.0.1:{port}/", directory / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()
            running.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"nginx does not start: {log.read_text(errors='replace')[-2000:]}")
