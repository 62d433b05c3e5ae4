"""`deltareg check` and `deltareg fingerprint`, as users, pipelines and workflows read them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from deltareg.homology import FINDINGS
from tests.cli.conftest import DELTA
from tests.cli.program import ROOT, Pair, Workplace
from tests.docs import commands

OPTIONS = {
    path: {option for parameter in context.command.params for option in parameter.opts} for path, context in commands()
}


@pytest.fixture
def targets(pair: Pair, tmp_path: Path) -> dict[str, Path]:
    """Targets by the verdict that they get."""
    found = {"fits": pair.base}
    for name, change in (("noted", {"rope_theta": 5.0}), ("misfit", {"model_type": "bert"})):
        found[name] = tmp_path / name
        shutil.copytree(pair.base, found[name])
        config = json.loads((pair.base / "config.json").read_text())
        (found[name] / "config.json").write_text(json.dumps(config | change))
    return found


def test_a_fit_is_told_and_ends_well(stocked: Workplace, targets: dict[str, Path]) -> None:
    done = stocked.ok("check", DELTA, "--base", targets["noted"])
    assert re.search(r"^verdict +homologous$", done.out, re.MULTILINE)
    assert "behaviour-field" in done.out
    assert stocked.ok("check", DELTA, "--base", targets["noted"], "--strict").status == 0


def test_a_misfit_ends_with_status_3_and_its_remedy(stocked: Workplace, targets: dict[str, Path]) -> None:
    (targets["misfit"] / "model.safetensors").unlink()
    write_other(targets["misfit"])
    done = stocked.run("check", DELTA, "--base", targets["misfit"])
    assert done.status == 3
    assert re.search(r"^verdict +incompatible$", done.out, re.MULTILINE)
    assert "hint: tensor-missing:" in " ".join(done.err.split())
    assert stocked.execute("check", DELTA, "--base", targets["misfit"]).status == 3


def write_other(directory: Path) -> None:
    import numpy as np

    from tests import raw

    tensor = raw.RawTensor(raw.TensorSpec("other.weight", "BF16", (4,)), np.zeros(8, np.uint8))
    raw.write(directory / "model.safetensors", [tensor])


def test_json_holds_every_finding(stocked: Workplace, targets: dict[str, Path]) -> None:
    report = stocked.ok("check", DELTA, DELTA, "--base", targets["noted"], "--json").document("check")
    assert [delta["reference"] for delta in report["deltas"]] == [DELTA, DELTA]
    assert report["verdict"] == "homologous"
    assert report["bytesRead"] > 0


def test_strict_fails_on_warnings(stocked: Workplace, targets: dict[str, Path], pair: Pair) -> None:
    target = targets["noted"]
    write_head(target, pair)
    assert stocked.ok("check", DELTA, "--base", target, "--json").document("check")["verdict"] == "adaptable"
    assert stocked.run("check", DELTA, "--base", target, "--strict").status == 3


def write_head(directory: Path, pair: Pair) -> None:
    import numpy as np

    from tests import raw

    head = raw.RawTensor(raw.TensorSpec("score.weight", "BF16", (2, 2)), np.zeros(8, np.uint8))
    raw.write(directory / "model.safetensors", [*raw.read(pair.base).values(), head])


def test_sarif_is_a_log_of_results_by_rule(stocked: Workplace, targets: dict[str, Path]) -> None:
    log: dict[str, Any] = json.loads(stocked.run("check", DELTA, "--base", targets["misfit"], "--sarif").out)
    assert (log["version"], log["$schema"].endswith("sarif-2.1.0.json")) == ("2.1.0", True)
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "deltareg"
    rules = driver["rules"]
    assert [rule["id"] for rule in rules] == list(FINDINGS)
    assert all(rule["shortDescription"]["text"] and rule["help"]["text"] for rule in rules)
    assert run["results"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["message"]["text"].startswith(DELTA)
        (location,) = result["locations"]
        assert " " not in location["physicalLocation"]["artifactLocation"]["uri"]
    assert "model-type" in {result["ruleId"] for result in run["results"]}


def test_workflow_commands_stay_on_one_line(stocked: Workplace, targets: dict[str, Path]) -> None:
    config = json.loads((targets["noted"] / "config.json").read_text()) | {"rope_theta": "50%\n::error::owned"}
    (targets["noted"] / "config.json").write_text(json.dumps(config))
    done = stocked.ok("check", DELTA, "--base", targets["noted"], "--github")
    lines = done.out.splitlines()
    assert any(line.startswith("::notice title=deltareg behaviour-field::") for line in lines)
    assert not any(line.startswith("::error") for line in lines)
    assert any("50%25" in line for line in lines)
    assert lines[-1].endswith(": homologous")


def test_one_form_of_output_at_a_time(stocked: Workplace, targets: dict[str, Path]) -> None:
    done = stocked.run("check", DELTA, "--base", targets["fits"], "--sarif", "--github")
    assert (done.status, done.codes) == (2, ["DR0101"])


def test_the_fingerprint_for_people_and_for_programs(workplace: Workplace, pair: Pair) -> None:
    report = workplace.ok("fingerprint", pair.base, "--json").document("fingerprint")
    assert report["tensors"] == 2
    shown = workplace.ok("fingerprint", pair.base).out
    assert report["fingerprint"]["digest"] in shown
    assert "llama" in shown


# --- what a project copies ----------------------------------------------------------------------------------------


def test_hooks_name_commands_and_options_that_exist() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert [hook["id"] for hook in hooks] == ["deltareg-check", "deltareg-check-strict"]
    for hook in hooks:
        program, command, *options = hook["entry"].split()
        assert set(options) <= OPTIONS[f"{program} {command}"]
        assert (hook["language"], hook["pass_filenames"]) == ("python", False)


def test_the_workflow_names_commands_and_options_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / "docs" / "ci" / "deltareg-check.yml").read_text())
    # YAML 1.1 reads the key `on` as true.
    inputs = set(workflow[True]["workflow_call"]["inputs"])
    (job,) = workflow["jobs"].values()
    assert set(re.findall(r"inputs\.(\w+)", json.dumps(job))) == inputs
    scripts = "\n".join(step.get("run", "") for step in job["steps"])
    assert "inputs." not in scripts, "what callers give must not become part of a script"
    typed = [line.split() for line in scripts.splitlines() if line.strip().startswith("deltareg ")]
    assert [words[1] for words in typed] == ["pull", "check"]
    for _, command, *words in typed:
        assert {word for word in words if word.startswith("--") and word != "--"} <= OPTIONS[f"deltareg {command}"]
    assert "--strict" in OPTIONS["deltareg check"]
