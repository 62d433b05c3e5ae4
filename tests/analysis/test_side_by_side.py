"""Estimates beside exact figures: the same tensors on both sides, and errors that are honest."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from deltareg import Registry
from deltareg.analysis import compare
from deltareg.analysis.compare import ALL
from deltareg.analysis.side_by_side import SideBySideReport, side_by_side
from deltareg.analysis.side_by_side_plot import plot_side_by_side
from deltareg.artifact import Artifact
from deltareg.errors import InvalidArgument, NotHomologous
from deltareg.manifest import encode, parse
from tests.analysis.sketched import Tensors, checkpoint, sketched, take

LAYERS = 12
SIZE = 20_000
NAMES = [
    f"model.layers.{layer}.{part}.weight"
    for layer in range(LAYERS)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj")
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> dict[str, tuple[Artifact, Tensors]]:
    """Three deltas of a base of zeros, whose likeness grows along the layers."""
    path = tmp_path_factory.mktemp("made")
    draw = np.random.default_rng(4)
    base = checkpoint(path / "base", {name: np.zeros(SIZE, np.float32) for name in NAMES})
    one = {name: draw.standard_normal(SIZE).astype(np.float32) for name in NAMES}
    made: dict[str, tuple[Artifact, Tensors]] = {}
    for name, likeness in (("one", 1.0), ("other", 0.05), ("third", -0.02)):
        tensors = {
            key: (values * likeness * place / 10 + draw.standard_normal(SIZE)).astype(np.float32)
            for place, (key, values) in enumerate(one.items())
        }
        made[name] = (take(registry, base, checkpoint(path / name, tensors), name)[1], tensors)
    return made


@pytest.fixture(scope="module")
def deltas(made: dict[str, tuple[Artifact, Tensors]], registry: Registry) -> list[tuple[str, Artifact]]:
    return [(name, sketched(registry.store, artifact, tensors)) for name, (artifact, tensors) in made.items()]


@pytest.fixture(scope="module")
def report(deltas: list[tuple[str, Artifact]]) -> SideBySideReport:
    return side_by_side(deltas)


def test_the_exact_side_is_that_of_an_exact_comparison(
    report: SideBySideReport, deltas: list[tuple[str, Artifact]]
) -> None:
    exact = compare(deltas, exact=True)
    for pair, true in zip(report.pairs, exact.pairs, strict=True):
        assert (pair.first, pair.second) == (true.first, true.second)
        assert pair.exact.layers == true.layers
        assert pair.exact.classes == true.classes
    assert report.deltas == exact.deltas


def test_small_tensors_are_estimated_though_their_records_are_at_hand(
    report: SideBySideReport, deltas: list[tuple[str, Artifact]]
) -> None:
    assert compare(deltas).pairs[0].classes["mlp"].exact
    assert not report.pairs[0].estimated.classes["mlp"].exact
    assert (report.pairs[0].estimated.classes["mlp"].cosine_error or 0) > 0


def test_differences_are_of_the_same_layers_and_classes(report: SideBySideReport) -> None:
    for pair in report.pairs:
        rows = {(row.layer, row.module_class): row for row in pair.differences}
        assert len(rows) == len(pair.differences) == 3 * LAYERS + 3
        for (layer, key), row in rows.items():
            estimated = (pair.estimated.layers[layer] if layer else pair.estimated.classes)[key]
            exact = (pair.exact.layers[layer] if layer else pair.exact.classes)[key]
            assert (row.tensors, row.parameters) == (exact.tensors, exact.parameters)
            assert (estimated.tensors, estimated.parameters) == (exact.tensors, exact.parameters)
            assert row.cosine is not None and estimated.cosine is not None and exact.cosine is not None
            assert row.cosine.difference == pytest.approx(estimated.cosine - exact.cosine)
            assert row.cosine.within == (abs(row.cosine.difference) <= row.cosine.error + 1e-9)


def test_errors_are_honest(report: SideBySideReport) -> None:
    """Of 72 estimates 68 % are to be within one error: 49 of them, with a standard deviation of 4."""
    assert sum(pair.cosine.compared for pair in report.pairs) == 3 * 2 * LAYERS
    assert 35 <= sum(pair.cosine.within_one for pair in report.pairs) <= 63
    assert sum(pair.cosine.within_two for pair in report.pairs) >= 62
    for pair in report.pairs:
        assert 0 < pair.cosine.largest < 0.2
        rows = [row.cosine for row in pair.differences if row.layer and row.module_class != ALL]
        assert pair.cosine.within_one == sum(one.within for one in rows if one is not None)


def test_threads_do_not_change_the_report(deltas: list[tuple[str, Artifact]]) -> None:
    reports = [side_by_side(deltas, threads=threads) for threads in (1, 3)]
    assert len({report.model_copy(update={"seconds": 0.0}).model_dump_json() for report in reports}) == 1


def test_tensors_without_a_sketch_are_on_neither_side(
    made: dict[str, tuple[Artifact, Tensors]], registry: Registry
) -> None:
    known = NAMES[:6]
    deltas = [
        (name, sketched(registry.store, artifact, {key: tensors[key] for key in known}))
        for name, (artifact, tensors) in list(made.items())[:2]
    ]
    (pair,) = side_by_side(deltas).pairs
    assert pair.estimated.classes["mlp"].tensors == pair.exact.classes["mlp"].tensors == 2
    assert {one.name for one in pair.skipped} == set(NAMES[6:])
    assert {one.reason for one in pair.skipped} == {"it has no sketch in both deltas"}


def test_deltas_without_sketches_are_refused(made: dict[str, tuple[Artifact, Tensors]]) -> None:
    deltas = [(name, artifact) for name, (artifact, _) in made.items()]
    with pytest.raises(InvalidArgument, match="have no sketches") as caught:
        side_by_side(deltas)
    assert caught.value.hint == "deltareg compare --exact one other"
    with pytest.raises(InvalidArgument, match="two deltas at least"):
        side_by_side(deltas[:1])


def test_deltas_of_other_spaces_are_refused(
    deltas: list[tuple[str, Artifact]], registry: Registry, tmp_path: Path
) -> None:
    base, post = ({"w": np.full(9, value, np.float32)} for value in (0, 1))
    stranger = take(registry, checkpoint(tmp_path / "a", base), checkpoint(tmp_path / "b", post), "stranger")
    with pytest.raises(NotHomologous):
        side_by_side([deltas[0], stranger])


def test_report_survives_its_json(report: SideBySideReport) -> None:
    text = encode(report)
    assert b'"withinOne"' in text and b'"moduleClass"' in text
    assert parse(SideBySideReport, text, what="test") == report


def test_picture_is_drawn_and_the_same_each_time(report: SideBySideReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("html", b"<!doctype html>")):
        first, second = (plot_side_by_side(report, tmp_path / f"{n}.{kind}").read_bytes() for n in range(2))
        assert first == second
        assert first.startswith(start)
    ElementTree.fromstring((tmp_path / "0.svg").read_bytes())
    page = (tmp_path / "0.html").read_text()
    assert page.count("<tr>") == 2 + 2 * len(report.pairs) + sum(len(pair.differences) for pair in report.pairs)
