"""How long searches take over many deltas: `python -m tests.registry.measure_search [ROWS]`.

Synthetic versions are written straight to the tables of both databases. Each query is put REPEATS times; the table
gives the median, in milliseconds, and the share of the time that the worst took.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from sqlalchemy import text

from deltareg_registry.access.principal import ANONYMOUS, Principal, Role
from deltareg_registry.database import Database
from deltareg_registry.records.searching import Search, search
from tests.registry.rows import digest, put_versions
from tests.servers.postgresql import serve_postgresql

ROWS = 100_000
REPEATS = 7
NAMESPACES = 200
BASES = 500
_BATCH = 5_000
_LICENCES = ("apache-2.0", "mit", "llama3.1", "cc-by-4.0", "other")
_TYPES = ("llama", "mistral", "qwen2", "bert", "gemma2")
_WORDS = ("instruct", "chat", "search", "code", "medical", "legal", "french", "math", "vision", "summary")
_VOCABULARY = (*_WORDS, *(f"subject{number}" for number in range(190)))
# Words are about as frequent as in language: the n-th of them 1/n times, the very first left out.
_FREQUENCIES = tuple(1 / (number + 20) for number in range(len(_VOCABULARY)))


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Versions as a large registry might have them: few popular bases, many names, ten versions each."""
    draw = random.Random(7)
    for number in range(count):
        base = min(int(draw.expovariate(1 / 60)), BASES - 1)
        words = " ".join(draw.choices(_VOCABULARY, _FREQUENCIES, k=8))
        yield {
            "namespace": f"team-{number // 10 % NAMESPACES:03}",
            "name": f"{draw.choice(_WORDS)}-{number // 10}",
            "version": f"1.{number % 10}.0",
            "size": draw.randrange(10**6, 10**10),
            "yanked": "wrong data" if number % 50 == 0 else None,
            "base": f"hf://org-{base % 40}/model-{base}-8b",
            "fingerprint": digest(f"fingerprint {base // 3}"),
            "space": digest(f"space {base // 6}"),
            "tokenizer_core": digest(f"core {base // 20}"),
            "tokenizer_added": digest(f"added {base // 10}"),
            "licence": draw.choice(_LICENCES),
            "model_type": _TYPES[base % len(_TYPES)],
            "description": f"A delta for {words}, number {number}; trained on data of spring.",
        }


def fill(database: Database, count: int) -> None:
    """Write the versions, every second namespace open to everybody."""
    batch: list[dict[str, Any]] = []
    for row in rows(count):
        batch.append(row)
        if len(batch) == _BATCH:
            with database.writing() as connection:
                put_versions(connection, batch)
            batch = []
    if batch:
        with database.writing() as connection:
            put_versions(connection, batch)
    with database.writing() as connection:
        connection.execute(text("update namespaces set public = (substr(name, 8, 1) in ('0', '2', '4', '6', '8'))"))


def searches() -> dict[str, tuple[Principal, Search]]:
    """What is asked, and by whom."""
    owner = Principal("owner", admin=True)
    member = Principal("rita", roles={f"team-{number:03}": Role.READER for number in range(1, 60, 2)})
    target: dict[str, Any] = {
        "fingerprint": digest("fingerprint 0"),
        "space": digest("space 0"),
        "tokenizer_core": digest("core 0"),
        "tokenizer_added": digest("added 0"),
    }
    middle: dict[str, Any] = {"fingerprint": digest("fingerprint 30"), "space": digest("space 15")}
    return {
        "everything": (owner, Search()),
        "everything, of a member of 30 namespaces": (member, Search()),
        "everything, of anybody": (ANONYMOUS, Search()),
        "everything, with facets": (member, Search(facets=True)),
        "everything, by name": (member, Search(order="name")),
        "everything, by size": (member, Search(order="size")),
        "the most popular base": (member, Search(**target)),
        "the most popular base, with facets": (member, Search(**target, facets=True)),
        "another base": (member, Search(**middle)),
        "a licence": (member, Search(licence="MIT")),
        "a namespace": (member, Search(namespace="team-007")),
        "a base": (member, Search(base="hf://org-0/model-0-8b", order="size")),
        "a word": (member, Search(text="medical")),
        "a word, by size": (member, Search(text="medical", order="size")),
        "the beginning of a word": (member, Search(text="m")),
        "a word that all have": (member, Search(text="spring")),
        "two words and a licence": (member, Search(text="medical french", licence="mit")),
        "a rare word": (member, Search(text="77123")),
        "word and base, with facets": (member, Search(text="chat", **target, facets=True)),
    }


def measure(database: Database) -> dict[str, tuple[float, float, int]]:
    """Median and worst in milliseconds, and how many were found, by search."""
    found: dict[str, tuple[float, float, int]] = {}
    for name, (principal, asked) in searches().items():
        times: list[float] = []
        total = 0
        for _ in range(REPEATS):
            began = perf_counter()
            with database.reading() as connection:
                total = search(connection, principal, asked).total
            times.append(1000 * (perf_counter() - began))
        found[name] = (median(times), max(times), total)
    return found


def main(count: int) -> None:
    """Measure both databases and print a table."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(serve_postgresql())
        url = stack.enter_context(server.database()).replace("postgresql://", "postgresql+psycopg://")
        results: dict[str, dict[str, tuple[float, float, int]]] = {}
        for name, place in (("SQLite", f"sqlite:///{folder / 'registry.db'}"), ("PostgreSQL", url)):
            database = Database(place)
            stack.callback(database.close)
            database.upgrade()
            fill(database, count)
            with database.writing() as connection:
                connection.execute(text("analyze"))
            results[name] = measure(database)
        print(f"{count} versions, milliseconds, median (worst) of {REPEATS}\n")
        print("| search | found | SQLite | PostgreSQL |\n|---|---|---|---|")
        for name in searches():
            one, other = results["SQLite"][name], results["PostgreSQL"][name]
            assert one[2] == other[2], f"{name}: {one[2]} and {other[2]}"
            print(f"| {name} | {one[2]} | {one[0]:.1f} ({one[1]:.0f}) | {other[0]:.1f} ({other[1]:.0f}) |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
