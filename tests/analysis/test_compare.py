"""Comparing deltas: exact from the records, estimated from the projections, and what cannot be compared."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import deltareg
from deltareg import Registry
from deltareg.analysis import ComparisonReport, compare
from deltareg.analysis.compare import ALL, PairReport
from deltareg.analysis.plots import plot
from deltareg.artifact import Artifact
from deltareg.codec import FRAME_LANES
from deltareg.errors import BadManifest, InvalidArgument, NotFound
from deltareg.manifest import encode, parse
from deltareg.sketch.sketches import PROJECTION_TYPE, pack_sketches
from deltareg.store import Store
from tests import raw
from tests.analysis.sketched import Tensors, checkpoint, sketched, take, with_layers
from tests.codec.tensors import of
from tests.weights import Pair

NAMES = ("model.layers.0.self_attn.q_proj.weight", "model.layers.10.mlp.up_proj.weight", "model.norm.weight")


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> dict[str, tuple[Artifact, Tensors]]:
    """Three deltas of a base of zeros, so that D1 is post; one tensor is longer than a frame."""
    path = tmp_path_factory.mktemp("three")
    draw = np.random.default_rng(1)
    sizes = dict(zip(NAMES, (60_000, FRAME_LANES + 300_000, 500), strict=True))
    base = checkpoint(path / "base", {name: np.zeros(size) for name, size in sizes.items()})
    one = {name: draw.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    other = {name: (0.5 * one[name] + draw.standard_normal(size)).astype(np.float32) for name, size in sizes.items()}
    third = {name: -one[name] * (draw.random(size) < 0.01) for name, size in sizes.items()}
    third[NAMES[2]] = np.zeros(500, np.float32)
    return {
        name: (take(registry, base, checkpoint(path / name, tensors), name)[1], tensors)
        for name, tensors in (("one", one), ("other", other), ("third", third))
    }


def test_exact_comparison_is_what_numpy_finds(three: dict[str, tuple[Artifact, Tensors]]) -> None:
    report = compare([(name, artifact) for name, (artifact, _) in three.items()], exact=True)
    assert [(pair.first, pair.second) for pair in report.pairs] == list(itertools.combinations(three, 2))
    for pair in report.pairs:
        a, b = three[pair.first][1], three[pair.second][1]
        groups = {"attention": NAMES[:1], "mlp": NAMES[1:2], "norm": NAMES[2:], ALL: NAMES}
        assert pair.classes.keys() == groups.keys()
        for key, names in groups.items():
            x, y = (np.concatenate([side[name].astype(np.float64) for name in names]) for side in (a, b))
            found = pair.classes[key]
            assert found.exact
            assert found.parameters == x.size
            assert found.tensors == len(names)
            if not y.any():
                assert found.cosine is found.cosine_error is found.sign_conflict is None
                assert found.norm_ratio == 0
                continue
            assert found.cosine == pytest.approx(cosine(x, y), abs=1e-12)
            assert found.norm_ratio == pytest.approx(float(np.linalg.norm(y) / np.linalg.norm(x)))
            assert found.sign_conflict == pytest.approx(float((x * y < 0).sum() / (x * y != 0).sum()))
            assert found.cosine_error == found.sign_conflict_error == 0
        assert list(pair.layers) == ["model.layers.0", "model.layers.10"]
        assert pair.layers["model.layers.10"]["mlp"] == pair.classes["mlp"]
    norms = report.deltas[0]
    assert norms.classes[ALL] == pytest.approx(
        float(np.linalg.norm(np.concatenate(list(three["one"][1].values())))), rel=1e-5
    )
    assert norms.layers.keys() == {"model.layers.0", "model.layers.10"}


def test_threads_do_not_change_the_report(three: dict[str, tuple[Artifact, Tensors]]) -> None:
    deltas = [(name, artifact) for name, (artifact, _) in three.items()]
    reports = [compare(deltas, exact=True, threads=threads) for threads in (1, 2, 4)]
    assert len({report.model_copy(update={"seconds": 0.0}).model_dump_json() for report in reports}) == 1


def test_estimates_are_near_the_exact_and_need_no_packs(
    three: dict[str, tuple[Artifact, Tensors]], registry: Registry
) -> None:
    deltas = [(name, sketched(registry.store, artifact, tensors)) for name, (artifact, tensors) in three.items()]
    exact = compare(deltas, exact=True)
    gone = [Artifact(_WithoutPacks(registry.store, one), one.digest, one.manifest, 0) for _, one in deltas]
    estimated = compare(list(zip(three, gone, strict=True)))
    for pair, other in zip(estimated.pairs, exact.pairs, strict=True):
        for key, found in pair.classes.items():
            true = other.classes[key]
            assert found.norm_ratio == pytest.approx(true.norm_ratio, rel=1e-5)
            if true.cosine is None:
                assert found.cosine is None
                continue
            assert not found.exact
            assert found.cosine is not None and found.cosine_error is not None
            assert abs(found.cosine - true.cosine) <= 4 * found.cosine_error
            assert found.cosine_error < 0.05
            if found.sign_conflict is not None and true.sign_conflict is not None:
                assert abs(found.sign_conflict - true.sign_conflict) <= 4 * (found.sign_conflict_error or 0) + 1e-9
    with pytest.raises(NotFound):
        compare(list(zip(three, gone, strict=True)), exact=True)


class _WithoutPacks:
    """The blobs of an artifact whose packs were never pulled."""

    def __init__(self, store: Store, artifact: Artifact) -> None:
        self._store = store
        self._packs = {pack.digest for pack in artifact.packs}

    def path(self, digest: deltareg.Digest) -> Path:
        if digest in self._packs:
            raise NotFound(f"{digest} is not here")
        return self._store.path(digest)

    def read(self, digest: deltareg.Digest, *, limit: int = 2**30) -> bytes:
        if digest in self._packs:
            raise NotFound(f"{digest} is not here")
        return self._store.read(digest, limit=limit)


def test_records_are_read_where_one_delta_has_no_projections(
    three: dict[str, tuple[Artifact, Tensors]], registry: Registry
) -> None:
    one, tensors = three["one"]
    mixed = [("one", sketched(registry.store, one, tensors)), ("other", three["other"][0])]
    assert compare(mixed).pairs == compare(mixed, exact=True).pairs


def test_small_tensors_are_read_where_both_packs_are_at_hand(
    three: dict[str, tuple[Artifact, Tensors]], registry: Registry
) -> None:
    one, other = (sketched(registry.store, *three[name]) for name in ("one", "other"))
    classes = compare([("one", one), ("other", other)]).pairs[0].classes
    true = compare([("one", one), ("other", other)], exact=True).pairs[0].classes
    assert {key: found.exact for key, found in classes.items()} == {
        "attention": True,
        "mlp": False,
        "norm": True,
        ALL: False,
    }
    assert classes["attention"] == true["attention"]
    assert classes["norm"] == true["norm"]
    # Of the sum only the estimated part is in doubt: by its share of both norms.
    share = 1.0
    for side in ("one", "other"):
        values = [three[side][1][name].astype(np.float64) for name in NAMES]
        share *= float(np.linalg.norm(values[1]) / np.linalg.norm(np.concatenate(values)))
    assert classes["mlp"].cosine_error and classes[ALL].cosine_error
    assert classes[ALL].cosine_error == pytest.approx(share * classes["mlp"].cosine_error, rel=1e-5)


def test_small_tensors_are_estimated_where_one_pack_is_missing(
    three: dict[str, tuple[Artifact, Tensors]], registry: Registry
) -> None:
    one, other = (sketched(registry.store, *three[name]) for name in ("one", "other"))
    gone = Artifact(_WithoutPacks(registry.store, other), other.digest, other.manifest, 0)
    classes = compare([("one", one), ("other", gone)]).pairs[0].classes
    assert not any(found.exact for found in classes.values())
    assert all(found.cosine_error for found in classes.values())


def test_what_cannot_be_compared_is_skipped_and_told(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    half = of("F16", np.full(40, 0x3C00, np.uint16))
    zeros, ones = np.zeros(40), np.ones(40)
    base = {"same": zeros, "shape": zeros, "ids": of("I64", np.arange(4, dtype=np.uint64)), "kind": half, "gone": zeros}
    post = {"same": ones, "shape": ones, "ids": of("I64", np.arange(1, 5, dtype=np.uint64)), "kind": half, "new": ones}
    wide = {**base, "shape": np.zeros(41), "kind": of("BF16", np.full(40, 0x3F80, np.uint16))}
    wider = {**wide, "same": -ones, "shape": np.ones(41), "kind": of("BF16", np.full(40, 0x3F81, np.uint16))}
    wider.pop("gone")
    deltas = [
        take(registry, checkpoint(tmp_path / "a", base), checkpoint(tmp_path / "b", post), "one"),
        take(registry, checkpoint(tmp_path / "c", wide), checkpoint(tmp_path / "d", wider), "other"),
    ]
    pair = compare(deltas).pairs[0]
    assert {skipped.name for skipped in pair.skipped} == {"shape", "ids", "gone", "new"}
    assert next(one.reason for one in pair.skipped if one.name == "new") == "only one has it"
    assert pair.classes["other"].tensors == 2  # 16-bit floats of two kinds are numbers alike
    assert pair.classes["other"].cosine == pytest.approx(-1, abs=1e-4)
    assert pair.classes["other"].sign_conflict == 1
    assert pair.layers == {}


def test_numbers_that_are_none_and_huge_ones_do_no_harm(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    zeros = of("F64", np.zeros(6).view(np.uint64))
    base = checkpoint(tmp_path / "base", {"w": zeros, "v": zeros})
    sides: list[tuple[str, Artifact]] = []
    for name, sign in (("one", 1), ("other", -1)):
        values = np.array([np.nan, np.inf, 1.7e308, sign * 1.0, 2.0, 0.0])
        infinite = of("F64", np.full(6, np.inf).view(np.uint64))
        post = checkpoint(tmp_path / name, {"w": of("F64", values.view(np.uint64)), "v": infinite})
        sides.append(take(registry, base, post, name))
    found = compare(sides).pairs[0].classes[ALL]
    assert found.cosine == pytest.approx((4 - 1) / 5)
    assert found.sign_conflict == 0.5
    assert compare(sides).model_dump_json()


def test_damaged_projections_are_refused(three: dict[str, tuple[Artifact, Tensors]], registry: Registry) -> None:
    one, other = three["one"][0], three["other"][0]
    for layers in ((b"no projections",), (pack_sketches({}, []),) * 2):
        with pytest.raises(BadManifest):
            compare([("one", with_layers(registry.store, one, *layers)), ("other", other)])


def test_one_delta_or_a_name_twice_is_refused(three: dict[str, tuple[Artifact, Tensors]]) -> None:
    one, other = three["one"][0], three["other"][0]
    for deltas in ([], [("one", one)]):
        with pytest.raises(InvalidArgument, match="two deltas at least"):
            compare(deltas)
    with pytest.raises(InvalidArgument, match="one is given twice"):
        compare([("one", one), ("other", other), ("one", one)])


def test_report_survives_its_json(three: dict[str, tuple[Artifact, Tensors]]) -> None:
    report = compare([(name, artifact) for name, (artifact, _) in three.items()])
    text = encode(report)
    assert b'"normRatio"' in text and b'"cosineError"' in text
    assert parse(ComparisonReport, text, what="test") == report


# --- real weights -------------------------------------------------------------------------------------------------


def worst(estimated: PairReport, exact: PairReport) -> float:
    return max(
        abs((found.cosine or 0) - (exact.classes[key].cosine or 0))
        for key, found in estimated.classes.items()
        if found.parameters
    )


@pytest.mark.slow
def test_cosines_of_real_deltas_are_within_two_hundredths(tmp_path: Path, minilm_bf16: Pair) -> None:
    """The fine-tune against deltas built from it: halved, negated, noised, and with every tenth element its own."""
    registry = Registry(tmp_path / "home")
    draw = np.random.default_rng(3)
    base, post = raw.read(minilm_bf16.base), raw.read(minilm_bf16.post)
    names = [name for name, tensor in base.items() if tensor.spec.dtype == "BF16" and name in post]

    def widened(tensor: raw.RawTensor) -> np.ndarray:
        return (np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << 16).view(np.float32)

    before = {name: widened(base[name]) for name in names}
    delta = {name: widened(post[name]) - before[name] for name in names}
    made = {
        "tuned": delta,
        "half": {name: d * np.float32(0.5) for name, d in delta.items()},
        "negated": {name: -d for name, d in delta.items()},
        "noised": {
            name: d + 2 * draw.standard_normal(d.size).astype(np.float32) * d.std() for name, d in delta.items()
        },
        "overlap": {name: np.where(draw.random(d.size) < 0.1, d, draw.permutation(d)) for name, d in delta.items()},
    }
    directory = checkpoint(tmp_path / "base", before)
    deltas: list[tuple[str, Artifact]] = []
    for name, differences in made.items():
        after = {key: before[key] + differences[key] for key in names}
        _, artifact = take(registry, directory, checkpoint(tmp_path / name, after), name)
        assert artifact.manifest.layers_of(PROJECTION_TYPE)[0].size < 31_000
        deltas.append((name, artifact))
    estimated, exact = compare(deltas), compare(deltas, exact=True)
    for one, other in zip(estimated.pairs, exact.pairs, strict=True):
        assert worst(one, other) <= 0.02, (one.first, one.second)


def test_small_real_deltas_are_compared_by_their_records(tmp_path: Path, anarcii: Mapping[str, Path]) -> None:
    registry = Registry(tmp_path / "home")
    shapes = {name: tensor.spec.shape for name, tensor in raw.read(anarcii["antibody_4_2"]).items()}
    shared = tmp_path / "tcr"
    shared.mkdir()
    # Its vocabulary is one larger.
    tcr = [one for one in raw.read(anarcii["tcr_4_2"]).values() if one.spec.shape == shapes[one.spec.name]]
    raw.write(shared / "model.safetensors", tcr)
    deltas = [
        take(registry, anarcii["antibody_4_2"], anarcii["shark_4_2"], "shark"),
        take(registry, anarcii["antibody_4_2"], shared, "tcr"),
    ]
    pair = compare(deltas).pairs[0]
    assert pair.classes[ALL].exact
    assert abs(pair.classes[ALL].cosine or 1) < 0.05  # fine-tunes on unrelated data are nearly orthogonal
    assert len(pair.skipped) == 3
    assert {"attention", "mlp", "embedding", "norm"} <= pair.classes.keys()


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(three: dict[str, tuple[Artifact, Tensors]]) -> ComparisonReport:
    return compare([(f"a/{name} <b>$&", artifact) for name, (artifact, _) in three.items()])


def test_picture_is_drawn_and_the_same_each_time(report: ComparisonReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("html", b"<!doctype html>")):
        first, second = (plot(report, tmp_path / f"{n}.{kind}").read_bytes() for n in range(2))
        assert first == second
        assert first.startswith(start)
    ElementTree.fromstring((tmp_path / "0.svg").read_bytes())
    page = (tmp_path / "0.html").read_text()
    assert "<b>$" not in page
    assert "a/one &lt;b&gt;$&amp;" in page
    assert "model.layers.10" in page
    assert page.count("<tr>") == 1 + sum(
        len(groups) for pair in report.pairs for groups in [pair.classes, *pair.layers.values()]
    )


def test_picture_of_deltas_without_layers(report: ComparisonReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bare = report.model_copy(
        update={
            "pairs": [pair.model_copy(update={"layers": {}}) for pair in report.pairs],
            "deltas": [delta.model_copy(update={"layers": {}}) for delta in report.deltas],
        }
    )
    assert plot(bare, tmp_path / "bare.svg").stat().st_size > 1000


def test_other_endings_are_refused(report: ComparisonReport, tmp_path: Path) -> None:
    for name in ("a.pdf", "a", ".png.txt"):
        with pytest.raises(InvalidArgument, match=r"\.png, \.svg or \.html|draw"):
            plot(report, tmp_path / name)
