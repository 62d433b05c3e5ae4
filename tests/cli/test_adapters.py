"""`import-lora` and `export-lora` as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltareg.errors import AdapterRefused, CheckpointNotFound, NotHomologous
from tests.cli.program import Workplace
from tests.lora.models import Adapted, adapted, load_file, torch

NAME = "acme/chat:1.0.0"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """A base and an adapter of it. Read only."""
    path = tmp_path_factory.mktemp("made")
    return adapted(path, "llama", r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["model.norm"])


def test_import_reports_what_it_stored(workplace: Workplace, made: Adapted) -> None:
    arguments = ("import-lora", made.adapter, "--base", made.base, "--tag", NAME, "--licence", "apache-2.0")
    would = workplace.ok(*arguments, "--dry-run", "--json").document("import-lora")
    assert would["dryRun"] and would["digest"] is None
    assert workplace.run("show", NAME).status == 1
    told = workplace.ok(*arguments, "--json").document("import-lora")
    assert (told["lowRank"], told["full"], told["ranks"]) == (4, 1, {"4": 4})
    assert told["artifactSize"] == would["artifactSize"]
    shown = workplace.ok("show", NAME, "--tensors", "--json").document("show")
    assert shown["digest"] == told["digest"] and shown["config"]["licence"] == "apache-2.0"
    rows = workplace.ok("show", NAME, "--tensors").out
    assert "lowrank" in rows


def test_import_prints_for_people(workplace: Workplace, made: Adapted) -> None:
    done = workplace.ok("import-lora", made.adapter, "--base", made.base, "--tag", NAME)
    assert "low rank" in done.out and "acme/chat:1.0.0" in done.out


def test_imported_delta_is_applied(workplace: Workplace, made: Adapted, tmp_path: Path) -> None:
    workplace.ok("import-lora", made.adapter, "--base", made.base, "--tag", NAME)
    workplace.ok("apply", made.base, f"{NAME}=0", "-o", tmp_path / "nothing")
    workplace.ok("apply", made.base, NAME, "-o", tmp_path / "out")
    base, nothing, out = (
        load_file(path / "model.safetensors") for path in (made.base, tmp_path / "nothing", tmp_path / "out")
    )
    assert all(torch.equal(base[name], nothing[name]) for name in base)
    theirs = made.merged()
    assert all(torch.allclose(out[name], theirs[name], atol=1e-6) for name in base)
    assert not torch.equal(base["model.norm.weight"], out["model.norm.weight"])


def test_what_is_not_supported_tells_why_and_what_to_do(workplace: Workplace, made: Adapted, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in made.adapter.iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    Adapted(made.base, adapter, None).with_config(lora_bias=True)
    done = workplace.run("import-lora", adapter, "--base", made.base, "--tag", NAME)
    assert done.status == AdapterRefused.exit_code == 3
    assert "lora_bias" in done.err and "hint: merge it with peft" in done.err
    assert workplace.run("show", NAME).status == 1


def test_adapter_given_as_a_checkpoint_is_told_to_be_imported(
    workplace: Workplace, made: Adapted, tmp_path: Path
) -> None:
    for arguments in (
        ("diff", made.base, made.adapter, "--tag", NAME),
        ("fingerprint", made.adapter),
        ("import-lora", made.adapter, "--base", made.adapter, "--tag", NAME),
    ):
        done = workplace.run(*arguments)
        assert done.status == CheckpointNotFound.exit_code == 1
        assert "holds an adapter, no model" in done.err and "import-lora" in done.err


def test_export_reports_the_error_and_what_is_left_out(workplace: Workplace, made: Adapted, tmp_path: Path) -> None:
    workplace.ok("import-lora", made.adapter, "--base", made.base, "--tag", NAME)
    done = workplace.ok("export-lora", NAME, "--rank", "2", "-o", tmp_path / "less", "--json")
    told = done.document("export-lora")
    assert 0 < told["error"] < 1 and len(told["tensors"]) == 4
    assert [one["name"] for one in told["leftOut"]] == ["model.norm.weight"]
    assert "1 tensors are left out" in done.err
    assert (tmp_path / "less" / "adapter_config.json").exists()
    whole = workplace.ok(
        "export-lora", NAME, "--rank", "4", "--base", made.base, "-o", tmp_path / "whole", "--threads", "1", "--json"
    ).document("export-lora")
    assert (whole["error"], whole["leftOut"], whole["savedModules"]) == (0, [], ["model.norm"])
    again, before = (load_file(path / "adapter_model.safetensors") for path in (tmp_path / "whole", made.adapter))
    assert again.keys() == before.keys() and all(torch.equal(again[name], before[name]) for name in before)


def test_export_refuses_another_base_unless_forced(workplace: Workplace, made: Adapted, tmp_path: Path) -> None:
    workplace.ok("import-lora", made.adapter, "--base", made.base, "--tag", NAME)
    other = adapted(tmp_path, "llama", seed=5, r=1, target_modules=["q_proj"]).base
    arguments = ("export-lora", NAME, "--rank", "4", "--base", other, "-o", tmp_path / "out")
    done = workplace.run(*arguments)
    assert done.status == NotHomologous.exit_code == 3
    assert "lineage-unrelated" in done.err and "--force" in done.err and not (tmp_path / "out").exists()
    done = workplace.ok(*arguments, "--force", "--json")
    assert "forced: lineage-unrelated" in done.err
    assert done.document("export-lora")["notes"]


def test_export_prints_for_people_and_overwrites_when_asked(
    workplace: Workplace, made: Adapted, tmp_path: Path
) -> None:
    workplace.ok("import-lora", made.adapter, "--base", made.base, "--tag", NAME)
    out = tmp_path / "out"
    assert "error" in workplace.ok("export-lora", NAME, "-r", "2", "-o", out, "--dry-run").out
    assert not out.exists()
    workplace.ok("export-lora", NAME, "-r", "2", "-o", out)
    assert workplace.run("export-lora", NAME, "-r", "2", "-o", out).status == 2
    workplace.ok("export-lora", NAME, "-r", "3", "-o", out, "--overwrite")


@pytest.mark.parametrize("rank", ["0", "-3", "x"])
def test_rank_has_to_be_a_number_above_zero(workplace: Workplace, rank: str, tmp_path: Path) -> None:
    assert workplace.run("export-lora", NAME, "--rank", rank, "-o", tmp_path / "out").status == 2


@pytest.mark.parametrize("out", ["https://host/adapter", "s3://bucket/adapter", "S3://bucket/adapter"])
def test_export_takes_no_url_for_a_directory(workplace: Workplace, made: Adapted, out: str) -> None:
    workplace.ok("import-lora", made.adapter, "--base", made.base, "--tag", NAME)
    done = workplace.run("export-lora", NAME, "--rank", "2", "-o", out)
    assert (done.status, done.out, done.codes) == (2, "", ["DR0101"])
    assert f"{out} is no place that can be written to" in done.err
    assert "hint: name a directory to make, and copy that" in done.err
    assert list(workplace.directory.iterdir()) == []
