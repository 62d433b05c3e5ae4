"""Lossy tiers: what they lose is measured, recorded and told, and nothing else is lost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import deltareg
from deltareg import Registry
from deltareg.analysis import compare
from deltareg.codec import RecordHead
from deltareg.codec.tiers import parse_tier
from deltareg.codec.truncate import truncate
from deltareg.digest import sha256
from deltareg.errors import InvalidArgument, NotReproduced
from deltareg.manifest import Exactness, encode
from tests.codec.oracle import FORMATS
from tests.codec.tensors import Raw, of, read_tensors, write_checkpoint
from tests.contracts.tier_contract import NAME, Taken, TierContract, matrix, values
from tests.weights import Pair


class TestBf16(TierContract):
    codec = "bf16"
    most = 0.003


class TestFp16(TierContract):
    codec = "fp16"
    most = 0.03  # differences below 6e-5 have fewer bits there


class TestInt8(TierContract):
    codec = "int8"
    most = 0.03


class TestInt4(TierContract):
    codec = "int4"
    most = 0.25


class TestTopTenth(TierContract):
    codec = "topk:0.1"
    most = 0.95


class _OfFactors(TierContract):
    """Decompositions take their time: a smaller pair."""

    @pytest.fixture
    def real(self, anarcii: Mapping[str, Path]) -> Pair:
        """A real fine-tune in float32."""
        return Pair(anarcii["antibody_4_2"], anarcii["shark_4_2"])


class TestRankOfFour(_OfFactors):
    codec = "rank:4"
    most = 0.99


class TestBit1(_OfFactors):
    codec = "bit1"
    most = 0.85


# --- what each of them is -----------------------------------------------------------------------------------------


def test_bf16_rounds_each_difference_once(tmp_path: Path) -> None:
    taken = Taken(tmp_path, {"w": matrix("F32", (30, 40), 1)}, "bf16")
    wanted = values(taken.post["w"]) - values(taken.base["w"])
    assert np.array_equal(taken.delta("w"), FORMATS["BF16"].widen(FORMATS["BF16"].narrow(wanted)))
    assert taken.entries["w"].delta_dtype == "BF16"


def test_fp16_rounds_each_difference_once(tmp_path: Path) -> None:
    taken = Taken(tmp_path, {"w": matrix("F64", (30, 40), 1, 0.1)}, "fp16")
    wanted = values(taken.post["w"]) - values(taken.base["w"])
    assert np.array_equal(taken.delta("w"), FORMATS["F16"].widen(FORMATS["F16"].narrow(wanted)))
    assert taken.entries["w"].delta_dtype == "F16"


def test_difference_beyond_float16_is_stored_exactly(tmp_path: Path) -> None:
    far = of("F32", FORMATS["F32"].narrow(np.array([[0.0, 1.0], [70_000.0, 2.0]]).reshape(-1)), (2, 2))
    near = of("F32", FORMATS["F32"].narrow(np.zeros(4)), (2, 2))
    taken = Taken(tmp_path, {"far": (near, far), "w": matrix("F32", (9, 9), 2)}, "fp16")
    assert taken.entries["far"].error is None
    assert taken.applied(tmp_path / "out")["far"] == far


@pytest.mark.parametrize(("codec", "levels", "beyond"), [("int8", 255, 0.0001), ("int4", 15, 0.01)])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_levels_are_so_many_and_few_values_lie_beyond(
    tmp_path: Path, codec: str, levels: int, beyond: float, dtype: str
) -> None:
    taken = Taken(tmp_path, {"w": matrix(dtype, (200, 300), 3, 0.01)}, codec)
    delta = taken.delta("w")
    magnitudes = np.sort(np.abs(delta))
    found = np.unique(magnitudes[: delta.size - int(beyond * delta.size)])
    assert found[0] == 0
    assert 4 < found.size <= levels // 2 + 1
    if dtype == "F32":
        error = np.abs(values(taken.post["w"]) - values(taken.base["w"]) - delta)
        assert np.all(error <= 0.51 * found[1] + 2**-7 * np.abs(delta))


def test_one_value_far_out_does_not_set_the_levels_apart(tmp_path: Path) -> None:
    before, after = matrix("F32", (100, 200), 4)
    bits = np.frombuffer(after.data, np.float32).copy()
    bits[77] = 1e6
    spoilt = Raw("F32", (100, 200), bits.tobytes())
    taken = Taken(tmp_path, {"w": (before, spoilt)}, "int8")
    wanted = values(after) - values(before)
    kept = np.arange(wanted.size) != 77
    assert np.linalg.norm((wanted - taken.delta("w"))[kept]) < 0.05 * np.linalg.norm(wanted[kept])
    assert taken.delta("w")[77] == pytest.approx(1e6, rel=2**-8)


@pytest.mark.parametrize(("codec", "share"), [("topk:5%", 0.05), ("topk:0.5", 0.5), ("topk:12.5%", 0.125)])
def test_topk_keeps_the_greatest_and_no_more(tmp_path: Path, codec: str, share: float) -> None:
    taken = Taken(tmp_path, {"w": matrix("F32", (100, 120), 5)}, codec)
    wanted = values(taken.post["w"]) - values(taken.base["w"])
    delta = taken.delta("w")
    kept = np.flatnonzero(delta)
    assert 0.99 * share * wanted.size <= kept.size <= share * wanted.size
    assert delta[kept] == pytest.approx(wanted[kept], rel=2**-8)
    # Equal where bfloat16 has them equal.
    left = np.delete(np.abs(wanted), kept)
    assert left.max() <= np.abs(wanted[kept]).min() * (1 + 2**-7)
    assert taken.artifact.config.exactness.codec == f"topk:{share:g}"


def test_topk_of_equal_differences_keeps_its_share_of_them(tmp_path: Path) -> None:
    ones, twos = (of("BF16", FORMATS["BF16"].narrow(np.full(4000, value)), (40, 100)) for value in (1.0, 2.0))
    taken = Taken(tmp_path, {"w": (ones, twos)}, "topk:10%")
    assert np.flatnonzero(taken.delta("w")).tolist() == list(range(400))


def test_topk_of_everything_is_bf16(tmp_path: Path) -> None:
    pair = {"w": matrix("F32", (20, 20), 6)}
    all_, rounded = Taken(tmp_path / "all", pair, "topk:100%"), Taken(tmp_path / "bf16", pair, "bf16")
    assert np.array_equal(all_.delta("w"), rounded.delta("w"))


@pytest.mark.parametrize("shape", [(3, 1), (3, 3), (1, 1)])
def test_share_of_less_than_one_element_keeps_the_one_that_changes_most(tmp_path: Path, shape: tuple[int, ...]) -> None:
    taken = Taken(tmp_path, {"w": matrix("F32", shape, 7), "v": matrix("F32", (100, 100), 7)}, "topk:0.01")
    wanted = values(taken.post["w"]) - values(taken.base["w"])
    delta = taken.delta("w")
    assert np.flatnonzero(delta).tolist() == [np.abs(wanted).argmax()]
    assert delta.sum() == pytest.approx(wanted[np.abs(wanted).argmax()], rel=2**-8)
    assert (taken.entries["w"].changed, np.count_nonzero(taken.delta("v"))) == (1, 100)
    assert deltareg.verify(NAME, taken.registry, base=taken.before, post=taken.after).reproduced


def test_share_of_less_than_one_element_keeps_one_of_equal_ones_in_several_frames(tmp_path: Path) -> None:
    """No frame's share of what changes most is one of them: the first frame that has such keeps it."""
    zeros = np.zeros(1200 * 2000, np.float32)
    post = zeros.copy()
    post[:100] = 0.5
    post[[1_100_000, 2_200_000, 2_300_000]] = 2.0
    pair = tuple(of("F32", one.view(np.uint32), (1200, 2000)) for one in (zeros, post))
    taken = Taken(tmp_path, {"w": (pair[0], pair[1])}, "topk:0.0000001")
    assert np.flatnonzero(taken.delta("w")).tolist() == [1_100_000]


