"""nginx serves files, and stands before other servers."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.servers.nginx import serve_nginx


def test_files_and_ranges_of_them_are_served(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(b"0123456789")
    with serve_nginx(f"root {tmp_path};") as url:
        asked = urllib.request.Request(f"{url}/index.json", headers={"Range": "bytes=2-4"})
        with urllib.request.urlopen(asked) as answer:
            assert (answer.status, answer.read()) == (206, b"234")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/none")


def test_upstream_is_reached_through_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from behind")
    with serve_nginx(f"root {tmp_path};") as behind:
        upstream = f"upstream behind {{ server {behind.removeprefix('http://')}; }}"
        with serve_nginx("location / { proxy_pass http://behind; }", around=upstream) as url:
            assert urllib.request.urlopen(f"{url}/file").read() == b"from behind"
