"""`deltareg compare`, as a user types it, with real deltas."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import raw
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


def test_what_real_deltas_do_not_share_is_counted(workplace: Workplace, anarcii_bf16: Mapping[str, Path]) -> None:
    base, post = anarcii_bf16["antibody_4_2"], anarcii_bf16["shark_4_2"]
    tensors = list(raw.read(anarcii_bf16["tcr_4_2"]).values())
    shapes = {name: tensor.spec.shape for name, tensor in raw.read(base).items()}
    tcr = workplace.directory / "tcr"
    tcr.mkdir()
    # Its vocabulary is one larger.
    raw.write(tcr / "model.safetensors", [one for one in tensors if one.spec.shape == shapes[one.spec.name]])
    workplace.ok("diff", base, post, "--tag", SHARK)
    workplace.ok("diff", post, base, "--tag", "acme/back:1.0.0")
    workplace.ok("diff", base, "tcr", "--tag", "acme/tcr:1.0.0")
    done = workplace.ok("compare", SHARK, "acme/tcr:1.0.0")
    assert "3 tensors were not compared: --json says why" in done.err
    found = workplace.ok("compare", SHARK, "acme/tcr:1.0.0", "--json").document("compare")["pairs"][0]
    # Fine-tunes on unrelated data are nearly orthogonal.
    assert 0 < abs(found["classes"]["all"]["cosine"]) < 0.05
    assert f"1 · 2   all           {found['classes']['all']['cosine']:.4f}" in done.out
    # The same three are skipped by two of the three pairs.
    done = workplace.ok("compare", SHARK, "acme/tcr:1.0.0", "acme/back:1.0.0")
    assert "3 tensors were not compared in every pair" in done.err
    assert [line.split()[0] for line in done.out.splitlines()[3:7]] == ["cosine", "1", "2", "3"]


def test_rows_stay_short_where_names_are_long(two: Workplace, pair: Pair) -> None:
    name = f"{'n' * 60}/{'x' * 60}:1.0.0"
    two.ok("diff", pair.base, "half", "--tag", name)
    lines = two.ok("compare", DELTA, name, COLUMNS="60").out.splitlines()
    assert lines[1] == f"delta 2  {name}"
    assert max(map(len, lines[2:])) < 90


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
        assert "hint: " in done.err
        # Before any delta is looked for.
        assert two.run("compare", DELTA, "acme/nothing:1.0.0", "--plot", name).codes == ["DR0101"]


def test_a_missing_matplotlib_is_told_first(two: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = two.run("compare", DELTA, "acme/nothing:1.0.0", "--plot", "picture.png")
    assert (done.codes, done.status, done.out) == (["DR0101"], 2, "")
    assert "pip install 'deltareg[plot]'" in done.err
    assert two.ok("compare", DELTA, HALF).out


def test_a_picture_that_fails_leaves_the_old_one(two: Workplace) -> None:
    (two.directory / "picture.svg").write_text("the old one")
    assert two.run("compare", DELTA, "acme/nothing:1.0.0", "--plot", "picture.svg").status == 1
    assert (two.directory / "picture.svg").read_text() == "the old one"


def test_help_loads_no_arrays(workplace: Workplace) -> None:
    program = """
import sys
from deltareg.cli import main
main(["compare", "--help"])
print("loaded:", *sorted({"numpy", "numba", "torch", "matplotlib"} & set(sys.modules)), file=sys.stderr)
"""
    done = workplace.python(program)
    assert "--exact" in done.out
    assert done.err.endswith("loaded:\n")


def test_what_cannot_be_compared_is_refused(two: Workplace, anarcii_bf16: Mapping[str, Path]) -> None:
    for names in ([DELTA], [DELTA, DELTA]):
        assert two.run("compare", *names).codes == ["DR0101"]
    assert "two deltas at least" in two.run("compare", DELTA).err
    digest = two.ok("show", DELTA, "--json").document("show")["digest"]
    for name in (DELTA, "acme/search:latest", f"acme/search@{digest}"):
        done = two.run("compare", DELTA, HALF, name)
        assert (done.codes, done.status) == (["DR0101"], 2)
        assert f"{DELTA} is given twice" in done.err
    assert two.run("compare", DELTA, "acme/nothing:1.0.0").codes == ["DR0002"]
    two.ok("diff", anarcii_bf16["antibody_4_2"], anarcii_bf16["shark_4_2"], "--tag", SHARK)
    done = two.run("compare", DELTA, SHARK)
    assert (done.codes, done.status) == (["DR0200"], 3)
    assert "no tensor to compare" in done.err
