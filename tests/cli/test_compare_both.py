"""`deltareg compare --both`, as a user types it: a model that is large enough to have sketches."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.analysis.sketched import checkpoint
from tests.cli.program import Workplace

ONE, OTHER, SMALL = "acme/one:1.0.0", "acme/other:1.0.0", "acme/search:1.0.0"
NAMES = [f"model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.up_proj")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two deltas of 2^22 parameters. Read only."""
    root = Workplace(tmp_path_factory.mktemp("large"))
    draw = np.random.default_rng(8)
    zeros = {name: np.zeros(1 << 20, np.float32) for name in NAMES}
    first = {name: draw.standard_normal(1 << 20).astype(np.float32) for name in NAMES}
    second = {name: first[name] * 0.3 + draw.standard_normal(1 << 20).astype(np.float32) for name in NAMES}
    base = checkpoint(root.directory / "base", zeros)
    for name, tensors in ((ONE, first), (OTHER, second)):
        post = checkpoint(root.directory / name.split(":")[0], tensors)
        root.ok("diff", base, post, "--tag", name)
    shutil.rmtree(root.directory)
    return root.home


@pytest.fixture
def large(workplace: Workplace, home: Path) -> Workplace:
    """A user who has both."""
    workplace.environment["DELTAREG_HOME"] = str(home)
    return workplace


def test_estimates_stand_beside_exact_figures(large: Workplace) -> None:
    (pair,) = large.ok("compare", ONE, OTHER, "--both", "--json").document("side-by-side")["pairs"]
    true = 0.3 / (1 + 0.3**2) ** 0.5
    (row,) = [row for row in pair["differences"] if (row["layer"], row["moduleClass"]) == ("", "all")]
    assert row["cosine"]["exact"] == pytest.approx(true, abs=0.002)
    assert row["cosine"]["estimated"] == pytest.approx(row["cosine"]["exact"], abs=4 * row["cosine"]["error"])
    assert row["cosine"]["error"] > 0
    assert pair["cosine"]["compared"] == 4
    shown = large.ok("compare", ONE, OTHER, "--both", "--layers").out
    assert "within one error" in shown
    assert f"{row['cosine']['estimated']:.4f} ± {row['cosine']['error']:.4f}" in shown
    assert f"{row['cosine']['exact']:.4f}" in shown
    assert "model.layers.1 mlp" in shown
    assert "model.layers" not in large.ok("compare", ONE, OTHER, "--both").out


def test_a_picture_of_both_is_drawn(large: Workplace) -> None:
    pytest.importorskip("matplotlib")
    assert "drew both.html" in large.ok("compare", ONE, OTHER, "--both", "--plot", "both.html").err
    page = (large.directory / "both.html").read_text()
    assert "Estimates beside exact figures" in page and "<svg" in page


def test_both_and_exact_are_one_too_many(large: Workplace) -> None:
    done = large.run("compare", ONE, OTHER, "--both", "--exact")
    assert (done.codes, done.status) == (["DR0101"], 2)
    assert "leave out --exact" in done.err


def test_small_models_have_no_sketches(stocked: Workplace) -> None:
    base = stocked.directory / "base"
    base.mkdir()
    zeros, ones = ({"w": np.full(9, value, np.float32)} for value in (0, 1))
    stocked.ok("diff", checkpoint(base / "a", zeros), checkpoint(base / "b", ones), "--tag", ONE)
    stocked.ok("diff", base / "b", base / "a", "--tag", OTHER)
    done = stocked.run("compare", ONE, OTHER, "--both")
    assert (done.codes, done.status) == (["DR0101"], 2)
    assert f"hint: deltareg compare --exact {ONE} {OTHER}" in done.err
