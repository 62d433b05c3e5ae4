"""Sweeps of a real model's deltas: in memory, by building, going on, and all the ways in which they fail."""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

import deltareg
from deltareg.analysis import SweepReport, sweep
from deltareg.analysis.scoring import load_score
from deltareg.build import Project
from deltareg.errors import (
    DigestMismatch,
    DiskFull,
    EvaluationFailed,
    InvalidArgument,
    NotHomologous,
    OutputExists,
    UnsupportedFormat,
)
from deltareg.resolve import Sources
from tests import raw
from tests.analysis.scene import RECIPE, Scene
from tests.deltas import flip
from tests.disks import small_disk

PROGRAM = """
import json, pathlib, sys, zlib
runs = pathlib.Path(sys.argv[2])
done = runs.read_text().splitlines() if runs.exists() else []
if len(done) == int(sys.argv[3]):
    sys.exit("enough")
runs.write_text("\\n".join([*done, sys.argv[1]]))
data = pathlib.Path(sys.argv[1], "model.safetensors").read_bytes()
start = 8 + int.from_bytes(data[:8], "little")
header = json.loads(data[8:start])
def sum_of(name):
    first, last = header[name]["data_offsets"]
    return zlib.crc32(data[start + first : start + last])
print(json.dumps({"norm": sum_of("model.norm.weight"), "up": sum_of("model.layers.0.mlp.up_proj.weight")}))
"""


def recipe_in(directory: Path, scene: Scene, text: str = RECIPE, base: Path | None = None) -> Path:
    """A recipe of its own, without a lock."""
    path = directory / "deltareg.toml"
    path.write_text(text.replace("./base", str(base or scene.base)))
    return path


def command_in(directory: Path, most: int = 1000) -> str:
    """A command that tells checksums of weights, keeps a line for each run, and fails after `most` of them."""
    (directory / "evaluate.py").write_text(PROGRAM)
    return f"'{sys.executable}' '{directory}/evaluate.py' {{model}} '{directory}/runs' {most}"


def checksum(directory: Path) -> int:
    """Of a tensor that the deltas change."""
    return zlib.crc32(raw.read(directory)["model.layers.0.mlp.up_proj.weight"].data.tobytes())


def runs_in(directory: Path) -> list[str]:
    """The checkpoints that were evaluated."""
    return (directory / "runs").read_text().splitlines()


def metrics_of(report: SweepReport, name: str) -> list[float | None]:
    """A metric at every point."""
    return [point.metrics[name] for point in report.points]


def test_alpha_multiplies_the_recipes_weight_in_memory_as_on_disk(tmp_path: Path, scene: Scene) -> None:
    alpha = [0, 0.5, 1, 2]
    memory = sweep(scene.recipe, scene.registry, alpha=alpha, score=load_score(f"{scene.score}:weights"))
    disk = sweep(scene.recipe, scene.registry, alpha=alpha, command=command_in(tmp_path))
    assert [point.metrics for point in memory.points] == [point.metrics for point in disk.points]
    assert len(set(metrics_of(memory, "up"))) == 4
    assert len(set(metrics_of(memory, "norm"))) == 1  # no delta changes it
    assert [point.weights for point in memory.points] == [{"acme/one:1.0.0": 0.5 * one} for one in alpha]
    # At 1 it is what the recipe builds.
    deltareg.build(Project(scene.recipe), Sources(scene.registry), tmp_path / "out")
    assert memory.points[2].metrics["up"] == checksum(tmp_path / "out")
    # Nothing of the points is left.
    assert not any(Path(one).exists() for one in runs_in(tmp_path))


def test_twenty_one_weights_take_less_than_a_minute_beside_the_evaluation(scene: Scene) -> None:
    alpha = [number / 10 for number in range(21)]
    report = sweep(
        scene.recipe, scene.registry, alpha=alpha, score=load_score(f"{scene.score}:score"), lower_is_better=["loss"]
    )
    assert sum(point.apply_seconds for point in report.points) + report.load_seconds < 60
    summary = report.metrics["loss"]
    assert summary.best == min(value for value in metrics_of(report, "loss") if value is not None)
    assert (summary.at_zero, summary.at_one) == (report.points[0].metrics["loss"], report.points[10].metrics["loss"])
    assert summary.alpha.concavity is not None and summary.alpha.plateau is not None
    assert set(metrics_of(report, "words")) == {28}  # the tokenizer of the build
    assert report.complete


