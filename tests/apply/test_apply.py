"""Deltas on checkpoints: what comes out, on real files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import deltareg
from deltareg import Registry
from deltareg.errors import InvalidArgument, NotFound, NotHomologous, OutputExists
from deltareg.progress import Progress
from tests.codec.oracle import FORMATS, accumulate, accumulator, difference
from tests.codec.tensors import Raw, of, read_tensors, write_checkpoint
from tests.weights import Pair

BF16, F32 = FORMATS["BF16"], FORMATS["F32"]


def digests(path: Path) -> dict[str, str]:
    """The digest of every file below a directory."""
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def weights(path: Path) -> dict[str, str]:
    """The digests of the safetensors files."""
    return {name: digest for name, digest in digests(path).items() if name.endswith(".safetensors")}


class Pairs:
    """Small pairs, their deltas, and what becomes of targets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.registry = Registry(path / "home")
        self._made = 0

    def write(self, tensors: Mapping[str, Raw], files: int = 1) -> Path:
        """A checkpoint with these tensors."""
        self._made += 1
        return write_checkpoint(self.path / f"checkpoint-{self._made}", tensors, files)

    def diff(self, name: str, base: Mapping[str, Raw], post: Mapping[str, Raw]) -> tuple[Path, Path]:
        """Take a delta; returns both checkpoints."""
        before, after = self.write(base), self.write(post)
        deltareg.diff(before, after, self.registry, name)
        return before, after

    def apply(
        self, target: Path, *, with_added: Any = None, **weights: float
    ) -> tuple[dict[str, Raw], deltareg.apply.ApplyReport]:
        """The tensors that come out of `acme/NAME:1.0.0` at these weights, and the report."""
        self._made += 1
        out = self.path / f"out-{self._made}"
        deltas = {f"acme/{name}:1.0.0": weight for name, weight in weights.items()}
        report = deltareg.apply(target, deltas, self.registry, out, with_added=with_added)
        return read_tensors(out), report


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    return Pairs(tmp_path)


def vector(dtype: str, *values: float) -> Raw:
    """A tensor of these numbers."""
    return of(dtype, FORMATS[dtype].narrow(np.array(values)))


# --- weight 1 and weight 0 ----------------------------------------------------------------------------------------


def test_post_comes_out_bit_for_bit_in_bf16(
    tmp_path: Path, registry: Registry, anarcii_bf16: Mapping[str, Path]
) -> None:
    deltareg.apply(anarcii_bf16["antibody_4_2"], {"acme/shark:1.0.0": 1}, registry, tmp_path / "out")
    assert read_tensors(tmp_path / "out") == read_tensors(anarcii_bf16["shark_4_2"])


def test_post_comes_out_bit_for_bit_in_fp32(tmp_path: Path, registry: Registry, anarcii: Mapping[str, Path]) -> None:
    deltareg.apply(anarcii["antibody_4_2"], {"acme/shark-fp32:1.0.0": 1}, registry, tmp_path / "out")
    assert read_tensors(tmp_path / "out") == read_tensors(anarcii["shark_4_2"])


