from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file as save_torch

from deltareg.artifact import pack
from deltareg.checkpoint import Checkpoint, Hub
from deltareg.errors import BadHeader, BadManifest, DeltaregError, UnsupportedFormat
from deltareg.fingerprint import module_class
from deltareg.sketch import (
    LEAST_VALUES,
    UNRELATED_BELOW,
    Lineage,
    Samples,
    TensorSpec,
    judge,
    measure_lineage,
    read_samples,
    sample_plan,
    take_samples,
)
from deltareg.sketch.floats import PRECISIONS, decode, rounded
from tests import raw, weights
from tests.checkpoint.hub_server import serve_hub
from tests.sketch.measure_lineage import cases, norms_of, samples_of, values_of

Arrays = Mapping[str, NDArray[Any]]

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "uint16": "BF16"}
QUERY = "layers.{}.self_attn.q_proj.weight"
UP = "layers.{}.mlp.up_proj.weight"


def write(path: Path, arrays: Arrays) -> Path:
    """A checkpoint of one file; uint16 arrays are the bits of BF16."""
    path.mkdir(parents=True, exist_ok=True)
    raw.write(
        path / "model.safetensors",
        [
            raw.RawTensor(
                raw.TensorSpec(name, DTYPES[str(array.dtype)], array.shape),
                np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8),
            )
            for name, array in arrays.items()
        ],
    )
    return path


def specs_of(path: Path) -> list[TensorSpec]:
    with Checkpoint.open(path) as opened:
        return [TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in opened.tensors.values()]


def layer_of(path: Path, threads: int = 4) -> bytes:
    with Checkpoint.open(path) as base:
        return take_samples(base, threads)


def compare(base: Path, target: Path, **options: Any) -> Lineage:
    samples = samples_of(base)
    with Checkpoint.open(target) as opened:
        return measure_lineage(samples, opened, **{"delta_norms": {}, **options})


def model(seed: int, layers: int = 4, width: int = 256) -> dict[str, NDArray[Any]]:
    draw = np.random.default_rng(seed)
    found: dict[str, NDArray[Any]] = {}
    for number in range(layers):
        found[QUERY.format(number)] = draw.normal(0, 0.02, (width, width)).astype(np.float32)
        found[UP.format(number)] = draw.normal(0, 0.02, (width, width)).astype(np.float32)
        found[f"layers.{number}.input_layernorm.weight"] = draw.normal(1, 0.05, width).astype(np.float32)
    return found


# --- which places -------------------------------------------------------------------------------------------------