def test_two_weights_make_a_surface(tmp_path: Path, scene: Scene) -> None:
    options: dict[str, Any] = {"alpha": [0, 1, 2], "beta": [0, 0.5]}
    memory = sweep(scene.recipe, scene.registry, score=load_score(f"{scene.score}:weights"), **options)
    disk = sweep(scene.recipe, scene.registry, command=command_in(tmp_path), **options)
    assert [(point.alpha, point.beta) for point in memory.points] == [(a, b) for b in (0, 0.5) for a in (0, 1, 2)]
    assert [point.metrics for point in memory.points] == [point.metrics for point in disk.points]
    summary = memory.metrics["up"]
    best = max(memory.points, key=lambda point: point.metrics["up"] or 0)
    assert (summary.best_alpha, summary.best_beta, summary.best) == (best.alpha, best.beta, best.metrics["up"])
    assert summary.alpha.points == 3
    assert summary.beta is not None and summary.beta.points == 2
    assert summary.at_zero == memory.points[0].metrics["up"]
    assert summary.at_one is None  # no point is at 1, 1


def test_the_fused_line_has_alpha_and_one_minus_alpha(scene: Scene) -> None:
    report = sweep(
        scene.recipe, scene.registry, alpha=[0, 0.25, 1], fused=True, score=load_score(f"{scene.score}:weights")
    )
    assert [point.weights for point in report.points] == [
        {"acme/one:1.0.0": 0.0, "acme/two:1.0.0": 1.0},
        {"acme/one:1.0.0": 0.25, "acme/two:1.0.0": 0.75},
        {"acme/one:1.0.0": 1.0, "acme/two:1.0.0": 0.0},
    ]
    # At its ends it is one post-training, and the other.
    for point, post in ((report.points[0], "two"), (report.points[2], "one")):
        assert point.metrics["up"] == checksum(scene.place / post)


def test_another_delta_can_vary(scene: Scene) -> None:
    score = load_score(f"{scene.score}:weights")
    report = sweep(scene.recipe, scene.registry, alpha=[0.5], deltas=["acme/two"], score=score)
    assert report.points[0].weights == {"acme/two:1.0.0": 0.5}
    assert [delta.varies for delta in report.deltas] == [None, "alpha"]


def test_weights_by_tensor_are_multiplied_too(tmp_path: Path, scene: Scene) -> None:
    text = RECIPE.replace("weight = 0.5", 'weight = [0.2, 0.6]\nwhere = { "model.layers.0.*" = 0.5 }')
    recipe = recipe_in(tmp_path, scene, text)
    memory = sweep(recipe, scene.registry, alpha=[1, 2], score=load_score(f"{scene.score}:weights"))
    plain = sweep(scene.recipe, scene.registry, alpha=[1, 2], score=load_score(f"{scene.score}:weights"))
    # The metric is of a tensor in the layer 0.
    assert metrics_of(memory, "up") == metrics_of(plain, "up")
    assert memory.points[1].weights == {"acme/one:1.0.0": [0.4, 1.2]}


def test_a_merge_method_is_followed_in_memory(tmp_path: Path, scene: Scene) -> None:
    text = RECIPE.replace("[build]", '[build]\nmethod = "dare_ties"\nparameters = { density = 0.5 }\nseed = 3')
    recipe = recipe_in(tmp_path, scene, text)
    memory = sweep(recipe, scene.registry, alpha=[0.5, 1], score=load_score(f"{scene.score}:weights"))
    disk = sweep(recipe, scene.registry, alpha=[0.5, 1], command=command_in(tmp_path))
    assert metrics_of(memory, "up") == metrics_of(disk, "up")


def test_what_is_not_finite_is_left_out_and_told(scene: Scene) -> None:
    report = sweep(scene.recipe, scene.registry, alpha=[0, 1], score=load_score(f"{scene.score}:diverged"))
    assert metrics_of(report, "loss") == [None, None]
    assert list(report.metrics) == ["accuracy"]
    values = iter([0.1, float("nan"), 0.3])
    report = sweep(scene.recipe, scene.registry, alpha=[0, 1, 2], score=lambda *_: {"a": next(values)})
    assert (report.metrics["a"].not_finite, report.metrics["a"].alpha.points) == (1, 2)
    json.dumps(report.model_dump(mode="json"), allow_nan=False)


# --- going on -----------------------------------------------------------------------------------------------------


