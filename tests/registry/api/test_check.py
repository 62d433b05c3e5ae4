"""Checks and comparisons by the server say what the client says, from descriptions alone."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

import deltareg
from deltareg import Registry
from deltareg.check import CheckedDelta, fingerprint
from deltareg.checkpoint import Checkpoint
from deltareg.manifest import INVENTORY_TYPE
from deltareg.sketch import take_samples
from tests.registry.deltas import put_delta, with_sketches
from tests.servers.deltareg_server import RunningServer, running_server
from tests.weights import Pair

SHARK, MINILM, SECOND = "acme/shark:1.0.0", "acme/minilm:1.0.0", "acme/second:1.0.0"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, anarcii_bf16: Mapping[str, Path], minilm_bf16: Pair) -> Registry:
    """Deltas of real pairs, two of them with sketches. Read only."""
    registry = Registry(tmp_path_factory.mktemp("registry"))
    base = anarcii_bf16["antibody_4_2"]
    deltareg.diff(base, anarcii_bf16["shark_4_2"], registry, SHARK, licence="bsd-3-clause")
    deltareg.diff(minilm_bf16.base, minilm_bf16.post, registry, MINILM, licence="apache-2.0")
    return registry


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[RunningServer]:
    """A server that has these deltas. Read only."""
    with running_server(tmp_path_factory.mktemp("server")) as running:
        for name in (SHARK, MINILM):
            artifact = registry.artifact(name)
            put_delta(running.state, registry, name, registry.store.read(artifact.digest))
        first = with_sketches(registry, SHARK, 1)
        put_delta(running.state, registry, "acme/first:1.0.0", first)
        put_delta(running.state, registry, SECOND, with_sketches(registry, SHARK, 2))
        yield running


def described(path: Path, *, samples: bool = True) -> dict[str, Any]:
    """What a client can say of a target without sending its weights."""
    with Checkpoint.open(path) as target:
        names = ["config.json", *(str(name) for name in target.side_files)]
        files = {name: (path / name).read_text() for name in names if (path / name).suffix in (".json", ".txt")}
        told: dict[str, Any] = {
            "tensors": [
                {"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in target.tensors.values()
            ],
            "files": {name: text for name, text in files.items() if (path / name).is_file()},
        }
        return told | ({"samples": base64.b64encode(take_samples(target)).decode()} if samples else {})


def ask(server: RunningServer, **body: Any) -> httpx2.Response:
    with server.client() as client:
        return client.post("/api/v1/check", json=body)


def checked(server: RunningServer, **body: Any) -> list[CheckedDelta]:
    answer = ask(server, **body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["warnings"] == []
    return [CheckedDelta.model_validate(one, by_alias=True) for one in answer.json()["deltas"]]


@pytest.mark.parametrize("target", ["antibody_4_2", "shark_4_2", "tcr_4_2", "antibody_4_1"])
def test_described_target_is_judged_as_the_client_judges_it(
    served: RunningServer, registry: Registry, anarcii_bf16: Mapping[str, Path], target: str
) -> None:
    (found,) = checked(served, **described(anarcii_bf16[target]), deltas=[SHARK])
    (expected,) = deltareg.check(anarcii_bf16[target], [SHARK], registry).deltas
    assert found == expected


def test_target_with_a_tokenizer_is_judged_as_the_client_judges_it(
    served: RunningServer, registry: Registry, minilm_bf16: Pair
) -> None:
    for target in (minilm_bf16.base, minilm_bf16.post):
        (found,) = checked(served, **described(target), deltas=[MINILM])
        (expected,) = deltareg.check(target, [MINILM], registry).deltas
        assert (found.verdict, found.findings) == (expected.verdict, expected.findings)


def test_without_samples_nothing_is_known_of_the_lineage(
    served: RunningServer, anarcii_bf16: Mapping[str, Path]
) -> None:
    (found,) = checked(served, **described(anarcii_bf16["antibody_4_2"], samples=False), deltas=[SHARK])
    assert (found.verdict, [one.code for one in found.findings]) == ("homologous", ["lineage-unknown"])
    assert found.lineage is None


def test_best_fitting_deltas_are_judged_where_none_is_named(
    served: RunningServer, anarcii_bf16: Mapping[str, Path]
) -> None:
    found = checked(served, **described(anarcii_bf16["antibody_4_2"]))
    assert {one.reference for one in found} == {"acme/first:1.0.0", SECOND, SHARK}
    assert {one.verdict for one in found} == {"identical"}
    assert len(checked(served, **described(anarcii_bf16["antibody_4_2"]), limit=1)) == 1


def test_fingerprint_alone_tells_whether_tensors_differ(
    served: RunningServer, anarcii_bf16: Mapping[str, Path]
) -> None:
    verdicts: dict[str, str] = {}
    for target in ("antibody_4_2", "tcr_4_2", "antibody_4_1"):
        given = fingerprint(anarcii_bf16[target]).fingerprint.model_dump(by_alias=True, exclude_none=True)
        (found,) = checked(served, fingerprint=given, deltas=[SHARK])
        verdicts[target] = found.verdict
    assert verdicts == {"antibody_4_2": "homologous", "tcr_4_2": "adaptable", "antibody_4_1": "incompatible"}


def test_config_and_tokenizer_alone_find_deltas_of_the_same_kind(served: RunningServer, minilm_bf16: Pair) -> None:
    files = described(minilm_bf16.base)["files"]
    (found,) = checked(served, files=files)
    assert (found.reference, found.verdict) == (MINILM, "homologous")
    other = files | {"config.json": files["config.json"].replace('"num_hidden_layers": 6', '"num_hidden_layers": 12')}
    (found,) = checked(served, files=other)
    assert (found.verdict, found.findings[0].subject) == ("incompatible", "layers")


def test_config_that_does_not_say_whether_embeddings_are_tied_is_no_other_model(
    served: RunningServer, anarcii_bf16: Mapping[str, Path]
) -> None:
    config = (anarcii_bf16["antibody_4_2"] / "config.json").read_text()
    assert "tie_word_embeddings" not in config
    (own,) = checked(served, files={"config.json": config}, deltas=[SHARK])
    assert (own.verdict, {one.code for one in own.findings}) == ("homologous", {"tied-unknown", "lineage-unknown"})
    told = {tied: config.replace("{", f'{{"tie_word_embeddings": {tied},', 1) for tied in ("true", "false")}
    found = {tied: checked(served, files={"config.json": text}, deltas=[SHARK])[0] for tied, text in told.items()}
    assert {tied: one.verdict for tied, one in found.items()} == {"true": "adaptable", "false": "homologous"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "DR0101"),
        ({"samples": "eA=="}, 400, "DR0101"),
        ({"tensors": [], "samples": "!"}, 400, "DR0101"),
        ({"tensors": [], "samples": "eA=="}, 422, "DR0403"),
        ({"tensors": [{"name": "a", "dtype": "F32", "shape": [1]}] * 2}, 400, "DR0101"),
        ({"tensors": [{"name": "a", "dtype": "X9", "shape": [1]}]}, 422, "DR0201"),
        ({"tensors": [{"name": "a", "dtype": "F32", "shape": [-1]}]}, 400, "DR0101"),
        ({"tensors": [], "files": {"../x": ""}}, 400, "DR0101"),
        ({"tensors": [], "files": {"model.py": ""}}, 400, "DR0101"),
        ({"files": {"config.json": "{"}}, 422, "DR0402"),
        ({"files": {"config.json": "{}", "tokenizer.json": "["}}, 422, "DR0402"),
        ({"tensors": [], "deltas": ["acme/none:1.0.0"]}, 404, "DR0002"),
        ({"tensors": [], "deltas": ["none"]}, 400, "DR0102"),
        ({"tensors": [], "limit": 1000}, 400, "DR0101"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(
    served: RunningServer, body: dict[str, Any], status: int, code: str
) -> None:
    answer = ask(served, **body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_long_description_is_read_and_endless_one_is_refused(served: RunningServer) -> None:
    def body(megabytes: int) -> Iterator[bytes]:
        yield b'{"files": {"config.json": "'
        for _ in range(megabytes):
            yield b" " * (1 << 20)
        yield b'"}}'

    with served.client() as client:
        client.headers["Content-Type"] = "application/json"
        answer = client.post("/api/v1/check", content=body(8))
        assert (answer.status_code, answer.json()["code"]) == (422, "DR0402")
        # The server may hang up before all was sent.
        with suppress(httpx2.WriteError):
            answer = client.post("/api/v1/check", content=body(60))
            assert (answer.status_code, answer.json()["code"]) == (413, "DR0305")


def test_damaged_delta_does_not_hide_the_others(
    server: RunningServer, registry: Registry, anarcii_bf16: Mapping[str, Path]
) -> None:
    put_delta(server.state, registry, SHARK, registry.store.read(registry.artifact(SHARK).digest))
    put_delta(server.state, registry, SECOND, with_sketches(registry, SHARK, 2))
    inventory = registry.artifact(SHARK).manifest.layers_of(INVENTORY_TYPE)[0].digest
    next((server.state.settings.data / "storage").rglob(inventory.removeprefix("sha256:"))).write_bytes(b"damaged")
    answer = ask(server, **described(anarcii_bf16["antibody_4_2"])).json()
    assert answer["deltas"] == []
    assert [told.partition(": ")[0] for told in answer["warnings"]] == [SECOND, SHARK]


def test_what_one_may_not_read_is_neither_judged_nor_compared(
    served: RunningServer, anarcii_bf16: Mapping[str, Path]
) -> None:
    body = described(anarcii_bf16["antibody_4_2"])
    with served.client(served.user("mallory")) as client:
        assert client.post("/api/v1/check", json=body).json()["deltas"] == []
        assert client.post("/api/v1/check", json=body | {"deltas": [SHARK]}).status_code == 404
        assert client.get("/api/v1/compare", params={"first": SHARK, "second": SECOND}).status_code == 404


def test_sketches_tell_how_two_deltas_go_together(served: RunningServer) -> None:
    with served.client() as client:
        asked = {"first": "acme/first", "second": SECOND}
        found = client.get("/api/v1/compare", params=asked).json()
        assert client.get("/api/v1/compare", params=asked).json() == found
        plain = client.get("/api/v1/compare", params={"first": SHARK, "second": SECOND}).json()
        same = client.get("/api/v1/compare", params={"first": SECOND, "second": "acme/second:latest"})
        other = client.get("/api/v1/compare", params={"first": SECOND, "second": MINILM})
    (pair,) = found["pairs"]
    # Each is half of what both have: their cosine is 1/2.
    assert pair["classes"]["all"]["cosine"] == pytest.approx(0.5, abs=0.1)
    assert pair["classes"]["attention"]["exact"] is False
    assert found["deltas"][0]["classes"]["all"] > 0
    assert plain["pairs"][0]["classes"].keys() <= {"other", "norm", "all", "embedding", "attention", "mlp"}
    assert "it has no sketch in both deltas" in {one["reason"] for one in plain["pairs"][0]["skipped"]}
    assert (same.status_code, same.json()["code"]) == (400, "DR0101")
    assert (other.status_code, other.json()["code"]) == (422, "DR0200")


def test_server_judges_without_torch_and_compiles_nothing() -> None:
    program = """
import sys
import deltareg_registry.api
from deltareg.check import fitter
from deltareg.sketch.comparison import estimate
print(sorted({"torch", "numba"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