def test_tensor_that_does_not_change_has_nothing_to_keep(tmp_path: Path) -> None:
    same = matrix("F32", (3, 3), 7)[0]
    taken = Taken(tmp_path, {"w": (same, same), "v": matrix("F32", (10, 10), 7)}, "topk:1%")
    assert (taken.entries["w"].kind, taken.entries["w"].error) == ("zero", None)


def nearest(wanted: np.ndarray, rank: int) -> np.ndarray:
    """The nearest matrix of a rank."""
    left, values, right = np.linalg.svd(wanted, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_rank_keeps_the_nearest_factors(tmp_path: Path, dtype: str) -> None:
    taken = Taken(tmp_path, {"w": matrix(dtype, (40, 60), 8), "cube": matrix(dtype, (20, 6, 7), 9)}, "rank:5")
    for name, shape in (("w", (40, 60)), ("cube", (20, 42))):
        wanted = (values(taken.post[name]) - values(taken.base[name])).reshape(shape)
        delta = taken.delta(name).reshape(shape)
        # The factors are rounded to bfloat16.
        assert np.linalg.norm(delta - nearest(wanted, 5)) < 0.01 * np.linalg.norm(wanted)
        entry = taken.entries[name]
        assert (entry.kind, entry.rank, entry.delta_dtype) == ("lowrank", 5, None if dtype == "F32" else "F32")
    assert taken.artifact.config.exactness.codec == "rank:5"


@pytest.mark.parametrize("rank", [14, 15, 40, 1000, 9_999_999])
def test_factors_that_are_no_smaller_than_the_matrix_are_not_taken(tmp_path: Path, rank: int) -> None:
    """A rank beyond the matrix gives the matrix, each number rounded."""
    pair = {"w": matrix("F32", (20, 40), 9)}
    taken, rounded = Taken(tmp_path / "rank", pair, f"rank:{rank}"), Taken(tmp_path / "bf16", pair, "bf16")
    assert taken.entries["w"].rank is None
    assert np.array_equal(taken.delta("w"), rounded.delta("w"))


def test_bit1_is_a_sign_a_size_and_factors(tmp_path: Path) -> None:
    taken = Taken(tmp_path, {"w": matrix("F32", (150, 160), 10)}, "bit1")
    wanted = values(taken.post["w"]) - values(taken.base["w"])
    head = RecordHead.parse(taken.record("w"))[0]
    assert head.low_rank is not None and head.low_rank.rest is not None
    rank = head.low_rank.rank
    rest = wanted - nearest(wanted.reshape(150, 160), rank).reshape(-1)
    expected = wanted - rest + np.sign(rest) * np.abs(rest).mean()
    assert np.linalg.norm(taken.delta("w") - expected) < 0.05 * np.linalg.norm(wanted)
    assert taken.entries["w"].rank is None
    assert taken.entries["w"].size < 150 * 160 / 8 * 1.6


def test_bit1_of_a_small_matrix_is_signs_alone(tmp_path: Path) -> None:
    taken = Taken(tmp_path, {"w": matrix("F32", (10, 11), 10)}, "bit1")
    wanted = values(taken.post["w"]) - values(taken.base["w"])
    assert taken.delta("w") == pytest.approx(np.sign(wanted) * np.abs(wanted).mean(), rel=2**-8)


@pytest.mark.parametrize("codec", ["bit1", "rank:2"])
def test_factors_cross_frames(tmp_path: Path, codec: str) -> None:
    """A matrix of more lanes than a frame, with rows that the frames cut; half of it does not change."""
    rows, columns = 700, 1501
    draw = np.random.default_rng(14)
    before = draw.normal(0, 1, rows * columns).astype(np.float32)
    after = before.copy()
    after[: before.size // 2] += draw.normal(0, 0.01, before.size // 2).astype(np.float32)
    tensors = {"w": tuple(of("F32", one.view(np.uint32), (rows, columns)) for one in (before, after))}
    taken = Taken(tmp_path, {name: (pair[0], pair[1]) for name, pair in tensors.items()}, codec)
    out = values(taken.applied(tmp_path / "out")["w"])
    wanted = after.astype(np.float64) - before
    measured = np.linalg.norm(after - out) / np.linalg.norm(wanted)
    assert measured == pytest.approx(taken.entries["w"].error, rel=1e-3)
    assert deltareg.verify(NAME, taken.registry, base=taken.before, post=taken.after).reproduced


@pytest.mark.parametrize("size", [1.0, 1e25, 1e36, 1e-30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_factors_are_found_where_squares_are_no_numbers_of_float32(size: float, dtype: type) -> None:
    """Too large for a whole decomposition: the matrix is multiplied with itself."""
    draw = np.random.default_rng(3)
    low = draw.normal(size=(1600, 4)) @ draw.normal(size=(4, 1600))
    rows = (low * size).astype(dtype)
    found = truncate(lambda: iter([(0, rows[:900]), (900, rows[900:])]), (1600, 1600), 4, "w")
    product = found.left.astype(np.float64) @ found.right.astype(np.float64)
    assert np.linalg.norm(product / size - low) < 1e-5 * np.linalg.norm(low)
    assert found.residue < 1e-10 * found.total


def test_delta_of_great_numbers_has_factors(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    low = (draw.normal(size=(1600, 2)) @ draw.normal(size=(2, 1600))).reshape(-1) * 1e25
    pair = [of("F32", one.astype(np.float32).view(np.uint32), (1600, 1600)) for one in (np.zeros(low.size), low)]
    taken = Taken(tmp_path, {"w": (pair[0], pair[1])}, "rank:2")
    assert taken.entries["w"].rank == 2 and (taken.entries["w"].error or 1) < 0.01


@pytest.mark.parametrize("codec", ["int8", "int4", "bf16", "topk:5%"])
def test_numbers_whose_squares_have_no_finite_sum_are_stored_exactly_beside_others(tmp_path: Path, codec: str) -> None:
    # Each square is a finite number, and their sum is none.
    zeros, great = (of("F64", FORMATS["F64"].narrow(np.array([value, 0.0])), (2, 1)) for value in (0.0, 1.2e154))
    pairs = {"w": matrix("F32", (30, 30), 2), "u": (zeros, great), "v": (zeros, great)}
    taken = Taken(tmp_path, pairs, codec)
    assert taken.entries["v"].error is None and (taken.entries["w"].error or 0) > 0
    assert taken.applied(tmp_path / "out")["v"] == great
    # Beside these the error of the others is next to none.
    assert 0 < (taken.report.relative_error or 0) < 1e-100
    assert deltareg.verify(NAME, taken.registry, base=taken.before, post=taken.after).reproduced


# --- asking for it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codec", ["", "int5", "INT4", "int4:8", "exact:1", "bf16:", "topk", "rank", "bit1 ", "topk5%", "lossy"]
)
def test_unknown_codec_is_refused_with_those_that_there_are(tmp_path: Path, codec: str) -> None:
    pair = matrix("F32", (2, 2), 1)
    before, after = (write_checkpoint(tmp_path / str(n), {"w": one}) for n, one in enumerate(pair))
    with pytest.raises(InvalidArgument) as caught:
        deltareg.diff(before, after, Registry(tmp_path / "home"), NAME, codec=codec)
    assert "exact, bf16, fp16, int8, int4" in str(caught.value.hint)
    assert "bit1, rank:R, topk:P" in str(caught.value.hint)


@pytest.mark.parametrize("rank", ["0", "-1", "1.5", "", "four", "1e3", "99999999", "٣"])
def test_rank_that_is_none_is_refused(tmp_path: Path, rank: str) -> None:
    pair = matrix("F32", (2, 2), 1)
    before, after = (write_checkpoint(tmp_path / str(n), {"w": one}) for n, one in enumerate(pair))
    with pytest.raises(InvalidArgument, match="no rank") as caught:
        deltareg.diff(before, after, Registry(tmp_path / "home"), NAME, codec=f"rank:{rank}")
    assert "rank:16" in str(caught.value.hint)


ODD = [
    *(
        "0",
        "-0.1",
        "1.01",
        "101%",
        "nan",
        "inf",
        "",
        "%",
        "five",
        "0%",
        "1e400",
        "nan%",
        "1e3%",
        "0e0",
        "5%%",
        "1e-400",
    ),
    *("٥%", "٠.٥", "٥", " 5%", "5 %", "5% ", " 0.5", "0.5 ", "0.1_5", "+0.5", "0x1p-1", "0,5", "5\n%", "0.5\n", "."),
]


@pytest.mark.parametrize("share", ODD)
def test_share_out_of_range_is_refused(tmp_path: Path, share: str) -> None:
    pair = matrix("F32", (2, 2), 1)
    before, after = (write_checkpoint(tmp_path / str(n), {"w": one}) for n, one in enumerate(pair))
    with pytest.raises(InvalidArgument, match="no share") as caught:
        deltareg.diff(before, after, Registry(tmp_path / "home"), NAME, codec=f"topk:{share}")
    assert "topk:5%" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("share", "name"),
    [
        *(("5%", "0.05"), ("0.05", "0.05"), ("5.0%", "0.05"), ("05%", "0.05"), (".05", "0.05"), ("5e-2", "0.05")),
        *(("1e1%", "0.1"), ("1E+1%", "0.1"), ("100%", "1"), ("1", "1"), ("1.", "1"), ("0.001%", "1e-05")),
    ],
)
def test_share_has_one_meaning_whose_name_is_a_share_again(share: str, name: str) -> None:
    tier = parse_tier(f"topk:{share}")
    assert str(tier) == f"topk:{name}" and tier.share == float(name)
    assert parse_tier(str(tier)) == tier


def test_delta_is_exact_unless_asked_for(tmp_path: Path) -> None:
    pair = matrix("F32", (20, 20), 1)
    before, after = (write_checkpoint(tmp_path / str(n), {"w": one}) for n, one in enumerate(pair))
    registry = Registry(tmp_path / "home")
    report = deltareg.diff(before, after, registry, NAME)
    assert (report.codec, report.relative_error) == ("exact", None)
    named = deltareg.diff(before, after, registry, "acme/named:1.0.0", codec="exact")
    assert named.digest == report.digest
    assert registry.artifact(NAME).config.exactness.kind == "exact"


def test_delta_that_loses_nothing_says_that_it_is_exact(tmp_path: Path) -> None:
    taken = Taken(tmp_path, {"bias": matrix("F32", (20,), 1)}, "int4")
    assert taken.artifact.config.exactness.kind == "exact"
    assert (taken.report.codec, taken.report.relative_error) == ("int4", None)


# --- being told ---------------------------------------------------------------------------------------------------


def test_check_and_apply_tell_the_error_and_the_verdict_stays(tmp_path: Path, minilm_bf16: Pair) -> None:
    registry = Registry(tmp_path / "home")
    deltareg.diff(minilm_bf16.base, minilm_bf16.post, registry, "acme/exact:1.0.0")
    report = deltareg.diff(minilm_bf16.base, minilm_bf16.post, registry, NAME, codec="int4")
    told = f"lossy, int4, relative error {report.relative_error:.4g}"
    exact, lossy = (deltareg.check(minilm_bf16.base, [name], registry).deltas[0] for name in ("acme/exact:1.0.0", NAME))
    assert exact.verdict == lossy.verdict
    (found,) = [one for one in lossy.findings if one.code == "delta-lossy"]
    assert (found.severity, found.delta, found.target) == ("note", told, "exact")
    assert "delta-lossy" not in {one.code for one in exact.findings}
    applied = deltareg.apply(minilm_bf16.base, {NAME: 1}, registry, tmp_path / "out")
    assert [note for note in applied.warnings if note == f"{NAME} is an approximation: {told}"]
    assert "is an approximation" in (tmp_path / "out" / "README.md").read_text()
    plain = deltareg.apply(minilm_bf16.base, {"acme/exact:1.0.0": 1}, registry, tmp_path / "plain")
    assert not [note for note in plain.warnings if "approximation" in note]


def test_verify_refuses_another_post_than_the_error_was_measured_to(tmp_path: Path) -> None:
    taken = Taken(tmp_path, {"w": matrix("F32", (30, 30), 1), "b": matrix("F32", (5,), 1)}, "int4")
    report = deltareg.verify(NAME, taken.registry, base=taken.before, post=taken.after)
    assert report.relative_error == pytest.approx(taken.report.relative_error, rel=1e-5)
    other, _ = matrix("F32", (30, 30), 2)
    wrong = write_checkpoint(tmp_path / "wrong", {"w": other, "b": taken.post["b"]})
    with pytest.raises(NotReproduced, match=r"w .* instead of") as caught:
        deltareg.verify(NAME, taken.registry, base=taken.before, post=wrong)
    assert caught.value.exit_code == 5
    exact = write_checkpoint(tmp_path / "bias", {"w": taken.post["w"], "b": taken.base["b"]})
    with pytest.raises(NotReproduced, match="b"):
        deltareg.verify(NAME, taken.registry, base=taken.before, post=exact)


def test_verify_refuses_a_post_that_is_nearly_the_one_that_it_was_taken_from(tmp_path: Path) -> None:
    # So near that no error of a tensor tells, when most of the difference was left out.
    taken = Taken(tmp_path, {"w": matrix("F32", (30, 30), 1)}, "topk:3%")
    numbers = np.frombuffer(taken.post["w"].data, np.float32).copy()
    numbers[5] = np.nextafter(numbers[5], np.float32(9))
    near = write_checkpoint(tmp_path / "near", {"w": Raw("F32", (30, 30), numbers.tobytes())})
    with pytest.raises(NotReproduced, match="near is not the post"):
        deltareg.verify(NAME, taken.registry, base=taken.before, post=near)


@pytest.mark.parametrize("exactness", [Exactness(), Exactness(kind="lossy", relative_error=1e-9, codec="int4")])
def test_verify_refuses_a_description_that_says_another_error(tmp_path: Path, exactness: Exactness) -> None:
    taken = Taken(tmp_path, {"w": matrix("F32", (30, 30), 1)}, "int4")
    registry, artifact = taken.registry, taken.registry.artifact(NAME)
    data = encode(artifact.config.model_copy(update={"exactness": exactness}))
    registry.store.put(data)
    own = artifact.manifest.config.model_copy(update={"digest": sha256(data), "size": len(data)})
    registry.publish("acme/again:1.0.0", encode(artifact.manifest.model_copy(update={"config": own})))
    with pytest.raises(NotReproduced, match="its error is"):
        deltareg.verify("acme/again:1.0.0", registry, base=taken.before, post=taken.after)


# --- going on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "ties", "sce", "slerp"])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_exact_and_lossy_delta_are_merged(tmp_path: Path, method: str, dtype: str) -> None:
    """Deltas in several dtypes: the sum is the same for every number of threads, and near the exact one."""
    pair, other = matrix(dtype, (90, 70), 1), matrix(dtype, (90, 70), 2)
    checkpoints = [
        write_checkpoint(tmp_path / name, {"w": one})
        for name, one in (("base", pair[0]), ("first", pair[1]), ("second", other[1]))
    ]
    registry = Registry(tmp_path / "home")
    for number, codec in enumerate(("exact", "fp16"), 1):
        deltareg.diff(checkpoints[0], checkpoints[1], registry, f"acme/first:{number}.0.0", codec=codec)
    deltareg.diff(checkpoints[0], checkpoints[2], registry, "acme/second:1.0.0")
    out: list[bytes] = []
    for version, threads in ((1, 1), (2, 1), (2, 3)):
        path = tmp_path / f"out-{version}-{threads}"
        weights = {f"acme/first:{version}.0.0": 0.5, "acme/second:1.0.0": 0.5}
        deltareg.apply(checkpoints[0], weights, registry, path, method=method, threads=threads)
        out.append((path / "model.safetensors").read_bytes())
    assert out[1] == out[2]
    if method in ("linear", "slerp"):
        exact, lossy = (values(Raw(dtype, (90, 70), data[-len(pair[0].data) :])) for data in out[:2])
        assert lossy == pytest.approx(exact, abs=1e-2 if dtype == "BF16" else 1e-4)


def test_rows_of_a_lossy_embedding_are_moved(tmp_path: Path) -> None:
    """A delta of a dtype of its own on a target with more rows: they are matched by number."""
    before, after = matrix("F32", (20, 16), 1)
    taken = Taken(tmp_path, {"model.embed_tokens.weight": (before, after)}, "bf16")
    bits = np.frombuffer(before.data, np.uint32)
    longer = of("F32", np.concatenate([bits, bits[:64]]), (24, 16))
    target = write_checkpoint(tmp_path / "target", {"model.embed_tokens.weight": longer})
    deltareg.apply(target, {NAME: 1}, taken.registry, tmp_path / "out")
    got = values(read_tensors(tmp_path / "out")["model.embed_tokens.weight"])
    wanted = values(longer)
    wanted[: 20 * 16] += taken.delta("model.embed_tokens.weight")
    assert np.array_equal(got, wanted.astype(np.float32))


def test_compare_sees_a_lossy_delta_beside_its_exact_one(tmp_path: Path, minilm: Pair) -> None:
    registry = Registry(tmp_path / "home")
    deltareg.diff(minilm.base, minilm.post, registry, "acme/exact:1.0.0")
    report = deltareg.diff(minilm.base, minilm.post, registry, NAME, codec="int4")
    assert report.relative_error is not None
    compared = compare([(name, registry.artifact(name)) for name in ("acme/exact:1.0.0", NAME)], exact=True)
    likeness = compared.pairs[0].classes["mlp"]
    # Levels to the nearest: the error is nearly at right angles to the approximation.
    assert likeness.cosine == pytest.approx(math.sqrt(1 - report.relative_error**2), abs=0.01)