def test_a_sweep_goes_on_where_it_failed(tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    out = tmp_path / "sweep.json"
    command = command_in(tmp_path, most=2)
    with pytest.raises(EvaluationFailed, match=r"at alpha 1: .* ended with the status 1") as error:
        sweep(scene.recipe, scene.registry, alpha=[0, 0.5, 1], command=command, out=out)
    assert error.value.cause == "enough"
    assert not list(scratch.iterdir())
    before = SweepReport.model_validate_json(out.read_bytes())
    assert ([point.alpha for point in before.points], before.complete, before.metrics) == ([0, 0.5], False, {})
    (tmp_path / "evaluate.py").write_text(PROGRAM.replace("int(sys.argv[3])", "4"))
    after = sweep(scene.recipe, scene.registry, alpha=[0, 0.5, 1, 2], command=command, out=out)
    assert (after.reused_points, len(after.points), after.complete) == (2, 4, True)
    assert after.points[:2] == before.points
    assert len(runs_in(tmp_path)) == 4
    # All is there: nothing runs, and a part of it is a sweep of its own.
    again = sweep(scene.recipe, scene.registry, alpha=[0.5, 2], command=command, out=out)
    assert [point.alpha for point in again.points] == [0.5, 2]
    assert len(runs_in(tmp_path)) == 4
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".sweep")]


def test_a_file_of_another_sweep_is_left_alone(tmp_path: Path, scene: Scene) -> None:
    out, score = tmp_path / "sweep.json", load_score(f"{scene.score}:weights")
    sweep(scene.recipe, scene.registry, alpha=[0], score=score, out=out)
    before = out.read_bytes()
    other = recipe_in(tmp_path, scene, RECIPE.replace("0.5", "0.4"))
    for recipe, options, told in (
        (other, {}, "the recipe differs"),
        (scene.recipe, {"deltas": ["acme/two"]}, "a delta, or which of them varies differs"),
        (scene.recipe, {"fused": True}, "a delta, or which of them varies differs"),
        (scene.recipe, {"score": load_score(f"{scene.score}:score")}, "the evaluation differs"),
    ):
        with pytest.raises(OutputExists, match=told):
            sweep(recipe, scene.registry, **{"alpha": [0], "score": score, "out": out, **options})  # type: ignore[arg-type]
        assert out.read_bytes() == before
    for text in (b"", b"{}", b"[1]", b"\xff", b'{"formatVersion": 9}'):
        out.write_bytes(text)
        with pytest.raises(OutputExists, match="is no report of a sweep"):
            sweep(scene.recipe, scene.registry, alpha=[0], score=score, out=out)
        assert out.read_bytes() == text


def test_a_file_that_cannot_be_written_is_told_before_anything_runs(tmp_path: Path, scene: Scene) -> None:
    for out, told in ((tmp_path, "is a directory"), (tmp_path / "absent" / "x.json", "no directory")):
        with pytest.raises(InvalidArgument, match=told):
            sweep(scene.recipe, scene.registry, alpha=[0], command=command_in(tmp_path), out=out)
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_keeps_the_points_that_were_written(tmp_path: Path, scene: Scene) -> None:
    with small_disk(tmp_path / "small", 8) as disk:
        out = disk / "sweep.json"
        score = load_score(f"{scene.score}:weights")
        with pytest.raises(DiskFull):
            sweep(scene.recipe, scene.registry, alpha=range(100), score=score, out=out)
        before = SweepReport.model_validate_json(out.read_bytes())
        assert before.points and not before.complete
        assert [one.name for one in disk.iterdir()] == ["sweep.json"]
        shutil.copy(out, tmp_path / "sweep.json")
    after = sweep(scene.recipe, scene.registry, alpha=range(20), score=score, out=tmp_path / "sweep.json")
    assert after.reused_points == len(before.points)


# --- what is refused ----------------------------------------------------------------------------------------------

