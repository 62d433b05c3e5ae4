"""`deltareg compare`, as a user types it, with real deltas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.program import Pair, Workplace

DELTA, HALF, SHARK = "acme/search:1.0.0", "acme/half:1.0.0", "acme/shark:1.0.0"


@pytest.fixture
def two(stocked: Workplace, pair: Pair) -> Workplace:
    """A user who has the delta and half of it."""
    stocked.ok("apply", pair.base, f"{DELTA}=0.5", "-o", "half")
    stocked.ok("diff", pair.base, "half", "--tag", HALF)
    return stocked


def test_a_delta_and_its_half_teach_nearly_the_same(two: Workplace) -> None:
    (found,) = two.ok("compare", DELTA, HALF, "--json").document("compare")["pairs"]
    assert (found["first"], found["second"]) == (DELTA, HALF)
    assert found["classes"]["all"]["cosine"] > 0.9
    assert found["classes"]["all"]["normRatio"] < 0.7
    assert found["classes"]["mlp"]["exact"] is True
    shown = two.ok("compare", HALF, DELTA, "--layers").out
    assert "1 · 2" in shown
    assert "model.layers.0 mlp" in shown
    assert "exact" in shown


def test_real_deltas_are_compared(workplace: Workplace, anarcii_bf16: Mapping[str, Path]) -> None:
    base, post = anarcii_bf16["antibody_4_2"], anarcii_bf16["shark_4_2"]
    workplace.ok("diff", base, post, "--tag", SHARK)
    workplace.ok("diff", post, base, "--tag", "acme/back:1.0.0")
    (found,) = workplace.ok("compare", SHARK, "acme/back:1.0.0", "--exact", "--json").document("compare")["pairs"]
    # There and back again: every sign opposes.
    assert found["classes"]["all"]["cosine"] == pytest.approx(-1, abs=0.001)
    assert found["skipped"] == []


@pytest.mark.parametrize("ending", ["png", "svg", "html"])
def test_a_picture_is_drawn(two: Workplace, ending: str) -> None:
    done = two.ok("compare", DELTA, HALF, "--plot", f"picture.{ending}")
    assert f"picture.{ending}" in done.err
    before = (two.directory / f"picture.{ending}").read_bytes()
    assert {"png": b"\x89PNG", "svg": b"<?xml", "html": b"<!doc"}[ending] == before[: 5 if ending != "png" else 4]
    two.ok("compare", DELTA, HALF, "--plot", f"picture.{ending}")
    assert (two.directory / f"picture.{ending}").read_bytes() == before
    assert [path.name for path in two.directory.iterdir() if path.name.startswith(".picture")] == []


def test_pictures_that_cannot_be_drawn_are_told_first(two: Workplace) -> None:
    (two.directory / "folder.png").mkdir()
    for name in ("picture.pdf", "nowhere/picture.png", "folder.png", ""):
        done = two.run("compare", DELTA, HALF, "--plot", name)
        assert (done.codes, done.status, done.out) == (["DR0101"], 2, "")


def test_what_cannot_be_compared_is_refused(two: Workplace, anarcii_bf16: Mapping[str, Path]) -> None:
    for names in ([DELTA], [DELTA, DELTA]):
        assert two.run("compare", *names).codes == ["DR0101"]
    assert two.run("compare", DELTA, "acme/nothing:1.0.0").codes == ["DR0002"]
    two.ok("diff", anarcii_bf16["antibody_4_2"], anarcii_bf16["shark_4_2"], "--tag", SHARK)
    done = two.run("compare", DELTA, SHARK)
    assert (done.codes, done.status) == (["DR0200"], 3)
    assert "no tensor to compare" in done.err