def splitmix(state: int) -> tuple[int, int]:
    """One step, in integers of any size: the next state and the output."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
    return state, mixed ^ (mixed >> 31)


def places_by_hand(name: str, elements: int, tensors: int) -> list[int]:
    """The sampled elements of a tensor, as docs/format.md says."""
    if elements == 0:
        return []
    most = min(256, max(16, 2**20 // tensors))
    count = max(4, min(most, elements // 1024))
    count = min(elements, count - count % 16 if count > 16 else count)
    runs, slots = max(1, count // 16), max(1, elements // 16)
    state = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    found: list[int] = []
    for run in range(runs):
        state, output = splitmix(state)
        low, high = run * slots // runs, (run + 1) * slots // runs
        start = 16 * (low + output % (high - low))
        found += range(start, start + min(16, count))
    return found


def test_splitmix_gives_its_published_numbers() -> None:
    state, first = splitmix(1234567)
    _, second = splitmix(state)
    assert (first, second) == (6457827717110365317, 3203168211198807973)


SPECS = st.lists(
    st.builds(
        TensorSpec,
        name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        dtype=st.sampled_from(["BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2", "I64", "BOOL", "F8_E8M0", "C64"]),
        shape=st.lists(st.one_of(st.integers(0, 20), st.sampled_from([1024, 4096, 8192])), max_size=3).map(tuple),
    ),
    max_size=12,
    unique_by=lambda spec: spec.name,
)


@settings(deadline=None)
@given(SPECS)
def test_plan_is_what_the_format_says_and_within_each_tensor(specs: list[TensorSpec]) -> None:
    plan = sample_plan(specs)
    found: dict[str, list[int]] = {spec.name: [] for spec in specs}
    for owner, start, length in zip(plan.owners.tolist(), plan.starts.tolist(), plan.lengths.tolist(), strict=True):
        found[plan.tensors[owner].name] += range(start, start + length)
    for spec in specs:
        floats = spec.dtype in ("BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2")
        elements = math.prod(spec.shape)
        expected = places_by_hand(spec.name, elements, len(specs)) if floats else []
        assert found[spec.name] == expected
        assert len(set(expected)) == len(expected)
        assert all(0 <= place < elements for place in expected)


@settings(deadline=None)
@given(SPECS, st.randoms(use_true_random=False))
def test_plan_does_not_depend_on_the_order_of_the_tensors(specs: list[TensorSpec], shuffler: random.Random) -> None:
    shuffled = list(specs)
    shuffler.shuffle(shuffled)
    first, second = sample_plan(specs), sample_plan(shuffled)
    assert first.tensors == second.tensors
    assert first.starts.tolist() == second.starts.tolist()


@pytest.mark.parametrize(
    ("tensors", "elements", "values"),
    [
        (1, 3, 3),
        (1, 4, 4),
        (1, 5000, 4),
        (1, 9000, 8),
        (1, 2**15, 32),
        (1, 50_000, 48),
        (723, 2**30, 256),
        (90_000, 2**30, 16),
        (300_000, 2**30, 16),
        (300_000, 1000, 4),
    ],
)
def test_number_of_values_of_a_tensor(tensors: int, elements: int, values: int) -> None:
    others = [TensorSpec(f"other.{number}", "I64", (1,)) for number in range(tensors - 1)]
    assert sample_plan([TensorSpec("w", "BF16", (elements,)), *others]).values == values


def test_mixture_of_90_000_tensors_has_samples_below_6_megabytes() -> None:
    specs = [TensorSpec(f"layers.{n // 600}.mlp.experts.{n % 600}.w", "BF16", (1408, 2048)) for n in range(90_000)]
    plan = sample_plan(specs)
    assert plan.nbytes == 90_000 * 16 * 2
    noise = np.random.default_rng(1).integers(0, 2**16, plan.values, np.uint16)
    assert len(pack(noise.tobytes())) < 6e6


def test_tensor_beyond_every_machine_is_refused() -> None:
    with pytest.raises(BadManifest, match="2\\^40"):
        sample_plan([TensorSpec("w", "F32", (2**53 - 1,) * 1000)])
    assert sample_plan([TensorSpec("w", "F32", (2**53 - 1, 0))]).values == 0


# --- the layer ----------------------------------------------------------------------------------------------------


def test_samples_are_the_base_at_the_places_of_the_plan(anarcii: Mapping[str, Path]) -> None:
    base = anarcii["shark_4_2"]
    tensors = raw.read(base)
    expected = np.concatenate(
        [
            values_of(tensors[name])[places_by_hand(name, tensors[name].data.size // 4, len(tensors))]
            for name in sorted(tensors)
        ]
    )
    assert np.array_equal(samples_of(base).values, expected)


def test_layer_is_small(anarcii: Mapping[str, Path], anarcii_bf16: Mapping[str, Path]) -> None:
    assert len(layer_of(anarcii_bf16["shark_4_2"])) < 2500
    assert len(layer_of(anarcii["shark_4_2"])) < 5000


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_layer_is_the_same_for_every_number_of_threads(minilm: weights.Pair, threads: int) -> None:
    assert layer_of(minilm.base, threads) == layer_of(minilm.base)


def test_layer_does_not_depend_on_shards_or_order(tmp_path: Path) -> None:
    arrays = model(1)
    first = write(tmp_path / "a", arrays)
    second = write(tmp_path / "b", dict(reversed(list(arrays.items()))))
    assert layer_of(first) == layer_of(second)
    shuffled = read_samples(layer_of(first), list(reversed(specs_of(first))))
    assert np.array_equal(shuffled.values, samples_of(first).values)


def test_odd_tensors_are_sampled_whole(tmp_path: Path) -> None:
    arrays = {
        "scalar": np.array(2.5, np.float64),
        "empty": np.zeros((0, 4), np.float32),
        "three": np.array([1, -2, 3], np.float16),
        "ids": np.arange(100),
        "half": raw.to_bf16(np.array([1.5, -0.0], np.float32)),
    }
    samples = samples_of(write(tmp_path, arrays))
    assert [spec.name for spec in samples.plan.tensors] == ["half", "scalar", "three"]
    assert samples.values.tolist() == [1.5, -0.0, 2.5, 1, -2, 3]


def test_model_without_floats_has_an_empty_layer(tmp_path: Path) -> None:
    base = write(tmp_path, {"ids": np.arange(100)})
    assert samples_of(base).values.size == 0
    lineage = compare(base, base)
    assert judge(lineage) == "unknown"
    assert lineage.total.cosine is None
    assert lineage.classes == {}


def bomb(size: int) -> bytes:
    return zstandard.ZstdCompressor(level=9).compress(bytes(size))


def test_damaged_layers_are_refused(tmp_path: Path) -> None:
    base = write(tmp_path, model(1))
    specs, layer = specs_of(base), layer_of(base)
    content = zstandard.ZstdDecompressor().decompress(layer)
    damaged: dict[str, tuple[bytes, Sequence[TensorSpec]]] = {
        "empty": (b"", specs),
        "cut off": (layer[:-1], specs),
        "followed by a byte": (layer + b"\0", specs),
        "no zstd": (content, specs),
        "shorter": (pack(content[:-2]), specs),
        "longer": (pack(content + b"\0"), specs),
        "head cut off": (pack(content[:6]), specs),
        "nothing in it": (pack(b""), specs),
        "other magic": (pack(b"DPrj" + content[4:]), specs),
        "a bomb": (bomb(1 << 28), specs),
        "of other tensors": (layer, specs[:-1]),
        "of other dtypes": (layer, [dataclasses.replace(spec, dtype="F64") for spec in specs]),
        "of a monster": (layer, [TensorSpec("w", "F32", (2**50, 2**50))]),
    }
    for what, (data, tensors) in damaged.items():
        with pytest.raises(BadManifest):
            read_samples(data, tensors)
            pytest.fail(f"a layer that is {what} was read")


def test_layer_of_another_version_is_not_read(tmp_path: Path) -> None:
    base = write(tmp_path, model(1))
    content = zstandard.ZstdDecompressor().decompress(layer_of(base))
    for place in (4, 5, 7):
        with pytest.raises(UnsupportedFormat, match="version"):
            read_samples(pack(content[:place] + b"\2" + content[place + 1 :]), specs_of(base))


@settings(deadline=None)
@given(st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject) -> None:
    specs = [TensorSpec("a", "BF16", (64, 64)), TensorSpec("b", "F64", ()), TensorSpec("c", "F8_E4M3", (7,))]
    content = data.draw(st.binary(max_size=40).map(lambda tail: b"DSmp\1\0\0\0" + tail) | st.binary(max_size=40))
    try:
        samples = read_samples(data.draw(st.sampled_from([content, pack(content)])), specs)
    except DeltaregError:
        return
    assert samples.values.size == samples.plan.values == 4 + 1 + 4


# --- comparing ----------------------------------------------------------------------------------------------------


def exact(base: Path, target: Path) -> tuple[float, float, dict[str, float]]:
    """Cosine, relative distance and ‖Δ‖ of each tensor, over all elements of what both have in one shape."""
    first, second = raw.read(base), raw.read(target)
    squares = np.zeros(4)
    norms: dict[str, float] = {}
    for name, tensor in first.items():
        if tensor.spec.dtype != "I64" and name in second and second[name].spec.shape == tensor.spec.shape:
            x, y = values_of(tensor), values_of(second[name])
            squares += (x @ x, y @ y, x @ y, (y - x) @ (y - x))
            norms[name] = float(np.linalg.norm(y - x))
    return float(squares[2] / np.sqrt(squares[0] * squares[1])), float(np.sqrt(squares[3] / squares[0])), norms


@pytest.mark.parametrize("name", ["minilm", "shark_4_2", "tcr_4_2"])
def test_estimates_are_near_the_exact_values(name: str, minilm: weights.Pair, anarcii: Mapping[str, Path]) -> None:
    pair = minilm if name == "minilm" else weights.Pair(anarcii["antibody_4_2"], anarcii[name])
    cosine, distance, norms = exact(pair.base, pair.post)
    total = compare(pair.base, pair.post, delta_norms=norms, base_norms=norms_of(pair.base)).total
    # A sum of squares of n values has a relative error of √(2/n) if they are normal, and its root half of that: 2 % for
    # the 1000 values of the protein models. Runs are alike in their rows, and tensors count unequally: five times that.
    assert total.distance == pytest.approx(distance, rel=0.12)
    assert total.distance_to_delta == pytest.approx(1, rel=0.12)
    assert total.cosine == pytest.approx(cosine, abs=0.015)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(1e-3, 2))
def test_estimates_of_normal_weights_are_unbiased_within_their_error(
    tmp_path_factory: pytest.TempPathFactory, seed: int, step: float
) -> None:
    path = tmp_path_factory.mktemp("pair")
    base = model(seed, layers=3)
    draw = np.random.default_rng([seed, 1])
    post = {name: (array + draw.normal(0, 0.02 * step, array.shape)).astype(np.float32) for name, array in base.items()}
    lineage = compare(write(path / "base", base), write(path / "post", post))
    mlp = lineage.classes["mlp"]
    # Three tensors of 64 values: six standard errors of a norm's ratio, 1/√(2n) on either side, and of a cosine.
    assert mlp.values == 192
    assert mlp.distance == pytest.approx(step, rel=6 / math.sqrt(192))
    true = 1 / math.hypot(1, step)
    assert mlp.matrix_cosine == pytest.approx(true, abs=6 * (1 - true**2) / math.sqrt(192) + 0.01)


def test_cosine_and_distance_by_hand_where_all_values_are_sampled(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {"a": np.array([3.0, 4.0]), "mlp.b": np.array([1.0, 0.0, 0.0])})
    target = write(tmp_path / "target", {"a": np.array([3.0, 4.0]), "mlp.b": np.array([0.0, 2.0, 0.0])})
    lineage = compare(base, target, delta_norms={"mlp.b": 0.5})
    assert lineage.total.values == 5
    assert lineage.total.equal == pytest.approx(3 / 5)
    assert lineage.total.cosine == pytest.approx(25 / math.sqrt(26 * 29))
    assert lineage.total.distance == pytest.approx(math.sqrt(5 / 26))
    assert lineage.total.distance_to_delta == pytest.approx(math.sqrt(5) / 0.5)
    assert lineage.classes["mlp"].cosine == 0
    assert lineage.classes["other"].distance == 0
    assert lineage.classes["other"].distance_to_delta is None
    assert lineage.total.matrix_cosine is None


def test_base_norms_replace_their_estimate(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {"a": np.array([3.0, 4.0]), "b": np.array([1.0])})
    target = write(tmp_path / "target", {"a": np.array([3.0, 5.0]), "b": np.array([1.0])})
    assert compare(base, target, base_norms={"a": 50.0, "b": 0.0}).total.distance == pytest.approx(
        1 / math.hypot(50, 1)
    )


def test_measure_does_not_depend_on_threads_or_on_the_targets_files(tmp_path: Path) -> None:
    base = write(tmp_path / "base", model(1, layers=8))
    arrays = model(2, layers=8)
    target, turned = write(tmp_path / "a", arrays), write(tmp_path / "b", dict(reversed(list(arrays.items()))))
    first = compare(base, target, threads=1)
    assert compare(base, target, threads=5) == first
    assert compare(base, turned) == first


def test_what_cannot_be_compared_is_counted(tmp_path: Path) -> None:
    arrays = model(1)
    base = write(tmp_path / "base", arrays)
    target = dict(arrays)
    del target[QUERY.format(0)]
    target[QUERY.format(1)] = arrays[QUERY.format(1)].reshape(128, 512)
    target[QUERY.format(2)] = np.zeros((256, 256), np.int64)
    target["more"] = np.ones(3)
    lineage = compare(base, write(tmp_path / "target", target))
    assert (lineage.missing, lineage.reshaped, lineage.replaced) == (1, 1, 1)
    assert lineage.total.tensors == len(arrays) - 3
    assert lineage.classes["attention"].tensors == 1
    assert judge(lineage) == "same"


def test_renamed_tensors_are_found(tmp_path: Path) -> None:
    arrays = model(1)
    base = write(tmp_path / "base", arrays)
    target = write(tmp_path / "target", {f"model.{name}": array for name, array in arrays.items()})
    assert compare(base, target).missing == len(arrays)
    assert judge(compare(base, target)) == "unknown"
    assert judge(compare(base, target, renamed={name: f"model.{name}" for name in arrays})) == "same"


def test_numbers_that_are_none_are_left_out_and_counted(tmp_path: Path) -> None:
    arrays = model(1)
    base, target = dict(arrays), dict(arrays)
    base["a"] = np.array([1, np.nan, np.inf, 1e300, 1], np.float64)[:4]
    target["a"] = np.array([np.nan, 1, 1, 1e300, 1], np.float64)[:4]
    target[UP.format(0)] = np.full((256, 256), np.nan, np.float32)
    lineage = compare(write(tmp_path / "base", base), write(tmp_path / "target", target))
    assert lineage.left_out == 4 + 64
    assert lineage.total.tensors == len(arrays) - 1
    assert lineage.total.cosine == pytest.approx(1)
    assert judge(lineage) == "same"


def test_largest_numbers_do_not_overflow(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {"a": np.full(4, 2.0**450), "b": np.full(4, -(2.0**450))})
    lineage = compare(base, base, delta_norms={"a": 1e308, "b": 1e308})
    assert lineage.total.cosine == pytest.approx(1)
    assert lineage.total.distance == 0


def test_tensors_of_zeros_say_nothing(tmp_path: Path) -> None:
    zeros = {UP.format(number): np.zeros((256, 256), np.float32) for number in range(4)}
    base, other = write(tmp_path / "zeros", zeros), write(tmp_path / "ones", model(1))
    for target in (base, other):
        lineage = compare(base, target)
        assert lineage.total.matrix_cosine is None
        assert lineage.total.cosine is None
        assert lineage.total.distance is None
        assert judge(lineage) == "unknown"
    assert compare(base, base).total.equal == 1


def test_negative_zero_is_not_equal_to_zero(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {"a": np.array([0.0, -0.0, 0.0, 1.0])})
    target = write(tmp_path / "target", {"a": np.array([0.0, -0.0, -0.0, 1.0])})
    assert compare(base, target).total.equal == 3 / 4


@pytest.mark.parametrize("where", ["first", "last"])
def test_truncated_target_raises_the_error_of_every_truncated_file(tmp_path: Path, where: str) -> None:
    base, target = write(tmp_path / "base", model(1)), write(tmp_path / "target", model(1))
    file = target / "model.safetensors"
    samples = samples_of(base)
    with Checkpoint.open(target) as opened:
        size = file.stat().st_size
        os.truncate(file, opened.tensors[QUERY.format(0)].start + 8 if where == "first" else size - 256 * 256 * 4)
        with pytest.raises(BadHeader, match=r"model\.safetensors is truncated"):
            measure_lineage(samples, opened, delta_norms={})
        with pytest.raises(BadHeader, match=r"model\.safetensors is truncated"):
            take_samples(opened)


def test_few_reads_are_of_matrices_and_say_the_same(minilm: weights.Pair) -> None:
    everything = compare(minilm.base, minilm.post)
    few = compare(minilm.base, minilm.post, most_reads=100)
    assert (few.reads, few.total.values) == (100, few.total.matrix_values)
    assert few.bytes_read <= 100 * 16 * 4
    assert everything.reads > 500
    assert few.total.cosine == pytest.approx(everything.total.cosine, abs=1e-3)
    assert judge(few) == "related"
    assert compare(minilm.base, minilm.post, most_reads=0).reads == 0


def test_reads_of_a_target_are_counted(anarcii: Mapping[str, Path], anarcii_bf16: Mapping[str, Path]) -> None:
    samples = samples_of(anarcii["shark_4_2"])
    for path, width in ((anarcii["tcr_4_2"], 4), (anarcii_bf16["shark_4_2"], 2)):
        lineage = compare(anarcii["shark_4_2"], path)
        assert lineage.bytes_read == width * lineage.total.values
        assert lineage.reads <= samples.plan.owners.size


def test_target_on_the_hub_is_read_by_byte_ranges(tmp_path: Path, minilm_bf16: weights.Pair) -> None:
    model_file = (minilm_bf16.post / "model.safetensors").read_bytes()
    samples = samples_of(minilm_bf16.base)
    local = compare(minilm_bf16.base, minilm_bf16.post, most_reads=40)
    with serve_hub("acme/post", {"model.safetensors": model_file, "config.json": b"{}"}) as server:
        hub = Hub(endpoint=server.url, cache=tmp_path)
        with Checkpoint.open("hf://acme/post", headers_only=True, hub=hub) as target:
            before = len(server.requests)
            lineage = measure_lineage(samples, target, delta_norms={}, threads=8, most_reads=40)
            assert len(server.requests) - before == 40
    assert lineage == local
    assert judge(lineage) == "related"


# --- the verdict --------------------------------------------------------------------------------------------------


def test_every_real_pair_has_its_verdict_with_room_to_spare(tmp_path: Path) -> None:
    found = list(cases(tmp_path))
    assert {case.verdict for case in found} == {"same", "related", "unrelated"}
    for case in found:
        assert judge(case.lineage) == case.verdict, case
        assert case.lineage.lowest is not None
        cosine = case.lineage.lowest[1]
        assert abs(cosine - UNRELATED_BELOW) > 0.2, case


def test_heads_in_another_order_are_told_by_their_class(tmp_path: Path) -> None:
    heads = [case for case in cases(tmp_path) if "heads" in case.target]
    assert len(heads) == 2
    for case in heads:
        assert case.lineage.lowest is not None
        assert case.lineage.lowest[0] == "attention"
        assert case.lineage.classes["mlp"].matrix_equal == 1


def test_matrix_that_all_models_share_does_not_speak_for_the_others(tmp_path: Path) -> None:
    # Mamba's A_log is the same table of large numbers in every model before it is trained.
    shared = {f"layers.{n}.mixer.A_log": np.log(np.tile(np.arange(1.0, 17), (256, 1))) for n in range(4)}
    lineage = compare(write(tmp_path / "a", model(1) | shared), write(tmp_path / "b", model(2) | shared))
    assert lineage.total.cosine is not None
    assert lineage.total.cosine > 0.9
    assert judge(lineage) == "unrelated"


def test_few_values_give_no_verdict(tmp_path: Path) -> None:
    small = {UP.format(number): np.random.default_rng(number).normal(size=(8, 8)) for number in range(15)}
    base = write(tmp_path / "base", small)
    assert compare(base, base).total.matrix_values == LEAST_VALUES - 4
    assert judge(compare(base, base)) == "unknown"
    small[UP.format(15)] = np.random.default_rng(15).normal(size=(8, 8))
    assert judge(compare(write(tmp_path / "more", small), tmp_path / "more")) == "same"


# --- floats -------------------------------------------------------------------------------------------------------

TORCH = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_every_dtype_is_decoded_as_torch_does(dtype: str) -> None:
    width = TORCH[dtype].itemsize
    patterns = np.arange(256 if width == 1 else 65536, dtype=f"<u{width}") << (8 * width - (8 if width == 1 else 16))
    expected = torch.from_numpy(patterns.view(np.uint8).copy()).view(TORCH[dtype]).to(torch.float64).numpy()
    found = decode(patterns.view(np.uint8), dtype)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found[~np.isnan(found)]), np.signbit(expected[~np.isnan(expected)]))


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1), st.sampled_from(["BF16", "F16", "F32"]))
def test_rounding_is_that_of_torch(values: list[float], dtype: str) -> None:
    expected = torch.tensor(values, dtype=torch.float32).to(TORCH[dtype]).to(torch.float64).numpy()
    found = rounded(np.array(values), dtype)
    assert np.array_equal(found, expected)
    assert np.array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_checkpoint_cast_down_and_up_is_the_same(tmp_path: Path, dtype: str) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in model(1).items()}
    for side, kind in (("low", TORCH[dtype]), ("high", torch.float32)):
        (tmp_path / side).mkdir()
        save_torch({name: tensor.to(kind) for name, tensor in tensors.items()}, tmp_path / side / "model.safetensors")
    for pair in (("low", "high"), ("high", "low")):
        lineage = compare(*(tmp_path / side for side in pair))
        assert judge(lineage) == "same"
        assert lineage.total.distance is not None
        assert 0 < lineage.total.distance < 2**-8


def test_fp8_copy_of_a_model_is_related(tmp_path: Path) -> None:
    arrays = model(1)
    base = write(tmp_path / "base", arrays)
    (tmp_path / "fp8").mkdir()
    save_torch(
        {name: torch.from_numpy(array).to(torch.float8_e4m3fn) for name, array in arrays.items()},
        tmp_path / "fp8" / "model.safetensors",
    )
    assert judge(compare(base, tmp_path / "fp8")) == "related"
    assert judge(compare(tmp_path / "fp8", base)) == "related"


def test_classes_are_those_of_the_names(small_llama: weights.Pair) -> None:
    lineage = compare(small_llama.base, small_llama.post)
    assert set(lineage.classes) == {module_class(spec.name) for spec in samples_of(small_llama.base).plan.tensors}


def test_sample_values_are_exact_in_float64(small_llama: weights.Pair) -> None:
    samples: Samples = samples_of(small_llama.base)
    assert samples.values.dtype == np.float64
    assert np.array_equal(rounded(samples.values, "BF16"), samples.values)