ONE = RECIPE[: RECIPE.rindex("[[delta]]")]


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        (RECIPE, {"score": None}, "a command or a function"),
        (RECIPE, {"command": "a {model}"}, "a command or a function"),
        (RECIPE, {"timeout": 3.0}, "cannot be ended"),
        (RECIPE, {"alpha": []}, "alpha is empty"),
        (RECIPE, {"beta": []}, "beta is empty"),
        (RECIPE, {"alpha": range(101), "beta": range(100)}, "10,100 points together"),
        (RECIPE, {"fused": True, "beta": [1]}, "beta is 1 − alpha"),
        (RECIPE, {"tolerance": 2}, "tolerance"),
        (RECIPE, {"deltas": ["acme/three"]}, "no delta acme/three"),
        (RECIPE, {"deltas": ["acme/one", "acme/two"]}, "2 deltas are named, where 1 varies"),
        (RECIPE, {"deltas": ["acme/one", "acme/one"], "beta": [1]}, "2 different ones vary"),
        (RECIPE, {"lower_is_better": ["los"]}, "at alpha 1: the evaluation gave no metric 'los'"),
        (RECIPE, {"alpha": [3e38]}, None),
        (RECIPE.replace("0.5", "3"), {"alpha": [3e38]}, "would be 9e\\+38"),
        (RECIPE.replace("0.5", "0"), {}, "every multiple of it is 0"),
        (RECIPE.replace("0.5", "[0.1, 0.2]"), {"fused": True}, "differs by tensor"),
        (ONE, {"beta": [1]}, "has 1 deltas, and 2 weights"),
        (ONE, {"fused": True}, "has 1 deltas, and 2 weights"),
        (
            RECIPE.replace("[build]", '[build]\ndtype = "float32"'),
            {},
            "the recipe asks for float32, and the base has BF16",
        ),
        (RECIPE, {"device": "nonsense"}, "the device 'nonsense' cannot be used"),
    ],
)
def test_what_cannot_be_swept_is_refused(
    tmp_path: Path, scene: Scene, text: str, options: dict[str, Any], told: str | None
) -> None:
    whole: dict[str, Any] = {"alpha": [1], "score": lambda *_: {"a": 1}, **options}
    if told is None:
        sweep(recipe_in(tmp_path, scene, text), scene.registry, **whole)
        return
    with pytest.raises(InvalidArgument, match=told) as error:
        sweep(recipe_in(tmp_path, scene, text), scene.registry, **whole)
    assert error.value.hint


def test_functions_that_fail_are_told_with_the_point(scene: Scene) -> None:
    for name, told in (
        ("broken", "nothing to divide by"),
        ("nothing", "no metrics"),
        ("words", "is no number: 'high'"),
    ):
        with pytest.raises(EvaluationFailed, match=f"at alpha 0: .*{told}"):
            sweep(scene.recipe, scene.registry, alpha=[0, 1], score=load_score(f"{scene.score}:{name}"))


def test_another_base_than_the_locked_one_is_refused(tmp_path: Path, scene: Scene) -> None:
    base = tmp_path / "base"
    shutil.copytree(scene.base, base)
    recipe = recipe_in(tmp_path, scene, base=base)
    score = load_score(f"{scene.score}:weights")
    sweep(recipe, scene.registry, alpha=[0], score=score)
    flip(base / "model.safetensors", 8 * (base / "model.safetensors").stat().st_size - 8)
    with pytest.raises(DigestMismatch, match="is not the base of the lock"):
        sweep(recipe, scene.registry, alpha=[0], score=score)
    with pytest.raises(DigestMismatch, match="is not the base of the lock"):
        sweep(recipe, scene.registry, alpha=[0], command=command_in(tmp_path))


def test_a_model_that_transformers_does_not_know_is_told(tmp_path: Path, scene: Scene) -> None:
    base = tmp_path / "base"
    shutil.copytree(scene.base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "ours", "architectures": ["Ours"]}))
    recipe = recipe_in(tmp_path, scene, base=base)
    with pytest.raises(UnsupportedFormat, match="transformers cannot load the model") as error:
        sweep(recipe, scene.registry, alpha=[0], score=load_score(f"{scene.score}:weights"), force=True)
    assert "--eval" in str(error.value.hint)


def test_what_a_model_in_memory_has_no_room_for_is_built_instead(tmp_path: Path, scene: Scene) -> None:
    base = tmp_path / "base"
    model = LlamaForCausalLM.from_pretrained(scene.base, dtype="auto")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    shutil.copytree(scene.base, base)
    model.save_pretrained(base)
    recipe = recipe_in(tmp_path, scene, base=base)
    with pytest.raises(NotHomologous, match=r"lm_head\.weight would be a tensor of its own") as error:
        sweep(recipe, scene.registry, alpha=[1], score=load_score(f"{scene.score}:weights"))
    assert "--eval builds a checkpoint for each point" in str(error.value.hint)
    assert sweep(recipe, scene.registry, alpha=[1], command=command_in(tmp_path)).complete
