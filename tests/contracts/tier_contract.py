"""What every lossy tier must do. A test class of a tier inherits from this and gives its name and its bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

import deltareg
from deltareg import Registry
from tests import raw
from tests.codec import independent
from tests.codec.oracle import FORMATS
from tests.codec.tensors import Raw, of, read_tensors, write_checkpoint
from tests.weights import Pair

__all__ = ["TierContract"]

Array = NDArray[Any]

NAME = "acme/approximated:1.0.0"
SHAPES = ((1, 1), (1, 7), (7, 1), (5, 3), (64, 33), (2, 3, 4), (1, 1, 1, 1))


def matrix(dtype: str, shape: tuple[int, ...], seed: int, step: float = 1e-3) -> tuple[Raw, Raw]:
    """A tensor before and after a step of training."""
    draw, format_ = np.random.default_rng([seed, *shape]), FORMATS[dtype]
    count = math.prod(shape) * (2 if dtype == "C64" else 1)
    before = draw.normal(0, 0.05, count)
    after = before + step * draw.standard_t(4, count)
    return of(dtype, format_.narrow(before), shape), of(dtype, format_.narrow(after), shape)


def values(tensor: Raw) -> Array:
    """What the lanes of a tensor are worth."""
    format_ = FORMATS[tensor.dtype]
    return format_.widen(np.frombuffer(tensor.data, format_.bits))


class Taken:
    """A lossy delta of two small checkpoints, and what a reader that knows nothing of deltareg finds in it."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[Raw, Raw]], codec: str) -> None:
        self.base = {name: pair[0] for name, pair in tensors.items()}
        self.post = {name: pair[1] for name, pair in tensors.items()}
        self.before = write_checkpoint(path / "base", self.base)
        self.after = write_checkpoint(path / "post", self.post)
        self.registry = Registry(path / "home")
        self.report = deltareg.diff(self.before, self.after, self.registry, NAME, codec=codec)
        self.artifact = self.registry.artifact(NAME)
        self.entries = {entry.name: entry for entry in self.artifact.inventory.tensors}
        self._theirs = independent.Delta(path / "home" / "registry", NAME)

    def delta(self, name: str) -> Array:
        """Δ̂ of a tensor."""
        found = np.zeros(values(self.post[name]).size)
        if self.entries[name].packs:
            record = independent.Record.read(self._theirs.record(name))
            for number, frame in enumerate(record.frames):
                for lane, symbol in frame.symbols.items():
                    found[number * independent.FRAME + lane] = independent.value_of(symbol, record.delta)
        return found

    def record(self, name: str) -> bytes:
        """The bytes of a tensor's record."""
        return self._theirs.record(name)

    def error(self, name: str) -> float:
        """‖Δ − Δ̂‖ / ‖Δ‖ of a tensor."""
        wanted = values(self.post[name]) - values(self.base[name])
        return float(np.linalg.norm(wanted - self.delta(name)) / np.linalg.norm(wanted))

    def applied(self, path: Path) -> dict[str, Raw]:
        """Base with the delta at weight 1."""
        deltareg.apply(self.before, {NAME: 1}, self.registry, path)
        return read_tensors(path)


