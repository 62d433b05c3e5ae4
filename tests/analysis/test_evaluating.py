"""One evaluation of a recipe, or of a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deltareg.analysis import evaluate, sweep
from deltareg.analysis.evaluating import is_recipe
from deltareg.analysis.harness import Harness, flat
from deltareg.analysis.scoring import load_score
from deltareg.errors import BadRecipe, CheckpointNotFound, EvaluationFailed, InvalidArgument
from tests.analysis.scene import Scene

TASK = """\
task: alphabet
dataset_path: json
dataset_kwargs:
  data_files:
    test: {place}/rows.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def test_a_recipe_is_what_it_is_at_alpha_1(tmp_path: Path, scene: Scene) -> None:
    score = load_score(f"{scene.score}:weights")
    at_one = sweep(scene.recipe, scene.registry, alpha=[1], score=score).points[0]
    report = evaluate(scene.recipe, scene.registry, score=score, out=tmp_path / "results.json")
    assert report.metrics == at_one.metrics
    assert report.kind == "recipe"
    assert [(one.reference, one.weight) for one in report.deltas] == [("acme/one:1.0.0", 0.5), ("acme/two:1.0.0", 1.0)]
    assert report.base is not None and report.base.digest is not None
    whole = json.loads((tmp_path / "results.json").read_text())
    assert whole["results"]["evaluation"]["up,none"] == report.metrics["up"]
    assert whole["deltareg"]["metrics"] == report.metrics


def test_a_checkpoint_is_evaluated_as_it_is(tmp_path: Path, scene: Scene) -> None:
    score = load_score(f"{scene.score}:weights")
    report = evaluate(scene.base, scene.registry, score=score)
    assert (report.kind, report.deltas, report.base) == ("checkpoint", [], None)
    assert report.checkpoint is not None and report.checkpoint.id == "base"
    other = evaluate(scene.place / "one", scene.registry, score=score)
    assert other.checkpoint is not None
    assert other.checkpoint.digest != report.checkpoint.digest
    assert other.metrics["up"] != report.metrics["up"]
    assert other.metrics["norm"] == report.metrics["norm"]
    with pytest.raises(EvaluationFailed, match="printed no JSON object"):
        evaluate(scene.base, scene.registry, command="echo {model}")
    command = """sh -c 'echo "{\\"a\\": 1}"' {model}"""
    assert evaluate(scene.base, scene.registry, command=command).metrics == {"a": 1}


def test_a_model_of_the_hub_is_evaluated_from_its_cache(
    tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "1f0c2a" + "0" * 34
    model = tmp_path / "hub" / "models--acme--base"
    shutil.copytree(scene.base, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    report = evaluate("hf://acme/base", scene.registry, score=load_score(f"{scene.score}:weights"))
    assert report.checkpoint is not None
    assert report.checkpoint.revision == commit
    assert report.metrics == evaluate(scene.base, scene.registry, score=load_score(f"{scene.score}:weights")).metrics


def test_what_a_target_is(tmp_path: Path, scene: Scene) -> None:
    assert is_recipe(str(scene.recipe))
    assert is_recipe(str(scene.place))
    assert is_recipe("absent.toml")
    assert not is_recipe(str(scene.base))
    assert not is_recipe("hf://acme/base.toml")
    shutil.copytree(scene.base, tmp_path / "both")
    shutil.copy(scene.recipe, tmp_path / "both")
    assert not is_recipe(str(tmp_path / "both"))


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path, scene: Scene) -> None:
    with pytest.raises(InvalidArgument, match="one of them"):
        evaluate(scene.base, scene.registry)
    with pytest.raises(InvalidArgument, match="one of them"):
        evaluate(scene.base, scene.registry, command="a {model}", score=lambda *_: {"a": 1})
    with pytest.raises(InvalidArgument, match="cannot be ended"):
        evaluate(scene.base, scene.registry, score=lambda *_: {"a": 1}, timeout=1.0)
    with pytest.raises(InvalidArgument, match="object store"):
        evaluate("s3://bucket/model", scene.registry, command="a {model}")
    with pytest.raises(CheckpointNotFound):
        evaluate(tmp_path / "absent", scene.registry, command="a {model}")
    with pytest.raises(BadRecipe, match="there is no recipe"):
        evaluate(tmp_path / "absent.toml", scene.registry, command="a {model}")
    for out, told in ((tmp_path, "is a directory"), (tmp_path / "no" / "x.json", "no directory")):
        with pytest.raises(InvalidArgument, match=told):
            evaluate(scene.base, scene.registry, command="a {model}", out=out)


# --- lm-evaluation-harness ----------------------------------------------------------------------------------------


def test_results_of_the_harness_become_metrics() -> None:
    results = {
        "arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 3, "broken,none": "N/A"},
        "gsm": {"exact_match,strict": 0.25, "exact_match,flexible": 1, "flag,none": True},
    }
    assert flat(results) == {"arc/acc": 0.5, "gsm/exact_match,strict": 0.25, "gsm/exact_match,flexible": 1}


@pytest.mark.slow
def test_tasks_of_the_harness_are_run(tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [{"text": "a b c", "choices": ["d", "e"], "label": row % 2} for row in range(4)]
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "alphabet.yaml").write_text(TASK.format(place=tasks))
    out = tmp_path / "results.json"
    report = evaluate(scene.recipe, scene.registry, tasks=Harness(["alphabet"], include=tasks), out=out)
    # Every other answer is d, whatever the model prefers.
    assert report.metrics == {"alphabet/acc": 0.5}
    whole = json.loads(out.read_text())
    assert whole["results"]["alphabet"]["acc,none"] == 0.5
    assert whole["n-samples"]["alphabet"] == {"original": 4, "effective": 4}
    assert whole["deltareg"]["evaluation"]["what"] == "alphabet"
    with pytest.raises(InvalidArgument, match="has no task 'absent'"):
        evaluate(scene.base, scene.registry, tasks=Harness(["absent"], include=tasks))
    (tasks / "rows.jsonl").unlink()
    with pytest.raises(EvaluationFailed, match="failed on alphabet") as error:
        evaluate(scene.base, scene.registry, tasks=Harness(["alphabet"], include=tasks))
    assert error.value.cause is not None


def test_tasks_that_are_none_are_refused(tmp_path: Path) -> None:
    for names in ([], [""], ["arc", ""]):
        with pytest.raises(InvalidArgument, match="task"):
            Harness(names)
    with pytest.raises(InvalidArgument, match="no directory"):
        Harness(["arc"], include=tmp_path / "absent")
