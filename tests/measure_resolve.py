"""How long a recipe takes to resolve over a large registry: `python -m tests.measure_resolve` prints the seconds.

The registry is real, a store and its catalog: 10,000 names with 20 versions each. All versions of one number are
the same bytes, so that it is made in a minute; the resolver reads each by its name all the same.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from deltareg.catalog import Registry
from deltareg.manifest import DELTA_TYPE, MANIFEST_TYPE, Descriptor, Index
from deltareg.names import parse_reference
from deltareg.recipe import parse_recipe
from deltareg.resolve import Sources, resolve
from deltareg.store.index import CREATED, REF_NAME, write_index
from tests.deltas import add_delta

__all__ = ["large_registry", "measure", "recipe_text"]

NAMES = 10_000
VERSIONS = 20
WANTED = 12


def large_registry(home: Path, names: int = NAMES, versions: int = VERSIONS) -> Registry:
    """A registry of so many deltas, its catalog built."""
    registry = Registry(home)
    manifests: list[tuple[str, int]] = []
    for version in range(versions):
        manifest = add_delta(registry.store, description=f"version {version}")
        manifests.append(
            (registry.store.publish(parse_reference(f"acme/first:{version}.0.0"), manifest), len(manifest))
        )
    entries = [
        Descriptor(
            media_type=MANIFEST_TYPE,
            digest=digest,
            size=size,
            artifact_type=DELTA_TYPE,
            annotations={REF_NAME: f"acme/delta-{name}:{version}.0.0", CREATED: "2026-01-01T00:00:00Z"},
        )
        for name in range(names)
        for version, (digest, size) in enumerate(manifests)
    ]
    store = registry.store
    write_index(store.index_path, Index(manifests=entries), temporary=store.scratch())
    registry.reindex()
    return Registry(home)


def recipe_text(fingerprint: str, wanted: int = WANTED) -> str:
    """A recipe of deltas from all over it, with ranges."""
    deltas = "".join(
        f'[[delta]]\nref = "acme/delta-{number * 797}"\nversion = ">=3, <{18 - number % 3}"\nweight = 0.1\n'
        for number in range(wanted)
    )
    return f'[build]\nbase = "{fingerprint}"\n{deltas}'


def measure(registry: Registry) -> dict[str, float]:
    """Seconds to resolve, from the local registry and from a directory remote."""
    fingerprint = registry.artifact("acme/delta-1:1.0.0").config.fingerprint.digest
    recipe = parse_recipe(recipe_text(fingerprint).encode())
    found: dict[str, float] = {}
    for name, sources in (
        ("local", Sources(Registry(registry.home))),
        ("directory", Sources(Registry(registry.home), {"team": str(registry.home / "registry")}, default="team")),
    ):
        before = time.perf_counter()
        resolution = resolve(recipe, sources)
        found[name] = time.perf_counter() - before
        assert len(resolution.choices) == WANTED
        assert resolution.choices[0].candidate.version == "17.0.0"
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        before = time.perf_counter()
        registry = large_registry(Path(place) / "home")
        print(f"made in {time.perf_counter() - before:.0f} s", file=sys.stderr)
        for who, seconds in measure(registry).items():
            print(f"{who}\t{seconds:.3f}")
