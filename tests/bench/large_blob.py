"""One blob of 5 GB, pushed and pulled through the real client: the server's memory must not know of its size."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from deltareg.digest import Digest
from deltareg.manifest import PACK_TYPE, Descriptor
from deltareg.progress import Progress
from deltareg.remote import Network, open_remote
from tests.bench.load import resident
from tests.bench.measured import Goal, Row
from tests.servers.deltareg_server import server_process

__all__ = ["measure_large_blob"]

_CASE = "a blob of 5 GB, over files"
_SIZE = 5_000_000_000
_NEEDED = 15_000_000_000
_MEMORY = 100 << 20
_PIECE = 1 << 20
_REPOSITORY = "acme/large"


def measure_large_blob(scratch: Path) -> Iterator[Row | Goal]:
    """Push a sparse file, whose bytes are made as they are read, and read them back without keeping them."""
    if (free := shutil.disk_usage(scratch).free) < _NEEDED:
        raise SystemExit(f"{free / 1e9:.0f} GB are free at {scratch}: this case needs {_NEEDED / 1e9:.0f} GB")
    source = scratch / "blob"
    with source.open("wb") as file:
        os.truncate(file.fileno(), _SIZE)
    with source.open("rb") as file:
        blob = Descriptor(media_type=PACK_TYPE, digest=_digest(iter(lambda: file.read(_PIECE), b"")), size=_SIZE)
    with server_process(scratch / "server", log=scratch / "log") as server:
        assert server.token is not None
        remote = open_remote(server.url, Network.of({"DELTAREG_TOKEN": server.token}, [server.url]))
        before = resident(server.process.pid)
        begun = time.monotonic()
        remote.put_blob(_REPOSITORY, blob, source, Progress())
        pushed = time.monotonic()
        same = _digest(remote.get_blob(_REPOSITORY, blob, 0)) == blob.digest
        pulled = time.monotonic()
        grown = resident(server.process.pid, "VmHWM") - before
    yield Row(_CASE, "push", pack=_SIZE / (pushed - begun) / 1e9, seconds=pushed - begun)
    yield Row(_CASE, "pull", unpack=_SIZE / (pulled - pushed) / 1e9, seconds=pulled - pushed, memory=grown)
    goal = f"comes back as it was, the server grows by ≤ {_MEMORY >> 20} MiB"
    yield Goal(_CASE, goal, f"{grown / 2**20:.0f} MiB", same and grown <= _MEMORY)


def _digest(pieces: Iterable[bytes]) -> Digest:
    hashed = hashlib.sha256()
    for piece in pieces:
        hashed.update(piece)
    return Digest(f"sha256:{hashed.hexdigest()}")
