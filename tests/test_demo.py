"""The demo plays, on the smaller of its pairs, and is not easily content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import demo, program, weights
from tests.deltas import flip

BF16 = demo.PARTS["bf16"]


@pytest.mark.slow
def test_demo_goes_the_whole_way_and_ends_with_its_figures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scene = tmp_path / "scene"
    scene.mkdir()
    demo.play(scene, [BF16], programs=program.install(tmp_path / "bin"))
    told = capfd.readouterr().out
    commands = [line.split()[2] for line in told.splitlines() if line.startswith("$ deltareg ")]
    before, judged = ["init", "remote", "diff", "list", "show", "push", "pull", "verify"], ["search", "check", "check"]
    assert commands == [*before, *judged, "apply", "apply", "push", "search", "pull"]
    assert "/d/acme/sre-search-bf16" in told
    assert "lineage-unrelated" in told
    assert "(exit status 3)" in told
    assert "103 of 103 tensors are equal" in told
    for label in ("parameters", "raw bytes", "artifact bytes", "ratio", "seconds of diff", "seconds of apply at 0.5"):
        assert label in told


def test_demo_ends_at_a_command_that_fails(tmp_path: Path) -> None:
    scene = tmp_path / "scene"
    scene.mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "deltareg").write_text("#!/bin/sh\ntest $1 != diff || exit 5\n")
    (programs / "deltareg").chmod(0o755)
    with pytest.raises(demo.Failed, match=r"deltareg diff minilm-bf16 .* ended with status 5") as caught:
        demo.play(scene, [BF16], programs=programs)
    assert caught.value.status == 5
    assert not (scene / "minilm-bf16-rebuilt").exists()


def test_demo_needs_the_program_installed(tmp_path: Path) -> None:
    with pytest.raises(demo.Failed, match="make demo"):
        demo.play(tmp_path, [BF16], programs=tmp_path)


def test_comparison_finds_one_bit(minilm_bf16: weights.Pair, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(minilm_bf16.post, tmp_path / "copy"))
    assert demo.compare(copy, minilm_bf16.post)[1] == []
    flip(copy / "model.safetensors", bit=8 * (copy / "model.safetensors").stat().st_size - 3)
    assert len(demo.compare(copy, minilm_bf16.post)[1]) == 1


def test_comparison_finds_a_missing_tensor(minilm_bf16: weights.Pair) -> None:
    assert "embeddings.position_ids" in demo.compare(minilm_bf16.base, minilm_bf16.post)[1]


def test_midpoint_is_not_an_end(minilm_bf16: weights.Pair) -> None:
    assert demo.distance_from_midpoint(minilm_bf16.post, minilm_bf16.base, minilm_bf16.post) > 1
