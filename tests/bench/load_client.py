"""The client of `load`: `python -m tests.bench.load_client ASKED.json TOLD.json`."""

from __future__ import annotations

import itertools
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from deltareg.digest import canonical_json, sha256
from deltareg.manifest import MANIFEST_TYPE
from tests.deltas import pack_of
from tests.registry.measure_search import searches

__all__ = ["MIX", "main"]

_WORDS = ("medical", "chat", "spring", "french legal", "instruct", "subject77", "m", "team-007", "math vision")
_PIECE = 1 << 20


@dataclass
class Worker:
    """One thread's connection, and what only this thread moves."""

    world: Mapping[str, Any]
    number: int
    draw: random.Random
    client: httpx2.Client
    fresh: itertools.count[int]
    """Numbers that no other publish of this load has."""
    expected: str | None = None

    def name(self) -> str:
        """One of the deltas, `namespace/name`."""
        return self.draw.choice(list(self.world["deltas"])).split(":")[0]

    def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """Send a request. Raises httpx2.HTTPError for an answer that is none of success."""
        answer = self.client.request(method, path, **more)
        answer.raise_for_status()
        return answer


def _search(worker: Worker, **asked: str) -> None:
    worker.ask("GET", "/api/v1/search", params=asked)


def _search_text(worker: Worker) -> None:
    _search(worker, text=worker.draw.choice(_WORDS))


def _search_fingerprint(worker: Worker) -> None:
    target = searches()["the most popular base"][1]
    assert target.fingerprint is not None and target.space is not None
    _search(worker, fingerprint=target.fingerprint, space=target.space)


def _search_base(worker: Worker) -> None:
    base = worker.draw.randrange(60)
    _search(worker, base=f"hf://org-{base % 40}/model-{base}-8b", order="size")


def _page(worker: Worker) -> None:
    worker.ask("GET", f"/d/{worker.name()}")


def _manifest(worker: Worker) -> None:
    worker.ask("GET", f"/v2/{worker.name()}/manifests/1.0.0", headers={"Accept": MANIFEST_TYPE})


def _pull(worker: Worker, kind: str) -> None:
    path = f"/v2/acme/large/blobs/{worker.world['blobs'][kind]}"
    with worker.client.stream("GET", path, follow_redirects=True) as answer:
        answer.raise_for_status()
        length = sum(len(piece) for piece in answer.iter_raw(_PIECE))
    if length != int(answer.headers["content-length"]):
        raise httpx2.ReadError("the blob was cut off")


def _publish(worker: Worker) -> None:
    """A version with a pack that no other one has."""
    number = next(worker.fresh)
    pack = pack_of(f"version {number}".encode())
    manifest = json.loads(worker.world["manifest"])
    manifest["layers"][-1] |= {"digest": sha256(pack), "size": len(pack)}
    worker.ask("POST", "/v2/acme/delta-0/blobs/uploads/", params={"digest": sha256(pack)}, content=pack)
    headers = {"Content-Type": MANIFEST_TYPE}
    worker.ask("PUT", f"/v2/acme/delta-0/manifests/2.{number}.0", content=canonical_json(manifest), headers=headers)


def _check(worker: Worker) -> None:
    body = {"fingerprint": worker.world["fingerprint"], "deltas": [f"{worker.name()}:1.0.0"]}
    worker.ask("POST", "/api/v1/check", json=body)


def _move(worker: Worker) -> None:
    """A channel that only this thread moves: so nobody is before it."""
    name, digest = worker.draw.choice([("acme/delta-1", worker.world["deltas"]["acme/delta-1:1.0.0"])])
    path = f"/api/v1/deltas/{name}/channels/thread-{worker.number}"
    worker.ask("PUT", path, json={"digest": digest, "expected": worker.expected})
    worker.expected = digest


MIX: Mapping[str, tuple[int, Callable[[Worker], None]]] = {
    "search by text": (20, _search_text),
    "search by fingerprint": (15, _search_fingerprint),
    "search by base": (10, _search_base),
    "page of a delta": (10, _page),
    "manifest": (20, _manifest),
    "a blob of 1 MiB": (12, lambda worker: _pull(worker, "a blob of 1 MiB")),
    "a blob of 32 MiB": (1, lambda worker: _pull(worker, "a blob of 32 MiB")),
    "publish": (3, _publish),
    "check": (5, _check),
    "move a channel": (4, _move),
}
"""How many of a hundred requests are of a kind, and how one is made."""


@dataclass
class Found:
    """Seconds by kind, and what failed."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in MIX})
    errors: list[str] = field(default_factory=list[str])

    @property
    def count(self) -> int:
        """How many requests there were."""
        return sum(len(found) for found in self.latencies.values())


def _run(workers: list[Worker], seconds: float, rate: float | None) -> Found:
    """Ask for so long, at a rate, or as fast as the answers come."""
    found, numbers, begun = Found(), itertools.count(), time.monotonic()
    kinds, weights = list(MIX), [share for share, _ in MIX.values()]

    def work(worker: Worker) -> None:
        while True:
            number = next(numbers)
            due = time.monotonic() if rate is None else begun + number / rate
            if due >= begun + seconds:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            kind = worker.draw.choices(kinds, weights)[0]
            try:
                MIX[kind][1](worker)
            except httpx2.HTTPError as error:
                found.errors.append(f"{kind}: {error}")
            else:
                found.latencies[kind].append(time.monotonic() - due)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def main(asked: Path, told: Path) -> None:
    """Find out what the server can do, then load it with half of that."""
    world = json.loads(asked.read_text())
    headers, fresh = {"Authorization": f"Bearer {world['token']}"}, itertools.count()
    workers = [
        Worker(
            world,
            number,
            random.Random(number),
            httpx2.Client(base_url=world["urls"][number % len(world["urls"])], headers=headers, timeout=60),
            fresh,
        )
        for number in range(world["threads"])
    ]
    most = _run(workers, world["closed"], None)
    rate = most.count / world["closed"] / 2
    begun = time.monotonic()
    found = _run(workers, world["seconds"], rate)
    result = {"most": 2 * rate, "rate": rate, "begun": begun, "ended": time.monotonic()}
    result |= {"latencies": found.latencies, "errors": most.errors + found.errors}
    told.write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
