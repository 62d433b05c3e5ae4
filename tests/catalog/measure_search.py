"""How long a search of 100,000 deltas takes: `python -m tests.catalog.measure_search`."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from deltareg.catalog import CatalogRow, Registry
from deltareg.catalog.tables import open_tables
from deltareg.digest import sha256
from deltareg.manifest import Fingerprint, TokenizerFingerprint

DELTAS = 100_000
_WORDS = ["finds", "documents", "chat", "code", "maths", "summaries", "french", "law", "medicine", "protein", "light"]


def digest(text: str) -> str:
    """A digest that stands for `text`."""
    return sha256(text.encode())


def rows() -> Iterator[CatalogRow]:
    """Rows of 500 namespaces; four fifths are of one base."""
    chance = random.Random(1)
    for number in range(DELTAS):
        namespace, base = f"org{number % 500}", chance.choice([0, 0, 0, 0, chance.randrange(300)])
        yield CatalogRow(
            reference=f"{namespace}/model-{number // 20}:1.{number % 20}.0",
            digest=digest(str(number)),
            created="2026-01-01T12:00:00Z",
            manifest_size=1000,
            size=1_000_000,
            base=f"hf://org/base-{base}",
            fingerprint=digest(f"fingerprint {base}"),
            space=digest(f"space {base // 3}"),
            tokenizer_core=digest(f"core {base // 2}"),
            tokenizer_added=digest(f"added {number % 7}"),
            namespace=namespace,
            model_type=chance.choice(["llama", "qwen2", "bert"]),
            licence=chance.choice(["mit", "apache-2.0"]),
            description=" ".join(chance.choices(_WORDS, k=6)),
        )


def main() -> None:
    """Print the median time of each query, of nine."""
    target = Fingerprint(
        digest=digest("fingerprint 0"),
        space=digest("space 0"),
        inventory=digest("inventory"),
        tokenizer=TokenizerFingerprint(core=digest("core 0"), added=digest("added 0"), kind="bpe", rows=10),
    )
    with tempfile.TemporaryDirectory() as directory:
        registry = Registry(Path(directory))
        registry.search()
        with open_tables(registry.catalog.path) as tables:
            tables.update([], rows(), str(tables.source()))
        for text in (None, "chat", "french law", "org/model-44", "m", "1", "m o b 1"):
            for fits in (None, target):
                for licence in (None, "mit"):
                    reports = [registry.search(text, target=fits, licence=licence) for _ in range(9)]
                    milliseconds = median(report.seconds for report in reports) * 1000
                    told = f"text {text!r}, {'for a target' if fits else 'any base'}, licence {licence}"
                    print(f"{milliseconds:6.1f} ms  {reports[0].total:7,} found  {told}")


if __name__ == "__main__":
    main()