class TierContract:
    """Subclasses name the codec, and bound the error of a matrix of small steps."""

    codec: ClassVar[str]
    most: ClassVar[float]

    # --- what it records ---

    @pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "C64"])
    def test_error_that_is_recorded_is_the_one_that_there_is(self, tmp_path: Path, dtype: str) -> None:
        taken = Taken(tmp_path, {"a": matrix(dtype, (40, 50), 1), "b": matrix(dtype, (20, 30), 2, 0.01)}, self.codec)
        whole = apart = 0.0
        for name, entry in taken.entries.items():
            wanted = values(taken.post[name]) - values(taken.base[name])
            assert entry.error == pytest.approx(taken.error(name), rel=2e-5, abs=1e-12)
            assert entry.error is not None and entry.error <= self.most
            assert (entry.mended, entry.overwritten) == (0, 0)
            whole += float(wanted @ wanted)
            apart += float(np.sum((wanted - taken.delta(name)) ** 2))
        exactness = taken.artifact.config.exactness
        assert (exactness.kind, exactness.codec) == ("lossy", self.codec)
        assert exactness.relative_error == pytest.approx(math.sqrt(apart / whole), rel=2e-5, abs=1e-12)
        assert (taken.report.relative_error, taken.report.codec) == (exactness.relative_error, self.codec)

    @pytest.fixture
    def real(self, minilm: Pair) -> Pair:
        """A real fine-tune in float32."""
        return minilm

    def test_error_on_real_weights_is_the_one_that_the_result_has(self, tmp_path: Path, real: Pair) -> None:
        registry = Registry(tmp_path / "home")
        report = deltareg.diff(real.base, real.post, registry, NAME, codec=self.codec)
        deltareg.apply(real.base, {NAME: 1}, registry, tmp_path / "out")
        base, post, out = raw.read(real.base), raw.read(real.post), raw.read(tmp_path / "out")
        whole = apart = 0.0
        for entry in registry.artifact(NAME).inventory.tensors:
            if entry.post_dtype != "F32":
                continue
            before, after, got = (np.asarray(one[entry.name].data).view(np.float32) for one in (base, post, out))
            if entry.error is None:
                assert len(entry.shape) < 2 or entry.kind == "zero"
                assert after.tobytes() == got.tobytes()
            wanted, left = after.astype(np.float64) - before, after.astype(np.float64) - got
            whole += float(wanted @ wanted)
            apart += float(left @ left)
            if entry.error is not None:
                # Rounding the sums to float32 adds a little to what is left.
                measured = math.sqrt(float(left @ left) / float(wanted @ wanted))
                assert measured == pytest.approx(entry.error, rel=1e-3, abs=2e-5)
        assert report.relative_error == pytest.approx(math.sqrt(apart / whole), rel=1e-3, abs=2e-5)
        assert deltareg.verify(NAME, registry, base=real.base, post=real.post).relative_error == pytest.approx(
            report.relative_error, rel=1e-4
        )

    def test_digest_is_the_same_for_every_number_of_threads(self, tmp_path: Path, real: Pair) -> None:
        digests: set[str | None] = set()
        for threads in (1, 2, 5):
            registry = Registry(tmp_path / str(threads))
            report = deltareg.diff(real.base, real.post, registry, NAME, codec=self.codec, threads=threads)
            digests.add(report.digest)
        assert len(digests) == 1

    # --- what it takes ---

    @pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "C64"])
    def test_odd_shapes_come_back(self, tmp_path: Path, dtype: str) -> None:
        tensors = {f"shape {shape}": matrix(dtype, shape, 3) for shape in SHAPES}
        tensors |= {"scalar": matrix(dtype, (), 4), "vector": matrix(dtype, (9,), 5), "empty": matrix(dtype, (3, 0), 6)}
        taken = Taken(tmp_path, tensors, self.codec)
        for name in ("scalar", "vector", "empty"):
            assert taken.entries[name].error is None
            assert taken.applied(tmp_path / name)[name] == taken.post[name]
        for shape in SHAPES:
            name = f"shape {shape}"
            error = taken.entries[name].error
            assert error is None or error == pytest.approx(taken.error(name), rel=2e-5, abs=1e-12)
        assert deltareg.verify(NAME, taken.registry, base=taken.before, post=taken.after).reproduced

    def test_what_does_not_change_stays_bit_for_bit(self, tmp_path: Path) -> None:
        same, _ = matrix("F32", (8, 9), 7)
        zeros = Raw("F32", (4, 4), bytes(64))
        tensors = {"same": (same, same), "zeros": (zeros, zeros), "moved": matrix("F32", (16, 16), 8)}
        taken = Taken(tmp_path, tensors, self.codec)
        assert [taken.entries[name].kind for name in ("same", "zeros")] == ["zero", "zero"]
        assert [taken.entries[name].error for name in ("same", "zeros")] == [None, None]
        out = taken.applied(tmp_path / "out")
        assert (out["same"], out["zeros"]) == (same, zeros)

    @pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("where", ["base", "post", "both"])
    @pytest.mark.parametrize("dtype", ["BF16", "F32"])
    def test_tensor_with_what_is_no_number_is_exact_and_alone(
        self, tmp_path: Path, odd: float, where: str, dtype: str
    ) -> None:
        before, after = matrix(dtype, (6, 8), 9)
        pair = [np.frombuffer(one.data, FORMATS[dtype].bits).copy() for one in (before, after)]
        for side, name in zip(pair, ("base", "post"), strict=True):
            if where in (name, "both"):
                side[5] = FORMATS[dtype].narrow(np.array([odd]))[0]
        broken = of(dtype, pair[0], (6, 8)), of(dtype, pair[1], (6, 8))
        taken = Taken(tmp_path, {"broken": broken, "sound": matrix(dtype, (30, 30), 10)}, self.codec)
        assert taken.entries["broken"].error is None
        assert taken.entries["sound"].error is not None
        out = taken.applied(tmp_path / "out")
        assert out["broken"] == taken.post["broken"]
        assert np.isfinite(values(out["sound"])).all()
        assert deltareg.verify(NAME, taken.registry, base=taken.before, post=taken.after).reproduced

    def test_pair_of_two_dtypes(self, tmp_path: Path) -> None:
        (half, _), (_, single) = matrix("BF16", (20, 21), 11), matrix("F32", (20, 21), 11)
        taken = Taken(tmp_path, {"wider": (half, single), "narrower": (single, half)}, self.codec)
        for name, entry in taken.entries.items():
            assert entry.error == pytest.approx(taken.error(name), rel=2e-5, abs=1e-12)
        out = taken.applied(tmp_path / "out")
        assert [out[name].dtype for name in ("wider", "narrower")] == ["F32", "BF16"]

    def test_what_is_not_added_to_is_exact(self, tmp_path: Path) -> None:
        numbers = Raw("I32", (4, 3), bytes(range(48))), Raw("I32", (4, 3), bytes(range(1, 49)))
        taken = Taken(tmp_path, {"numbers": numbers, "moved": matrix("F32", (16, 16), 12)}, self.codec)
        assert taken.entries["numbers"].error is None
        assert taken.applied(tmp_path / "out")["numbers"] == numbers[1]

    def test_several_frames(self, tmp_path: Path) -> None:
        """One lane beyond a frame, and a frame in which nothing changes."""
        count = 2 * independent.FRAME + 3
        draw = np.random.default_rng(13)
        before = draw.normal(0, 1, count).astype(np.float32)
        after = before.copy()
        moved = np.r_[0:1000, count - 3 : count]
        after[moved] += draw.normal(0, 1e-3, moved.size).astype(np.float32)
        pair = of("F32", before.view(np.uint32), (count, 1)), of("F32", after.view(np.uint32), (count, 1))
        taken = Taken(tmp_path, {"long": pair}, self.codec)
        entry = taken.entries["long"]
        assert entry.error is not None and entry.error <= self.most
        got = values(taken.applied(tmp_path / "out")["long"])
        kept = np.ones(count, bool)
        kept[moved] = False
        assert np.array_equal(got[kept], before[kept])
