"""`import-mergekit` as it is typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deltareg.errors import BadMergeConfig, OutputExists
from deltareg.recipe import Recipe
from tests.checkpoint.hub_server import serve_hub
from tests.cli.program import Pair, Workplace

CONFIG = """\
merge_method: ties
base_model: base
models:
  - model: post
    parameters: {weight: 0.5, density: 0.8}
parameters: {int8_mask: true}
"""


@pytest.fixture
def project(workplace: Workplace, pair: Pair) -> Path:
    """A project with two checkpoints and mergekit's configuration of them."""
    for place in (pair.base, pair.post):
        shutil.copytree(place, workplace.directory / place.name)
    (workplace.directory / "merge.yml").write_text(CONFIG)
    return workplace.directory


def test_import_reports_what_it_took_and_wrote(workplace: Workplace, project: Path) -> None:
    would = workplace.ok("import-mergekit", "merge.yml", "--dry-run", "--json").document("import-mergekit")
    assert would["dryRun"] and would["deltas"][0]["status"] == "would take"
    assert not (project / "deltareg.toml").exists() and not workplace.home.exists()
    done = workplace.ok("import-mergekit", "merge.yml", "--namespace", "acme", "--licence", "apache-2.0", "--json")
    told = done.document("import-mergekit")
    assert (told["mergeMethod"], told["method"], told["base"], told["rewritten"]) == ("ties", "ties", "base", False)
    assert told["text"] == (project / "deltareg.toml").read_text()
    (delta,) = told["deltas"]
    assert (delta["model"], delta["line"], delta["reference"]) == ("post", 4, "acme/post:1.0.0")
    assert "line 6: int8_mask changes nothing here" in done.err
    shown = workplace.ok("show", "acme/post:1.0.0", "--json").document("show")
    assert (shown["digest"], shown["config"]["licence"]) == (delta["digest"], "apache-2.0")


def test_import_prints_for_people(workplace: Workplace, project: Path) -> None:
    done = workplace.ok("import-mergekit", "merge.yml", "--dry-run")
    assert 'method = "ties" # line 1: merge_method: ties' in done.out and "would write deltareg.toml" in done.out
    done = workplace.ok("import-mergekit", "merge.yml", "-o", "recipes/merge.toml")
    assert "imported/post:1.0.0" in done.out and "wrote recipes/merge.toml" in done.out and "[build]" not in done.out
    assert Recipe.read(project / "recipes" / "merge.toml").build.base == "../base"


def test_imported_recipe_is_applied_as_its_commands_say(workplace: Workplace, project: Path) -> None:
    workplace.ok("import-mergekit", "merge.yml")
    recipe = Recipe.read(project / "deltareg.toml")
    assert recipe.build.parameters == {
        "density": 0.8,
        "normalize": "weights",
        "rescale": "none",
        "lambda": 1.0,
        "elect": "weighted",
        "trim": "tensor",
    }
    assert [(one.ref, one.version, one.weight) for one in recipe.delta] == [("imported/post", "1.0.0", 0.5)]


def test_imported_recipe_is_built_where_a_remote_is_the_default(workplace: Workplace, project: Path) -> None:
    (project / "shared").mkdir()
    workplace.ok("init")
    workplace.ok("remote", "add", "team", "shared", "--default")
    workplace.ok("import-mergekit", "merge.yml")
    built = workplace.ok("build", "-o", "merged", "--json").document("build")
    assert [(one["reference"], one["remote"]) for one in built["deltas"]] == [("imported/post:1.0.0", "local")]
    by_hand = ["-m", "ties", "-p", "density=0.8", "-p", "trim=tensor", "--side-files", "target"]
    workplace.ok("apply", "base", "imported/post:1.0.0=0.5", *by_hand, "-o", "by-hand")
    merged, applied = ((project / name / "model.safetensors").read_bytes() for name in ("merged", "by-hand"))
    assert merged == applied


def test_fault_in_the_configuration_tells_its_line(workplace: Workplace, project: Path) -> None:
    (project / "merge.yml").write_text(CONFIG.replace("density", "densty"))
    done = workplace.run("import-mergekit", "merge.yml", "--json")
    assert done.status == BadMergeConfig.exit_code == 2
    error = json.loads(done.out)["error"]
    assert error["message"] == "merge.yml, line 5: unknown parameter densty (did you mean density?)"
    assert error["data"]["line"] == 5 and done.codes == [BadMergeConfig.code]
    assert not (project / "deltareg.toml").exists()


def test_recipe_that_is_there_is_kept_unless_told(workplace: Workplace, project: Path) -> None:
    workplace.ok("import-mergekit", "merge.yml")
    done = workplace.run("import-mergekit", "merge.yml")
    assert (done.status, done.codes) == (2, [OutputExists.code]) and "--overwrite" in done.err
    workplace.ok("import-mergekit", "merge.yml", "--overwrite")


def test_hint_names_the_flag_that_keeps_the_base(workplace: Workplace, project: Path) -> None:
    shutil.copytree(project / "post", project / "newer")
    text = "merge_method: task_arithmetic\nbase_model: base\nmodels:\n"
    text += "  - {model: newer, parameters: {weight: 1}}\n  - {model: post, parameters: {weight: 0.5}}\n"
    (project / "merge.yml").write_text(text)
    done = workplace.ok("import-mergekit", "merge.yml")
    assert "newer is taken for the new base" in done.err and "hint: --keep-base" in done.err
    assert Recipe.read(project / "deltareg.toml").build.base == "./newer"
    workplace.ok("import-mergekit", "merge.yml", "--keep-base", "--overwrite")
    assert Recipe.read(project / "deltareg.toml").build.base == "./base"
    workplace.ok("import-mergekit", "merge.yml", "--new-base", "newer", "--overwrite")
    assert Recipe.read(project / "deltareg.toml").build.base == "./newer"


def test_model_on_the_hub_becomes_a_delta_that_is_known_by_its_commit(
    workplace: Workplace, project: Path, tmp_path: Path
) -> None:
    files = {file.name: file.read_bytes() for file in (project / "post").iterdir()}
    (project / "merge.yml").write_text(CONFIG.replace("model: post", "model: acme/Tuned-7B@main"))
    with serve_hub("acme/Tuned-7B", files) as server:
        workplace.environment |= {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
        would = workplace.execute("import-mergekit", "merge.yml", "--dry-run", "--json")
        assert would.status == 0, would.err
        assert would.document("import-mergekit")["deltas"][0]["reference"] == "imported/tuned-7b:1.0.0"
        assert not list((tmp_path / "cache").rglob("*.safetensors"))  # headers were read where they lie
        done = workplace.execute("import-mergekit", "merge.yml", "--json")
        assert done.status == 0, done.err
        (delta,) = done.document("import-mergekit")["deltas"]
        assert (delta["model"], delta["status"]) == ("acme/Tuned-7B@main", "taken")
        again = workplace.execute("import-mergekit", "merge.yml", "--json", "--overwrite")
        assert again.document("import-mergekit")["deltas"][0]["status"] == "found"
    config = workplace.ok("show", "imported/tuned-7b", "--json").document("show")["config"]
    assert config["post"]["id"] == "hf://acme/Tuned-7B" and len(config["post"]["revision"]) == 40
