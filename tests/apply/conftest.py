"""One registry with deltas of real pairs, for every test here to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

import deltareg
from deltareg import Registry
from tests.weights import Pair

__all__: list[str] = []


@pytest.fixture(scope="session")
def registry(
    tmp_path_factory: pytest.TempPathFactory, anarcii: Mapping[str, Path], anarcii_bf16: Mapping[str, Path]
) -> Registry:
    """`acme/shark` from antibody_4_2 to shark_4_2 in bfloat16, `acme/shark-fp32` the same in float32. Read only."""
    registry = Registry(tmp_path_factory.mktemp("registry"))
    for name, models in (("acme/shark:1.0.0", anarcii_bf16), ("acme/shark-fp32:1.0.0", anarcii)):
        deltareg.diff(models["antibody_4_2"], models["shark_4_2"], registry, name)
    return registry


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory, small_llama: Pair) -> Registry:
    """A registry with `acme/llama:1.0.0`, of the generated pair in three shards. Read only."""
    registry = Registry(tmp_path_factory.mktemp("llama"))
    deltareg.diff(small_llama.base, small_llama.post, registry, "acme/llama:1.0.0", licence="apache-2.0")
    return registry
