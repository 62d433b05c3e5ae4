"""`deltareg transfer`, as a user types it."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cli.program import ROOT, Workplace

PUBLISHED = ROOT / "docs" / "paramdelta" / "published"
TABLE = PUBLISHED / "finetuning-transfer-llama-8b.csv"
FOUR = {"base": 0.4, "post": 0.7, "new-base": 0.45, "real": 0.72}


def evaluations(workplace: Workplace) -> list[str]:
    """Results of four models as lm-evaluation-harness lays them, and the options that name them."""
    options: list[str] = []
    for role, value in FOUR.items():
        directory = workplace.directory / "evals" / role / f"acme__{role}"
        directory.mkdir(parents=True)
        tasks = {
            name: {"acc,none": value * share, "acc_stderr,none": 0.01, "alias": name}
            for name, share in (("arc", 1.0), ("gsm8k", 0.6), ("ifeval", 1.2))
        }
        document = {"results": tasks, "model_name": f"acme/{role}", "versions": dict.fromkeys(tasks, 1.0)}
        (directory / "results_2026-01-01T00-00-00.000000.json").write_text(json.dumps(document))
        options += [f"--{role}", f"evals/{role}"]
    return options


def test_results_of_four_models_give_gamma(workplace: Workplace) -> None:
    found = workplace.ok("transfer", *evaluations(workplace), "--json").document("transfer-analysis")
    assert [point["task"] for point in found["points"]] == ["arc", "gsm8k", "ifeval"]
    assert found["points"][0]["hypothetical"] == pytest.approx(0.75)
    assert found["throughOrigin"]["gamma"] == pytest.approx(0.72 / 0.75)
    assert found["points"][0]["hypotheticalError"] == pytest.approx(0.03**0.5 / 10)
    shown = workplace.ok("transfer", *(word for role in FOUR for word in (f"--{role}", f"./evals/{role}")))
    assert "through the origin" in shown.out
    assert "0.9600" in shown.out


def test_published_numbers_give_what_their_page_tells(workplace: Workplace) -> None:
    found = workplace.ok("transfer", TABLE, "--json").document("transfer-analysis")
    assert len(found["points"]) == 12
    assert found["throughOrigin"]["gamma"] == pytest.approx(0.986, abs=5e-4)
    assert found["throughOrigin"]["rSquared"] == pytest.approx(0.985, abs=5e-4)
    assert workplace.ok("transfer", TABLE, "--json").out == workplace.ok("transfer", TABLE, "--json").out


def test_every_published_table_has_its_source_on_the_page() -> None:
    page = (PUBLISHED / "README.md").read_text()
    tables = sorted(PUBLISHED.glob("*.csv"))
    assert tables
    for table in tables:
        (line,) = [line for line in page.splitlines() if line.startswith(f"| [{table.name}]")]
        assert "https://" in line or table.name == "template.csv"


def test_the_template_has_the_columns_and_no_numbers(workplace: Workplace) -> None:
    done = workplace.run("transfer", PUBLISHED / "template.csv")
    assert (done.codes, done.status) == (["DR0101"], 2)
    assert "0 tasks have all four values" in done.err


def test_what_was_left_out_is_told(workplace: Workplace) -> None:
    text = TABLE.read_text().replace("55.6,81.1,56.6,79.8", ",81.1,56.6,79.8")
    (workplace.directory / "table.csv").write_text(text)
    done = workplace.ok("transfer", "table.csv")
    assert "GSM8K (Llama 3.0 on 3.1) was left out: no value of base" in done.err
    lines = text.splitlines()
    more = [f"g,t{number},,,,,1" for number in range(8)]
    (workplace.directory / "table.csv").write_text("\n".join([*lines, *more]))
    assert "4 tasks more left out: --json says why" in workplace.ok("transfer", "table.csv").err


@pytest.mark.parametrize("ending", ["png", "svg", "html"])
def test_a_picture_is_drawn(workplace: Workplace, ending: str) -> None:
    pytest.importorskip("matplotlib")
    done = workplace.ok("transfer", TABLE, "--plot", f"picture.{ending}")
    assert f"drew picture.{ending}" in done.err
    assert (workplace.directory / f"picture.{ending}").stat().st_size > 1000


def test_faults_are_told_with_what_to_do(workplace: Workplace) -> None:
    shutil.copy(TABLE, workplace.directory / "table.csv")
    (workplace.directory / "bad.csv").write_text("task,base\n")
    (workplace.directory / "bad.json").write_text("[]")
    for arguments, code, told in (
        ([], "DR0101", "nothing to analyse"),
        (["nothing.csv"], "DR0002", "there is no file nothing.csv"),
        (["."], "DR0108", "is a directory"),
        (["bad.csv"], "DR0108", "no column post, new_base, real"),
        (["--base", "a", "--post", "b"], "DR0101", "1 of --base, 1 of --post, 0 of --new-base, 0 of --real"),
        ([*(word for role in FOUR for word in (f"--{role}", "bad.json"))], "DR0108", "bad.json has no results"),
        (["table.csv", "table.csv"], "DR0101", "is given twice"),
        (["table.csv", "--confidence", "95"], "DR0101", "not between 0 and 1"),
        # Before anything is read.
        (["nothing.csv", "--plot", "picture.pdf"], "DR0101", "name it .png, .svg or .html"),
    ):
        done = workplace.run("transfer", *arguments)
        assert (done.codes, done.out) == ([code], ""), arguments
        assert told in done.err


def test_help_loads_no_arrays(workplace: Workplace) -> None:
    program = """
import sys
from deltareg.cli import main
main(["transfer", "--help"])
print("loaded:", *sorted({"numpy", "numba", "torch", "matplotlib"} & set(sys.modules)), file=sys.stderr)
"""
    done = workplace.python(program)
    assert "--new-base" in done.out
    assert done.err.endswith("loaded:\n")
