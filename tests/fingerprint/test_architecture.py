"""The fingerprint tells parameter spaces apart, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deltareg.checkpoint import Checkpoint
from deltareg.digest import sha256
from deltareg.fingerprint import fingerprint_of, inventory_digest
from deltareg.manifest import Fingerprint

TENSORS: list[tuple[str, tuple[int, ...]]] = [("b", (2, 3)), ("a", ()), ("é", (0,))]


def fingerprint(path: Path, dtype: type, *, config: str | None = None, rows: int = 2) -> Fingerprint:
    path.mkdir()
    save_file({"w": np.zeros((rows, 3), dtype), "a": np.ones(1, dtype)}, path / "model.safetensors")
    if config is not None:
        (path / "config.json").write_text(config)
    with Checkpoint.open(path) as checkpoint:
        return fingerprint_of(checkpoint)


def test_order_of_the_tensors_does_not_count() -> None:
    assert inventory_digest(TENSORS) == inventory_digest(reversed(TENSORS))


def test_digest_is_that_of_the_sorted_names_and_shapes() -> None:
    assert inventory_digest(TENSORS) == sha256('[["a",[]],["b",[2,3]],["é",[0]]]'.encode())


@pytest.mark.parametrize(
    "other",
    [
        [],
        TENSORS[:2],
        [("b", (3, 2)), *TENSORS[1:]],
        [("b", (6,)), *TENSORS[1:]],
        [("b", (2, 3, 1)), *TENSORS[1:]],
        [("B", (2, 3)), *TENSORS[1:]],
    ],
)
def test_another_space_has_another_digest(other: list[tuple[str, tuple[int, ...]]]) -> None:
    assert inventory_digest(other) != inventory_digest(TENSORS)


def test_values_and_dtypes_do_not_count(tmp_path: Path) -> None:
    found = fingerprint(tmp_path / "half", np.float16)
    assert found == fingerprint(tmp_path / "double", np.float64)
    assert found != fingerprint(tmp_path / "larger", np.float16, rows=4)


@pytest.mark.parametrize(
    ("config", "model_type"),
    [(None, None), ("{}", None), ('{"model_type": "llama"}', "llama"), ('{"model_type": ["llama"]}', None)],
)
def test_type_of_the_model_is_that_of_its_config(tmp_path: Path, config: str | None, model_type: str | None) -> None:
    found = fingerprint(tmp_path / "model", np.float32, config=config)
    assert found.model_type == model_type
    assert json.loads(found.model_dump_json())["inventory"] == found.inventory
