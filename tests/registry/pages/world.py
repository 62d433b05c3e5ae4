"""What the pages show in tests: real deltas with sketches, a stacked one, a private one, and texts that mean harm."""

from __future__ import annotations

from pathlib import Path

import deltareg
from deltareg import Registry
from deltareg.digest import sha256
from deltareg.manifest import DeltaConfig, Requirement, encode
from deltareg.names import parse_reference
from deltareg_registry.records.channels import set_channel
from deltareg_registry.records.marks import set_mark
from deltareg_registry.records.namespaces import change_namespace
from deltareg_registry.state import State
from tests import weights
from tests.registry.deltas import OWNER, put_delta, with_sketches

__all__ = ["FIRST", "HOSTILE", "PRIVATE", "SECOND", "STACKED", "fill", "make_registry", "with_config"]

FIRST, SECOND, STACKED = "acme/shark:1.0.0", "acme/tiger:1.0.0", "acme/reef:0.1.0"
PRIVATE = "secret/plan:1.0.0"
HOSTILE = "\"'><script>document.title = 'owned'</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"
"""What would run where it is not escaped."""


def make_registry(directory: Path) -> Registry:
    """A registry with a real delta, from which the others are made."""
    registry = Registry(directory)
    models = weights.anarcii(bf16=True)
    told = "Reads the numbering of shark antibodies.\n\nTaken from public sequences."
    deltareg.diff(
        models["antibody_4_2"],
        models["shark_4_2"],
        registry,
        FIRST,
        licence="bsd-3-clause",
        description=told,
    )
    return registry


def fill(state: State, registry: Registry) -> None:
    """Publish the deltas; `acme/shark` has three versions and a channel, `acme/reef` requires it."""
    plain = registry.store.read(registry.artifact(FIRST).digest)
    first = with_sketches(registry, FIRST, 1)
    put_delta(state, registry, FIRST, first)
    put_delta(state, registry, "acme/shark:1.1.0", with_sketches(registry, FIRST, 3))
    put_delta(state, registry, "acme/shark:1.2.0", plain)
    put_delta(state, registry, SECOND, with_sketches(registry, FIRST, 2))
    needed = [Requirement(reference="acme/shark", version="^1")]
    put_delta(state, registry, STACKED, with_config(registry, FIRST, requires=needed, description="Stacked."))
    put_delta(state, registry, "acme/hostile:1.0.0", with_config(registry, FIRST, description=HOSTILE))
    put_delta(state, registry, PRIVATE, plain)
    with state.database.writing() as connection:
        change_namespace(connection, OWNER, "acme", {"public": True})
        shark = parse_reference("acme/shark:1.1.0")
        set_mark(connection, OWNER, shark, "deprecated", "version 1.2.0 is smaller")
        set_mark(connection, OWNER, parse_reference("acme/shark:1.2.0"), "yanked", f"wrong data {HOSTILE}")
        stable = parse_reference("acme/shark:stable")
        set_channel(connection, OWNER, stable, sha256(first), None)


def with_config(registry: Registry, name: str, **changes: object) -> bytes:
    """The manifest of a delta whose config says something else."""
    artifact = registry.artifact(name)
    config = encode(DeltaConfig.model_validate({**artifact.config.model_dump(by_alias=False), **changes}, by_name=True))
    described = artifact.manifest.config.model_copy(update={"digest": registry.store.put(config), "size": len(config)})
    return encode(artifact.manifest.model_copy(update={"config": described}))
