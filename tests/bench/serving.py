"""How fast a registry on loopback takes and gives deltas, beside nginx, and what memory it needs for that."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2

from deltareg.catalog import Registry
from deltareg.digest import Digest
from deltareg.manifest import Descriptor
from deltareg.remote import Network, Remote, open_remote
from deltareg.transfer import pull, push
from tests.bench.measured import Goal, Row
from tests.deltas import noise, pack_of, publish
from tests.servers.deltareg_server import ServerProcess, server_process
from tests.servers.nginx import serve_nginx

__all__ = ["measure_serving"]

_CASE = "16 packs of 32 MiB, on loopback"
_NAME = "acme/search:1.0.0"
_PACKS = 16
_PACK = 32 << 20
_THREADS = 4
_AT_ONCE = 64
_ROUNDS = 3
_PULL, _PUSH = 0.6, 0.4
_MEMORY = 100 << 20
_PIECE = 1 << 20


def measure_serving(scratch: Path) -> Iterator[Row | Goal]:
    """Push and pull through the server and through nginx; best of three each, in turn; then 64 readers at once."""
    local = Registry(scratch / "home")
    digest = publish(local.store, _NAME, [pack_of(noise(_PACK, seed)) for seed in range(_PACKS)])
    blobs = local.store.manifest(digest).blobs
    total = sum(blob.size for blob in blobs)
    pushed: list[float] = []
    raw: list[float] = []
    for number in range(_ROUNDS):
        with server_process(scratch / f"server{number}", log=scratch / "log") as server:
            pushed.append(_seconds(lambda: push(local, _NAME, _remote(server), threads=_THREADS)))
        raw.append(_raw_upload(local, blobs, scratch / f"dav{number}"))
    yield Row(_CASE, "push, deltareg server", pack=total / min(pushed) / 1e9, seconds=min(pushed))
    yield Row(_CASE, "the same files put into nginx (DAV), plain client", pack=total / min(raw) / 1e9, seconds=min(raw))
    share = min(raw) / min(pushed)
    yield Goal(_CASE, f"push ≥ {_PUSH:.0%} of a raw upload", f"{share:.0%}", share >= _PUSH)
    with server_process(scratch / f"server{_ROUNDS - 1}", log=scratch / "log") as server:
        yield from _pulls(local, server, _token(scratch), total, scratch)
        yield from _crowd(server, _token(scratch), max(blobs, key=lambda blob: blob.size))


def _token(scratch: Path) -> str:
    """The token that the last server told when it was new."""
    return (scratch / f"server{_ROUNDS - 1}.token").read_text()


def _remote(server: ServerProcess) -> Remote:
    assert server.token is not None
    server.said.with_suffix(".token").write_text(server.token)
    return open_remote(server.url, Network.of({"DELTAREG_TOKEN": server.token}, [server.url]))


def _pulls(local: Registry, server: ServerProcess, token: str, total: int, scratch: Path) -> Iterator[Row | Goal]:
    """Into an empty home each: from the server, and from the very same bytes behind nginx, a static mirror."""
    remote = open_remote(server.url, Network.of({"DELTAREG_TOKEN": token}, [server.url]))
    ours: list[float] = []
    theirs: list[float] = []
    with serve_nginx(f"root {local.store.root};", around="sendfile on;") as url:
        for number in range(_ROUNDS):
            for who, times in ((remote, ours), (open_remote(url), theirs)):
                home = Registry(scratch / f"pulled{number}{len(ours)}{len(theirs)}")
                times.append(_seconds(lambda home=home, who=who: pull(home, _NAME, who, threads=_THREADS)))
    yield Row(_CASE, "pull, deltareg server", unpack=total / min(ours) / 1e9, seconds=min(ours))
    yield Row(_CASE, "pull, static mirror behind nginx", unpack=total / min(theirs) / 1e9, seconds=min(theirs))
    share = min(theirs) / min(ours)
    yield Goal(_CASE, f"pull ≥ {_PULL:.0%} of nginx", f"{share:.0%}", share >= _PULL)


def _crowd(server: ServerProcess, token: str, blob: Descriptor) -> Iterator[Row | Goal]:
    """Many readers of one blob at once; what the server's memory grows by, at its highest."""
    before = _resident(server.process.pid, "VmRSS")
    url = f"{server.url}/v2/acme/search/blobs/{blob.digest}"

    def read(_: int) -> int:
        with httpx2.stream("GET", url, headers={"Authorization": f"Bearer {token}"}, timeout=600) as answer:
            return sum(len(piece) for piece in answer.iter_raw(_PIECE))

    begun = time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        lengths = set(pool.map(read, range(_AT_ONCE)))
    seconds = time.monotonic() - begun
    grown = _resident(server.process.pid, "VmHWM") - before
    yield Row(_CASE, f"{_AT_ONCE} readers at once", unpack=_AT_ONCE * blob.size / seconds / 1e9, seconds=seconds)
    goal = f"{_AT_ONCE} readers at once all get the blob, the server grows by ≤ {_MEMORY >> 20} MiB"
    yield Goal(_CASE, goal, f"{grown / 2**20:.0f} MiB", lengths == {blob.size} and grown <= _MEMORY)


def _raw_upload(local: Registry, blobs: list[Descriptor], root: Path) -> float:
    root.mkdir()
    block = f"root {root}; location / {{ dav_methods PUT; client_max_body_size 0; client_body_temp_path {root}/tmp; }}"

    def put(blob: Descriptor) -> None:
        path = local.store.path(Digest(blob.digest))
        with path.open("rb") as file:
            pieces = iter(lambda: file.read(_PIECE), b"")
            headers = {"Content-Length": str(blob.size)}
            httpx2.put(f"{url}/{path.name}", content=pieces, headers=headers, timeout=600).raise_for_status()

    with serve_nginx(block) as url, ThreadPoolExecutor(_THREADS) as pool:
        return _seconds(lambda: list(pool.map(put, blobs)))


def _seconds(work: Callable[[], object]) -> float:
    os.sync()
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def _resident(process: int, what: str) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(what))) * 1024
