"""Deltas on top of others, as they are typed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import raw
from tests.cli.program import Pair, Workplace, told_beside_licences
from tests.lora.models import Adapted, adapted

PARENT, STACKED = "acme/search:1.0.0", "acme/french:1.0.0"


@pytest.fixture
def last(pair: Pair, tmp_path: Path) -> Path:
    """What further training makes of post."""
    goal = tmp_path / "last"
    goal.mkdir()
    (goal / "config.json").write_bytes((pair.post / "config.json").read_bytes())
    tensors: list[raw.RawTensor] = []
    for tensor in raw.read(pair.post).values():
        values = (tensor.data.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        tensors.append(raw.RawTensor(tensor.spec, raw.to_bf16(values * np.float32(1.01)).view(np.uint8)))
    raw.write(goal / "model.safetensors", tensors)
    return goal


def test_a_delta_on_top_of_another_is_taken_shown_and_applied_with_it(
    stocked: Workplace, pair: Pair, last: Path
) -> None:
    arguments = ("diff", pair.post, last, "--tag", STACKED, "--on", "acme/search", "--conflicts", "acme/other >=2, <3")
    digest = stocked.ok("show", PARENT, "--json").document("show")["digest"]
    required = {"reference": "acme/search", "version": "1.0.0", "digest": digest, "weight": 1.0}
    would = stocked.ok(*arguments, "--dry-run", "--json").document("diff")
    told = stocked.ok(*arguments, "--json").document("diff")
    assert would["requires"] == told["requires"] == [required]
    assert told["conflicts"] == [{"reference": "acme/other", "version": ">=2, <3", "reason": None}]
    config = stocked.ok("show", STACKED, "--json").document("show")["config"]
    assert config["requires"] == [required]
    shown = stocked.ok("show", STACKED).out
    assert f"acme/search 1.0.0 ({digest})" in shown
    assert "acme/other >=2, <3" in shown
    done = stocked.run("apply", pair.base, STACKED, "-o", "out")
    assert (done.status, done.codes) == (2, ["DR0101"])
    assert f"deltareg apply base {PARENT} {STACKED} -o OUT, or --force" in done.err
    checked = stocked.ok("check", STACKED, "--base", pair.base)
    assert "delta-stacked" in checked.out
    assert "acme/search 1.0.0" in checked.out
    assert stocked.run("check", STACKED, "--base", pair.base, "--strict").status == 3
    stocked.ok("check", STACKED, "--base", pair.post, "--strict")
    assert told_beside_licences(stocked.ok("apply", pair.base, PARENT, STACKED, "-o", "both").err) == []
    stocked.ok("apply", pair.post, STACKED, "-o", "same")
    assert [tensor.data.tobytes() for tensor in raw.read(stocked.directory / "same").values()] == [
        tensor.data.tobytes() for tensor in raw.read(last).values()
    ]
    forced = stocked.ok("apply", pair.base, STACKED, "-o", "alone", "--force")
    assert f"warning: forced: {STACKED} was taken on top of acme/search 1.0.0" in forced.err
    stocked.ok("verify", STACKED, "--base", pair.post, "--post", last)


def test_a_weight_below_is_recorded_and_another_one_is_told(stocked: Workplace, pair: Pair, last: Path) -> None:
    stocked.ok("diff", pair.post, last, "--tag", STACKED, "--on", f"{PARENT}=0.5")
    assert "acme/search 1.0.0 (weight 0.5; sha256:" in stocked.ok("show", STACKED).out
    done = stocked.run("apply", pair.base, STACKED, "-o", "out")
    assert f"{PARENT}=0.5 {STACKED} -o OUT" in done.err
    assert "at weight 0.5, which has 1.0 here" in stocked.ok("apply", pair.base, PARENT, STACKED, "-o", "out").err
    half = stocked.ok("apply", pair.base, f"{PARENT}=0.5", STACKED, "-o", "half")
    assert told_beside_licences(half.err) == []


def test_two_that_exclude_one_another_are_not_applied(stocked: Workplace, pair: Pair) -> None:
    rival = "acme/rival:1.0.0"
    stocked.ok("diff", pair.base, pair.post, "--tag", rival, "--conflicts", "acme/search <2", "--conflicts", "acme/x")
    done = stocked.run("apply", pair.base, PARENT, rival, "-o", "out")
    assert (done.status, done.codes) == (2, ["DR0101"])
    assert f"{rival} excludes {PARENT}" in done.err
    assert "warning: forced: " in stocked.ok("apply", pair.base, PARENT, rival, "-o", "out", "--force").err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--on", "acme/nothing"], "DR0002"),
        (["--on", "nothing"], "DR0102"),
        (["--on", f"{PARENT}=nan"], "DR0101"),
        (["--on", f"{PARENT}=0"], "DR0101"),
        (["--on", f"{PARENT}=0.1..0.2"], "DR0101"),
        (["--on", f"{PARENT}="], "DR0101"),
        (["--on", PARENT, "--on", "acme/search"], "DR0101"),
        (["--on", ""], "DR0102"),
        (["--conflicts", "acme/x:1.0.0"], "DR0102"),
        (["--conflicts", "acme/x newest"], "DR0102"),
        (["--conflicts", "acme/french"], "DR0101"),
        (["--conflicts", ""], "DR0102"),
    ],
)
def test_what_cannot_be_required_or_excluded_is_a_wrong_argument(
    stocked: Workplace, pair: Pair, arguments: list[str], code: str
) -> None:
    done = stocked.run("diff", pair.base, pair.post, "--tag", STACKED, *arguments)
    assert (done.status, done.codes, done.out) == (1 if code == "DR0002" else 2, [code], "")
    assert stocked.run("show", STACKED).status == 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """A base and an adapter of it. Read only."""
    return adapted(tmp_path_factory.mktemp("made"), "llama", r=4, target_modules=["q_proj"])


def test_an_adapter_is_imported_on_top_of_a_delta(stocked: Workplace, made: Adapted) -> None:
    arguments = ("--base", made.base, "--tag", STACKED, "--on", f"{PARENT}=0.5", "--conflicts", "acme/other")
    stocked.ok("import-lora", made.adapter, *arguments)
    config = stocked.ok("show", STACKED, "--json").document("show")["config"]
    assert [(one["reference"], one["weight"]) for one in config["requires"]] == [("acme/search", 0.5)]
    assert [one["reference"] for one in config["conflicts"]] == ["acme/other"]
