"""A registry under a mixed load: how long each kind of request takes at half of what the server can do, and whether its
memory stays what it is.

The load comes at a fixed rate, whether the server is quick or slow: a request that has to wait for others counts from
the time when it was due. The rate is half of what a short run finds in which each thread asks as soon as it is
answered.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Any

from deltareg.catalog import Registry
from deltareg.digest import Digest
from deltareg.remote import Network, open_remote
from deltareg.transfer import push
from deltareg_registry.database import Database
from deltareg_registry.settings import ServerSettings
from tests.bench.measured import Goal, Row
from tests.deltas import noise, pack_of, publish
from tests.registry.measure_search import fill
from tests.servers.deltareg_server import ROOT, ServerProcess, server_process
from tests.servers.postgresql import serve_postgresql

__all__ = ["Load", "measure_load", "resident"]

_DELTAS = 12
_BLOBS = {"a blob of 1 MiB": 1 << 20, "a blob of 32 MiB": 32 << 20}
_SEARCH = 0.100
_GROWTH = 0.05
_MIB = 2**20


@dataclass(frozen=True)
class Load:
    """How many deltas there are besides those that are pulled, how long the load goes on, and over which database.

    Over PostgreSQL two processes serve the registry.
    """

    deltas: int = 1000
    minutes: float = 10.0
    postgresql: bool = False
    closed_seconds: float = 15.0
    threads: int = 24

    @property
    def case(self) -> str:
        """What the table calls it."""
        where = "PostgreSQL, 2 processes" if self.postgresql else "SQLite, 1 process"
        return f"{self.deltas:,} deltas, {self.minutes:g} minutes of mixed load, {where}"


def measure_load(scratch: Path, load: Load = Load()) -> Iterator[Row | Goal]:
    """Fill a registry, serve it, and load it from another process."""
    data = scratch / "server"
    with ExitStack() as stack:
        arguments: list[str] = []
        if load.postgresql:
            # As a team would run it: what is committed is on the disk.
            arguments = [
                "--database",
                stack.enter_context(stack.enter_context(serve_postgresql(fsync=True)).database()),
            ]
        data.mkdir()
        _filled(ServerSettings(data=data, database=arguments[-1] if arguments else None).database_url, load.deltas)
        log = scratch / "log"
        servers = [stack.enter_context(server_process(data, *arguments, log=log)) for _ in range(1 + load.postgresql)]
        world = _stocked(scratch / "home", servers)
        watched = stack.enter_context(Watched([server.process.pid for server in servers]))
        told = _loaded(scratch, {**world, "seconds": 60 * load.minutes, "closed": load.closed_seconds}, load.threads)
    yield from _latencies(load, told)
    yield from _memory(load, watched.samples, told["begun"], told["ended"])


def resident(process: int, what: str = "VmRSS") -> int:
    """Bytes of a process: VmRSS now, VmHWM at most until now."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(what))) * 1024


@dataclass
class Watched:
    """What processes hold together, each second: pairs of a monotonic time and bytes."""

    processes: Sequence[int]
    samples: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watched:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(1):
            self.samples.append((time.monotonic(), sum(resident(process) for process in self.processes)))


# --- what the load meets ------------------------------------------------------------------------------------------


def _filled(url: str, count: int) -> None:
    database = Database(url)
    database.upgrade()
    fill(database, count)
    database.close()


def _stocked(home: Path, servers: Sequence[ServerProcess]) -> dict[str, Any]:
    """Push deltas that are whole, and tell what a client has to know of them."""
    token, url = servers[0].token, servers[0].url
    assert token is not None
    remote = open_remote(url, Network.of({"DELTAREG_TOKEN": token}, [url]))
    local = Registry(home)
    packs = {f"acme/delta-{number}:1.0.0": [pack_of(noise(10_000, number))] for number in range(_DELTAS)}
    packs["acme/large:1.0.0"] = [pack_of(noise(size - 80)) for size in _BLOBS.values()]
    deltas: dict[str, str] = {}
    for name, given in packs.items():
        deltas[name] = publish(local.store, name, given)
        push(local, name, remote)
    large = local.store.manifest(Digest(deltas.pop("acme/large:1.0.0"))).layers[1:]
    first = local.artifact("acme/delta-0:1.0.0")
    return {
        "urls": [server.url for server in servers],
        "token": token,
        "deltas": deltas,
        "blobs": {kind: str(blob.digest) for kind, blob in zip(_BLOBS, large, strict=True)},
        "manifest": local.store.read(first.digest).decode(),
        "fingerprint": json.loads(first.config.fingerprint.model_dump_json()),
    }


def _loaded(scratch: Path, world: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """What the client found, in a process of its own: it must not wait for the one that watches."""
    asked, told = scratch / "load.json", scratch / "loaded.json"
    asked.write_text(json.dumps({**world, "threads": threads}))
    subprocess.run([sys.executable, "-m", "tests.bench.load_client", asked, told], check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(told.read_text())
    return found


# --- what came out ------------------------------------------------------------------------------------------------


def _latencies(load: Load, told: Mapping[str, Any]) -> Iterator[Row | Goal]:
    yield Row(load.case, f"at most {told['most']:.0f} requests a second; load: {told['rate']:.0f}")
    latencies: Mapping[str, list[float]] = told["latencies"]
    for kind, found in sorted(latencies.items()):
        p50, p95, p99 = (percentile(found, share) for share in (0.50, 0.95, 0.99))
        yield Row(load.case, f"{kind} ({len(found):,})", p50=p50, p95=p95, p99=p99)
    searches = [seconds for kind, found in latencies.items() if kind.startswith("search") for seconds in found]
    p99 = percentile(searches, 0.99)
    yield Goal(load.case, f"search: p99 ≤ {1000 * _SEARCH:.0f} ms", f"{1000 * p99:.0f} ms", p99 <= _SEARCH)
    errors: list[str] = told["errors"]
    yield Goal(load.case, "no request fails", "; ".join([str(len(errors)), *errors[:3]]), not errors)


def percentile(found: Iterable[float], share: float) -> float:
    """The value that `share` of all are not above."""
    ordered = sorted(found)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def _memory(load: Load, samples: Sequence[tuple[float, int]], begun: float, ended: float) -> Iterator[Row | Goal]:
    """The first third warms up: caches of threads, connections and heaps fill, while no Python object stays."""
    span = ended - begun
    minute = min(60, span / 4)
    cold = [size for at, size in samples if begun <= at <= begun + minute]
    warm = [(at, size) for at, size in samples if begun + span / 3 <= at <= ended]
    first = fmean(size for at, size in warm if at <= warm[0][0] + minute)
    final = fmean(size for at, size in warm if at >= ended - minute)
    slope, _ = linear_regression(*zip(*((at / 60, size / _MIB) for at, size in warm), strict=True))
    yield Row(load.case, "the server's memory, in the first minute", memory=round(fmean(cold)))
    yield Row(load.case, "the server's memory, at its highest", memory=max(size for _, size in samples))
    told = f"{final / first - 1:+.1%}: {first / _MIB:.0f} → {final / _MIB:.0f} MiB, {slope:+.2f} MiB a minute"
    yield Goal(load.case, f"memory grows by ≤ {_GROWTH:.0%}", told, final <= first * (1 + _GROWTH))