def test_sharded_post_comes_out_bit_for_bit(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    report = deltareg.apply(small_llama.base, {"acme/llama:1.0.0": 1}, llama, tmp_path / "out")
    assert read_tensors(tmp_path / "out") == read_tensors(small_llama.post)
    # The output is laid out as the target is.
    assert sorted(weights(tmp_path / "out")) == sorted(weights(small_llama.base))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert (
        index["weight_map"] == json.loads((small_llama.base / "model.safetensors.index.json").read_text())["weight_map"]
    )
    assert report.bytes_written == sum(len(tensor.data) for tensor in read_tensors(small_llama.post).values())


def test_weight_0_gives_the_target(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    deltareg.apply(small_llama.post, {"acme/llama:1.0.0": 0}, llama, tmp_path / "out")
    assert read_tensors(tmp_path / "out") == read_tensors(small_llama.post)
    assert (tmp_path / "out" / "config.json").read_bytes() == (small_llama.post / "config.json").read_bytes()


def test_every_16_bit_pattern_survives_weights_1_and_0(pairs: Pairs) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    mixed = np.random.default_rng(1).permutation(every)
    names = ("BF16", "F16", "I16", "U16")
    before, after = pairs.diff(
        "acme/all:1.0.0", {name: of(name, every) for name in names}, {name: of(name, mixed) for name in names}
    )
    assert pairs.apply(before, all=1)[0] == read_tensors(after)
    for target in (before, after):
        assert pairs.apply(target, all=0)[0] == read_tensors(target)


def test_weight_minus_1_takes_an_exact_delta_away_again(pairs: Pairs) -> None:
    base = np.random.default_rng(1).normal(1, 0.1, 5000)
    before, after = pairs.diff("acme/step:1.0.0", {"w": vector("BF16", *base)}, {"w": vector("BF16", *(base * 1.01))})
    assert pairs.apply(after, step=-1)[0] == read_tensors(before)


def test_zero_is_not_added_to_what_does_not_change(pairs: Pairs) -> None:
    # x + (+0) would turn −0 into +0; and NaN would lose its payload.
    base = {"w": of("BF16", np.array([0x3F80] * 40, np.uint16))}
    post = {"w": of("BF16", np.array([0x3F80] * 39 + [0x3F90], np.uint16))}
    pairs.diff("acme/one:1.0.0", base, post)
    target = np.array([0x8000, 0x0000, 0xFF81, 0x7F80, 0x0001] * 8, np.uint16)
    out, _ = pairs.apply(pairs.write({"w": of("BF16", target)}), one=0.5)
    assert out["w"].data[:78] == target.tobytes()[:78]


# --- sums ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_weighted_sums_follow_the_contract(pairs: Pairs, dtype: str, count: int) -> None:
    format_ = FORMATS[dtype]
    draw = np.random.default_rng(count)
    target = format_.narrow(draw.normal(0, 1, 3000))
    kind = accumulator(format_)
    total = format_.widen(target).astype(kind)
    amounts = {f"d{number}": weight for number, weight in enumerate((0.7, -0.3, 1.0, 0.001)[:count])}
    for name, weight in amounts.items():
        base = format_.narrow(draw.normal(1, 0.1, 3000))
        post = format_.narrow(format_.widen(base) * draw.uniform(0.9, 1.1, 3000))
        pairs.diff(f"acme/{name}:1.0.0", {"w": of(dtype, base)}, {"w": of(dtype, post)})
        # Within a factor of 2 the difference is exact (Sterbenz): there is nothing to mend.
        term = format_.widen(difference(base, post, format_, format_)).astype(kind)
        total = np.where(base == post, total, accumulate(total, term, weight))
    out, report = pairs.apply(pairs.write({"w": of(dtype, target)}), **amounts)
    assert out["w"].data == format_.narrow(total.astype(np.float64)).tobytes()
    assert [(delta.reference, delta.weight) for delta in report.deltas] == [
        (f"acme/{name}:1.0.0", weight) for name, weight in amounts.items()
    ]


def test_output_does_not_depend_on_threads(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    deltas = [("acme/llama:1.0.0", 0.7), ("acme/llama:1.0.0", -0.2)]
    for threads in (1, 2, 3, 4):
        deltareg.apply(small_llama.post, deltas, llama, tmp_path / f"out-{threads}", threads=threads)
    first = digests(tmp_path / "out-1")
    assert len(first) >= 6
    assert all(digests(tmp_path / f"out-{threads}") == first for threads in (2, 3, 4))


def test_long_tensor_does_not_depend_on_threads(pairs: Pairs) -> None:
    draw = np.random.default_rng(3)
    base = BF16.narrow(draw.normal(0, 1, 3_500_000))
    post = BF16.narrow(BF16.widen(base) * draw.choice([1.0, 1.01, 0.02], base.size))
    before, after = pairs.diff("acme/long:1.0.0", {"w": of("BF16", base)}, {"w": of("BF16", post)})
    seen: set[str] = set()
    for threads in (1, 2, 4):
        for weight in (1.0, 0.3):
            out = pairs.path / f"out-{threads}-{weight}"
            deltareg.apply(before, {"acme/long:1.0.0": weight}, pairs.registry, out, threads=threads)
            seen.update(weights(out).values())
    assert len(seen) == 2
    assert read_tensors(pairs.path / "out-2-1.0") == read_tensors(after)


def test_progress_tells_of_all_bytes(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    class Counted(Progress):
        total = done = ended = 0

        def begin(self, step: str, total: int) -> None:
            self.total += total

        def advance(self, count: int) -> None:
            self.done += count

        def end(self, *, done: bool) -> None:
            self.ended += 1

    counted = Counted()
    report = deltareg.apply(
        small_llama.base, {"acme/llama:1.0.0": 0.5}, llama, tmp_path / "out", threads=1, progress=counted
    )
    assert counted.done == counted.total == report.bytes_written
    assert counted.ended == 1


# --- tensors that are not there, not numbers, or of another dtype ---------------------------------------------------


def test_added_removed_and_replaced_tensors(pairs: Pairs) -> None:
    base = {
        "w": vector("BF16", 1, 2, 3, 4),
        "ids": of("I64", np.arange(4, dtype=np.uint64)),
        "flag": of("BOOL", np.array([0, 1, 1], np.uint8)),
        "gone": vector("F32", 5),
        "scalar": Raw("F32", (), b"\0\0\x80\x3f"),
        "empty": Raw("BF16", (0, 4), b""),
    }
    post = {
        "w": vector("BF16", 1, 2, 3, 5),
        "ids": of("I64", np.array([0, 1, 7, 3], np.uint64)),
        "flag": of("BOOL", np.array([1, 1, 1], np.uint8)),
        "scalar": Raw("F32", (), b"\0\0\0\x40"),
        "empty": Raw("BF16", (0, 4), b""),
        "new": vector("F32", 8, 9),
        "new.empty": Raw("F16", (3, 0), b""),
    }
    before, after = pairs.diff("acme/mixed:1.0.0", base, post)
    out, report = pairs.apply(before, mixed=1)
    assert out == read_tensors(after)
    assert (report.added_tensors, report.removed_tensors) == (2, 1)
    assert any("gone" in warning for warning in report.warnings)
    # On another target: integers that changed become post's, others stay; the scalar is summed.
    target = base | {"ids": of("I64", np.array([9, 9, 9, 9], np.uint64)), "scalar": Raw("F32", (), b"\0\0\x40\x40")}
    out, _ = pairs.apply(pairs.write(target), with_added=True, mixed=0.5)
    assert np.frombuffer(out["ids"].data, np.uint64).tolist() == [9, 9, 7, 9]
    assert np.frombuffer(out["scalar"].data, np.float32).tolist() == [3.5]
    assert np.array_equal(BF16.widen(np.frombuffer(out["w"].data, np.uint16)), [1, 2, 3, 4.5])
    assert out["new"] == post["new"]
    assert "gone" not in out


def test_target_may_lack_what_post_removed(pairs: Pairs) -> None:
    base = {"w": vector("BF16", 1, 2), "gone": vector("F32", 5)}
    pairs.diff("acme/less:1.0.0", base, {"w": vector("BF16", 1, 3)})
    out, report = pairs.apply(pairs.write({"w": vector("BF16", 1, 2)}), less=1)
    assert out == {"w": vector("BF16", 1, 3)}
    assert report.removed_tensors == 0


def test_added_tensors_go_to_the_last_file(pairs: Pairs) -> None:
    base = {name: vector("BF16", 1, 2) for name in ("a", "b", "c", "d")}
    post = base | {"new": vector("BF16", 7)}
    pairs.diff("acme/more:1.0.0", base, post)
    target = pairs.write(base, files=2)
    out = pairs.path / "out"
    deltareg.apply(target, {"acme/more:1.0.0": 1}, pairs.registry, out)
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["new"] == "model-00002-of-00002.safetensors"
    assert read_tensors(out) == post


@pytest.mark.parametrize(("one", "other"), [("BF16", "F32"), ("F32", "BF16"), ("F16", "BF16"), ("F64", "F16")])
def test_pair_whose_dtypes_differ(pairs: Pairs, one: str, other: str) -> None:
    draw = np.random.default_rng(4)
    values = draw.normal(0, 1, 2000)
    base = {"w": vector(one, *values), "still": vector(one, 0.5, -0.25), "same": vector("F32", 1)}
    post = {"w": vector(other, *(values * 1.01)), "still": vector(other, 0.5, -0.25), "same": vector("F32", 1)}
    before, after = pairs.diff("acme/mixed:1.0.0", base, post)
    # On the base's dtype the output has post's; on another target it keeps the target's.
    assert pairs.apply(before, mixed=1)[0] == read_tensors(after)
    assert pairs.apply(before, mixed=0)[0] == read_tensors(before)
    target = {"w": vector("F64", *values), "still": vector("F64", 0.5, -0.25), "same": vector("F32", 1)}
    out, _ = pairs.apply(pairs.write(target), mixed=1)
    kept = other if one == "F64" else "F64"
    assert {name: tensor.dtype for name, tensor in out.items()} == {"w": kept, "still": kept, "same": "F32"}
    got = FORMATS[kept].widen(np.frombuffer(out["w"].data, FORMATS[kept].bits))
    assert np.allclose(got, values * 1.01, rtol=0.02, atol=1e-3)


def test_dtype_pairs_that_cannot_be_added_are_replaced(pairs: Pairs) -> None:
    base = {
        "a": vector("F32", 1, 2),
        "b": of("I64", np.array([1], np.uint64)),
        "packed": Raw("F4", (8,), b"abcd"),
        "unpacked": vector("BF16", *range(8)),
        "w": vector("F32", 1),
    }
    post = {
        "a": Raw("C64", (2,), vector("F32", 1, 2, 3, 4).data),
        "b": vector("F32", 0.5),
        "packed": vector("BF16", *range(8)),
        "unpacked": Raw("F6_E2M3", (8,), b"abcdef"),
        "w": vector("F32", 2),
    }
    before, after = pairs.diff("acme/other:1.0.0", base, post)
    out, _ = pairs.apply(before, other=1)
    assert out == read_tensors(after)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U32", "F4", "F6_E2M3", "C64", "F64"])
def test_every_class_of_dtypes_is_applied(pairs: Pairs, dtype: str) -> None:
    draw = np.random.default_rng(6)
    width = {"C64": 4, "F64": 8, "U32": 4}.get(dtype, 1)
    base, post = (draw.integers(0, 2 ** (8 * width), 1200, np.dtype(f"<u{width}")) for _ in range(2))
    post[::3] = base[::3]
    before, after = pairs.diff("acme/any:1.0.0", {"w": of(dtype, base)}, {"w": of(dtype, post)})
    assert pairs.apply(before, any=1)[0] == read_tensors(after)


def test_bf16_delta_on_an_fp32_target_keeps_fp32(pairs: Pairs) -> None:
    draw = np.random.default_rng(5)
    values = draw.normal(1, 0.1, 2000)
    base, post = BF16.narrow(values), BF16.narrow(values * 1.02)
    pairs.diff("acme/half:1.0.0", {"w": of("BF16", base)}, {"w": of("BF16", post)})
    target = F32.narrow(values)
    out, _ = pairs.apply(pairs.write({"w": of("F32", target)}), half=0.5)
    d1 = BF16.widen(difference(base, post, BF16, BF16))
    total = np.where(base == post, F32.widen(target), F32.widen(target) + d1 * 0.5)
    assert out["w"] == of("F32", F32.narrow(total))


def test_fp32_delta_on_a_bf16_target_keeps_bf16(pairs: Pairs) -> None:
    draw = np.random.default_rng(6)
    values = draw.normal(1, 0.1, 2000)
    base, post = F32.narrow(values), F32.narrow(values * 1.02)
    pairs.diff("acme/full:1.0.0", {"w": of("F32", base)}, {"w": of("F32", post)})
    target = BF16.narrow(values)
    out, _ = pairs.apply(pairs.write({"w": of("BF16", target)}), full=0.5)
    d1 = F32.widen(difference(base, post, F32, F32))
    assert out["w"] == of("BF16", BF16.narrow(BF16.widen(target) + d1 * 0.5))


def test_config_names_the_dtype_of_the_output(pairs: Pairs) -> None:
    before, after = pairs.diff("acme/wide:1.0.0", {"w": vector("BF16", 1)}, {"w": vector("F32", 1.5)})
    (before / "config.json").write_text('{"model_type": "toy", "torch_dtype": "bfloat16", "hidden_size": 1}')
    out = pairs.path / "out"
    deltareg.apply(before, {"acme/wide:1.0.0": 1}, pairs.registry, out)
    assert json.loads((out / "config.json").read_text()) == {
        "model_type": "toy",
        "torch_dtype": "float32",
        "hidden_size": 1,
    }
    assert read_tensors(out) == read_tensors(after)


def test_integers_of_two_deltas_are_the_stronger_ones(pairs: Pairs) -> None:
    base = {"w": vector("BF16", 1), "ids": of("I64", np.array([1, 2], np.uint64))}
    for name, value in (("one", 7), ("two", 8)):
        pairs.diff(
            f"acme/{name}:1.0.0", base, {"w": vector("BF16", 2), "ids": of("I64", np.array([1, value], np.uint64))}
        )
    out, report = pairs.apply(pairs.write(base), one=0.4, two=-0.6)
    assert np.frombuffer(out["ids"].data, np.uint64).tolist() == [1, 8]
    assert any("ids" in warning and "acme/two" in warning for warning in report.warnings)


# --- overwrites ---------------------------------------------------------------------------------------------------


def test_overwrites_are_used_on_the_base_and_reported_elsewhere(pairs: Pairs) -> None:
    base = np.full(50, 0x3F80, np.uint16)
    base[:2] = 0
    post = base.copy()
    post[:4] = [0x8000, 0x7FC1, 0xFF80, 0x7F81]
    before, after = pairs.diff("acme/odd:1.0.0", {"w": of("BF16", base)}, {"w": of("BF16", post)})
    out, report = pairs.apply(before, odd=1)
    assert out == read_tensors(after)
    assert (report.overwritten, report.skipped_overwrites, report.warnings) == (4, 0, [])
    for target, amounts in ((before, {"odd": 0.5}), (after, {"odd": 1.0})):
        _, report = pairs.apply(target, **amounts)
        assert (report.overwritten, report.skipped_overwrites) == (0, 4)
        assert "no sum can give" in report.warnings[0]
        assert "4 elements" in report.warnings[0]
        assert report.warnings[0] in (Path(report.out) / "README.md").read_text()


# --- what does not fit --------------------------------------------------------------------------------------------


def test_target_of_other_layers_is_refused_naming_every_tensor(
    tmp_path: Path, registry: Registry, anarcii_bf16: Mapping[str, Path]
) -> None:
    target = anarcii_bf16["antibody_4_1"]
    with pytest.raises(NotHomologous) as caught:
        deltareg.apply(target, {"acme/shark:1.0.0": 1}, registry, tmp_path / "out")
    ours, theirs = read_tensors(anarcii_bf16["antibody_4_2"]), read_tensors(target)
    differing = {
        name
        for name in ours | theirs
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
    }
    assert len(differing) > 12
    findings: list[dict[str, str]] = caught.value.data["findings"]  # type: ignore[assignment]
    assert {one["subject"] for one in findings if one["code"].startswith("tensor-")} == differing
    assert "lineage-unrelated" in {one["code"] for one in findings}
    assert f"{len(findings) - 12} more" in caught.value.message
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_target_whose_integers_have_another_dtype_is_refused(pairs: Pairs) -> None:
    base = {"w": vector("BF16", 1), "ids": of("I64", np.array([1, 2], np.uint64))}
    pairs.diff("acme/ids:1.0.0", base, {"w": vector("BF16", 1), "ids": of("I64", np.array([1, 3], np.uint64))})
    target = pairs.write({"w": vector("BF16", 1), "ids": of("I32", np.array([1, 2], np.uint32))})
    with pytest.raises(NotHomologous, match="ids"):
        pairs.apply(target, ids=1)


def test_deltas_that_do_not_agree_about_a_tensor_are_refused(pairs: Pairs) -> None:
    pairs.diff("acme/float:1.0.0", {"w": vector("F32", 1)}, {"w": vector("F32", 2)})
    pairs.diff("acme/bits:1.0.0", {"w": vector("F32", 1)}, {"w": of("I32", np.array([5], np.uint32))})
    with pytest.raises(NotHomologous, match="w"):
        pairs.apply(pairs.write({"w": vector("F32", 1)}), float=1, bits=1)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, 1e39])
def test_weight_that_is_no_number_is_refused(tmp_path: Path, llama: Registry, small_llama: Pair, weight: float) -> None:
    with pytest.raises(InvalidArgument, match="weight"):
        deltareg.apply(small_llama.base, {"acme/llama:1.0.0": weight}, llama, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_known_is_refused(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    base, out = small_llama.base, tmp_path / "out"
    with pytest.raises(InvalidArgument, match="method"):
        deltareg.apply(base, {"acme/llama:1.0.0": 1}, llama, out, method="magic")
    with pytest.raises(InvalidArgument, match="side files"):
        deltareg.apply(base, {"acme/llama:1.0.0": 1}, llama, out, side_files="both")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="no delta"):
        deltareg.apply(base, {}, llama, out)
    with pytest.raises(InvalidArgument, match="thread"):
        deltareg.apply(base, {"acme/llama:1.0.0": 1}, llama, out, threads=0)
    with pytest.raises(NotFound):
        deltareg.apply(base, {"acme/other:1.0.0": 1}, llama, out)
    with pytest.raises(NotFound):
        deltareg.apply(base, {"acme/llama:9.0.0": 0}, llama, out)
    assert list(tmp_path.iterdir()) == []


# --- where it goes ------------------------------------------------------------------------------------------------


def test_target_is_not_written_over(tmp_path: Path, pairs: Pairs) -> None:
    before, _ = pairs.diff("acme/w:1.0.0", {"w": vector("BF16", 1)}, {"w": vector("BF16", 2)})
    kept = digests(before)
    link = tmp_path / "link"
    link.symlink_to(before)
    for out in (before, link, before / "..", before / "model.safetensors"):
        for overwrite in (False, True):
            with pytest.raises(OutputExists):
                deltareg.apply(before, {"acme/w:1.0.0": 1}, pairs.registry, out, overwrite=overwrite)
    with pytest.raises(OutputExists):
        deltareg.apply(before / "model.safetensors", {"acme/w:1.0.0": 1}, pairs.registry, before)
    assert digests(before) == kept


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("through", ["file", "shard", "directory", "two links"])
def test_target_that_links_lead_to_in_the_output_is_refused_before_anything_is_removed(
    tmp_path: Path, pairs: Pairs, through: str, dry_run: bool
) -> None:
    before, _ = pairs.diff("acme/w:1.0.0", {"w": vector("BF16", 1)}, {"w": vector("BF16", 2)})
    kept = digests(before)
    weights_of = before / "model.safetensors"
    target = tmp_path / "target"
    if through == "file":
        target = tmp_path / "target.safetensors"
        target.symlink_to(weights_of)
    elif through == "directory":
        target.symlink_to(before)
    else:  # a directory of its own, as a snapshot of a cache is
        target.mkdir()
        end = weights_of
        if through == "two links":
            (tmp_path / "models").symlink_to(before)
            end = tmp_path / "half-way"
            end.symlink_to("models/model.safetensors")
        (target / "model.safetensors").symlink_to(end)
    (tmp_path / "out").symlink_to(before)
    (tmp_path / "there").symlink_to("out")
    for out in (before, tmp_path / "out", tmp_path / "there"):
        with pytest.raises(OutputExists, match="is the target itself, or holds it"):
            deltareg.apply(target, {"acme/w:1.0.0": 1}, pairs.registry, out, overwrite=True, dry_run=dry_run)
    assert digests(before) == kept
    assert read_tensors(before) == {"w": vector("BF16", 1)}


def test_output_behind_links_that_lead_round_in_a_circle_is_refused(tmp_path: Path, pairs: Pairs) -> None:
    before, _ = pairs.diff("acme/w:1.0.0", {"w": vector("BF16", 1)}, {"w": vector("BF16", 2)})
    (tmp_path / "out").symlink_to("there")
    (tmp_path / "there").symlink_to("out")
    with pytest.raises(OutputExists):
        deltareg.apply(before, {"acme/w:1.0.0": 1}, pairs.registry, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").is_symlink()


def test_output_that_exists_stays_unless_told(pairs: Pairs) -> None:
    before, after = pairs.diff("acme/w:1.0.0", {"w": vector("BF16", 1)}, {"w": vector("BF16", 2)})
    out = pairs.path / "out"
    deltareg.apply(before, {"acme/w:1.0.0": 0.5}, pairs.registry, out)
    kept = digests(out)
    with pytest.raises(OutputExists):
        deltareg.apply(before, {"acme/w:1.0.0": 1}, pairs.registry, out)
    assert digests(out) == kept
    deltareg.apply(before, {"acme/w:1.0.0": 1}, pairs.registry, out, overwrite=True)
    assert read_tensors(out) == read_tensors(after)


def test_dry_run_writes_nothing(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    report = deltareg.apply(small_llama.base, {"acme/llama:1.0.0": 0.5}, llama, tmp_path / "out", dry_run=True)
    assert report.dry_run
    assert report.bytes_written == 0
    assert report.tensors == len(read_tensors(small_llama.base))
    assert list(tmp_path.iterdir()) == []


def test_single_file_is_a_target(tmp_path: Path, registry: Registry, anarcii_bf16: Mapping[str, Path]) -> None:
    file = tmp_path / "alone.safetensors"
    file.write_bytes((anarcii_bf16["antibody_4_2"] / "model.safetensors").read_bytes())
    deltareg.apply(file, {"acme/shark:1.0.0": 1}, registry, tmp_path / "out")
    assert read_tensors(tmp_path / "out") == read_tensors(anarcii_bf16["shark_4_2"])


def test_any_safetensors_reader_reads_the_output(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    deltareg.apply(small_llama.base, {"acme/llama:1.0.0": 0.5}, llama, tmp_path / "out")
    names: list[str] = []
    for file in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            names += opened.keys()
    assert sorted(names) == sorted(read_tensors(small_llama.base))
